"""Config files of somebody else: what is not clear is refused in one sentence, and grows no larger."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from bae_lens import load_config
from bae_lens.cli import main
from bae_lens.files.yaml_file import parse_yaml, read_config

_BOMB = "a0: &a0 [x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30)
)
_MERGED = "a0: &a0 {x: 1}\n" + "".join(
    f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 30)
)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.yaml", "model_name: café".encode("latin-1"), "has to be UTF-8"),
        ("a.yaml", "lr: 1.0  # “a”".encode("cp1252"), "has to be UTF-8"),
        ("a.yaml", "lr: 1.0".encode("utf-16"), "has to be UTF-8"),
        ("a.json", '{"lr": 1.0}'.encode("utf-16-le"), "no JSON|Expecting|has to be UTF-8"),
        ("a.yaml", b"[" * 100_000, "nested too deep"),
        ("a.json", b"[" * 100_000, "nested too deep"),
        ("a.yaml", b"lr: 1.0\nlr: 2.0", "'lr' stands twice"),
        ("a.yaml", b"sae: {d_in: 1, d_in: 2}", "'d_in' stands twice"),
        ("a.json", b'{"lr": 1.0, "lr": 2.0}', "'lr' stands twice"),
        ("a.yaml", b"sae:\n\td_in: 1", "no YAML"),
        ("a.yaml", b"sae: !!python/object/apply:os.system [ls]", "no YAML"),
        ("a.yaml", _BOMB.encode(), "more than 20,000 values"),
        ("a.yaml", _MERGED.encode(), "more than 20,000 values"),
        ("a.yaml", b"a: &a [*a]", "repeated inside itself"),
        ("a.yaml", b"seed: " + b"9" * 5000, "cannot be read"),
        ("a.yaml", b"lr: 2024-13-45", "cannot be read"),
        ("a.json", b'{"seed": ' + b"9" * 5000 + b"}", "5000 digits"),
        ("a.json", b'{"lr": NaN}', "not finite"),
        ("a.yaml", b"# " + b"x" * 300_000, "larger than 256 KiB"),
        ("a.yaml", b"", "must hold fields and their values; got None"),
        ("a.yaml", b"- 1", "must hold fields and their values"),
        ("a.yaml", b"a: \x00", "no YAML"),
        ("a.yaml", b"1: 2\nsae: {architecture: bae, d_in: 4, d_sae: 8}", "Unknown field '1'"),
        ("a.yaml", b"sae: {architecture: [bae]}", "sae.architecture must be one of"),
    ],
)
def test_what_is_no_config(name: str, content: bytes, words: str, tmp_path: Path, capsys) -> None:
    (tmp_path / name).write_bytes(content)
    started = time.monotonic()

    with pytest.raises(ValueError, match=words) as caught:
        load_config(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert main(["train", str(tmp_path / name)]) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("name", ["x" * 5000, "x" * 300 + ".yaml", "a\0b"])
def test_a_name_that_no_file_can_have(name: str) -> None:
    with pytest.raises(FileNotFoundError, match="There is no file"):
        load_config(name)


def test_a_folder_in_place_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is a folder"):
        load_config(tmp_path)


def test_what_is_clear_is_taken(tmp_path: Path) -> None:
    assert parse_yaml("a: &a {x: 1e-3}\nb: {<<: *a, y: 2}\nc: {<<: *a, x: 3}") == {
        "a": {"x": 1e-3},
        "b": {"x": 1e-3, "y": 2},
        "c": {"x": 3},
    }
    assert parse_yaml("") is None
    (tmp_path / "a.yaml").write_bytes(b"\xef\xbb\xbflr: 0.5")  # With a mark of UTF-8.
    assert read_config(tmp_path / "a.yaml") == {"lr": 0.5}
