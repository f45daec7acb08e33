"""Collections on disk: what is written, what is read of it, and what is refused."""

from __future__ import annotations

import copy
import errno
import json
import logging
import os
import pickle
import signal
import time
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens.training.activations_store import ActivationsStore
from torch import Tensor
from typing_extensions import override

from bae_lens.activations import collecting
from bae_lens.activations.collection import check_collection, kept_rows
from bae_lens.activations.paired_activations import PairedActivations
from bae_lens.activations.replay import ReplayedActivations
from bae_lens.files.unfinished import sweep
from tests.activations.test_paired_activations import context_store, counted_passes
from tests.activations.test_sentence_store import make_encoder
from tests.activations.test_sentence_store import store as sentence_store
from tests.helpers import BATCH, CONTEXT_SIZE, D_IN, HOOK, make_model, make_text, runner_cfg

N_TOKENS = 5 * BATCH
FILES = ("activations.bin", "activations_store_state.safetensors")
DESCRIBED = {"hook_name": HOOK, "seqpos_slice": (1, None)}


def make_store(folder: Path, n_rows: int = 160, **overrides: Any) -> ActivationsStore:
    return ActivationsStore.from_config(
        make_model(), runner_cfg(folder, **overrides), override_dataset=make_text(n_rows)
    )


def paired_store(length: int | None) -> PairedActivations:
    return PairedActivations(context_store(), 2 * CONTEXT_SIZE, length, dtype=torch.bfloat16)


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A folder that rows were collected into."""
    kept_rows(tmp_path / "kept", make_store(tmp_path), N_TOKENS, DESCRIBED)
    return tmp_path / "kept"


# Rows


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_rows_are_those_that_memory_would_hold(tmp_path: Path, dtype: str):
    expected = ReplayedActivations.collect(make_store(tmp_path, dtype=dtype), 300).activations
    path = tmp_path / "new" / "kept"
    for _ in range(2):
        rows = kept_rows(path, make_store(tmp_path, dtype=dtype), 300)
        assert rows.dtype == expected.dtype
        assert torch.equal(rows, expected)


@pytest.mark.parametrize("length", [None, CONTEXT_SIZE])
def test_so_are_those_of_two_hook_points(tmp_path: Path, length: int | None):
    n_tokens = 10 * CONTEXT_SIZE + 5
    expected = ReplayedActivations.collect(paired_store(length), n_tokens)
    for _ in range(2):
        replay = ReplayedActivations.collect(paired_store(length), n_tokens, path=tmp_path)
        assert replay.sequence_length == expected.sequence_length
        assert torch.equal(replay.activations, expected.activations)
        expected.n_batches_served = 0
        assert torch.equal(next(replay), next(expected))


def test_batches_are_those_from_memory(tmp_path: Path):
    memory = ReplayedActivations.collect(make_store(tmp_path), N_TOKENS, seed=3)
    new = ReplayedActivations.collect(make_store(tmp_path), N_TOKENS, 3, tmp_path / "kept")
    read = ReplayedActivations.collect(make_store(tmp_path), N_TOKENS, 3, tmp_path / "kept")
    for replay in (new, read):
        assert (replay.batch_size, replay.device) == (BATCH, memory.device)
    for _ in range(12):
        expected = next(memory)
        assert torch.equal(next(new), expected)
        assert torch.equal(next(read), expected)


def test_the_language_model_runs_for_the_first_one_only(tmp_path: Path):
    first, second = make_store(tmp_path), make_store(tmp_path)
    with counted_passes(first.model) as passes:
        kept_rows(tmp_path / "kept", first, N_TOKENS)
    assert len(passes) == 3
    with counted_passes(second.model) as passes:
        kept_rows(tmp_path / "kept", second, N_TOKENS)
    assert passes == []


def test_what_was_read_is_written_before_more_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sizes = []
    store = make_store(tmp_path, store_batch_size_prompts=64)
    read = store.get_filtered_llm_batch

    def watch(**kwargs: Any) -> Tensor:
        sizes.append(sum(len(content) for content in files_of(tmp_path / "kept").values()))
        return read(**kwargs)

    monkeypatch.setattr(store, "get_filtered_llm_batch", watch)
    kept_rows(tmp_path / "kept", store, 3000)
    # Three passes of 61 kB, less what the file's buffer holds back.
    assert len(sizes) == 4
    assert sizes[0] == 0
    assert sizes[3] > 40_000


def test_they_are_mapped_and_not_read(kept: Path, tmp_path: Path):
    rows = kept_rows(kept, make_store(tmp_path), N_TOKENS, DESCRIBED)
    replay = ReplayedActivations(rows, BATCH)
    with (kept / "collection" / "activations.bin").open("r+b") as file:
        file.write(b"\0" * N_TOKENS * D_IN * 4)
    assert not next(replay).any()


def test_there_may_be_more_of_them_than_memory_holds(tmp_path: Path):
    # A file of nothing but a hole: two rows of 4 MB are read of a tebibyte.
    width, n_rows = 2**20, 2**18
    folder = tmp_path / "collection"
    folder.mkdir()
    shape = {"format": 1, "n_rows": n_rows, "width": width, "dtype": "torch.float32"}
    asked = {"replay_tokens": n_rows, "sequence_length": None}
    (folder / "description.json").write_text(json.dumps(shape | asked))
    with (folder / "activations.bin").open("wb") as file:
        file.truncate(4 * width * n_rows)
    store = make_store(tmp_path)
    store.save_to_checkpoint(folder)
    store.d_in = width
    replay = ReplayedActivations(kept_rows(tmp_path, store, n_rows), 2)
    assert next(replay).shape == (2, width)


def test_a_copy_is_in_memory(kept: Path, tmp_path: Path):
    rows = kept_rows(kept, make_store(tmp_path), N_TOKENS, DESCRIBED)
    for copied in (copy.deepcopy(rows), pickle.loads(pickle.dumps(rows))):
        assert torch.equal(copied, rows)
        copied.zero_()
    assert rows.any()


def test_what_there_is_is_kept_where_the_text_ends_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    rows = [kept_rows(tmp_path / "kept", make_store(tmp_path, 16), 10**6) for _ in range(2)]
    assert f"ended after {len(rows[0])} of 1000000 tokens" in caplog.text
    assert 16 * CONTEXT_SIZE < len(rows[0]) <= 16 * 24
    assert torch.equal(*rows)


@pytest.mark.parametrize("dataset", [make_text(1, 1), make_text(8)], ids=["no", "little"])
def test_too_little_text_for_a_batch_says_so(tmp_path: Path, dataset: Any):
    cfg = runner_cfg(tmp_path, train_batch_size_tokens=500)
    for _ in range(2):
        store = ActivationsStore.from_config(make_model(), cfg, override_dataset=dataset)
        with pytest.raises(ValueError, match="Collect more tokens or lower train_batch_size"):
            ReplayedActivations.collect(store, 500, path=tmp_path / "kept")


# What lies beside them


def test_they_are_described_for_people_too(kept: Path):
    description = json.loads((kept / "collection" / "description.json").read_text())
    content, state = (kept / "collection" / name for name in FILES)
    assert description == {
        "crc32_block_bytes": 64 * 2**20,
        "crc32": [zlib.crc32(content.read_bytes())],
        "crc32_state": zlib.crc32(state.read_bytes()),
        "format": 1,
        "n_rows": N_TOKENS,
        "width": D_IN,
        "hook_name": HOOK,
        "seqpos_slice": [1, None],
        "replay_tokens": N_TOKENS,
        "sequence_length": None,
        "dtype": "torch.float32",
    }
    assert [path.name for path in kept.iterdir()] == ["collection"]
    assert len({path.stat().st_mode for path in (kept / "collection").iterdir()}) == 1


def test_the_store_goes_on_behind_what_was_collected(kept: Path, tmp_path: Path):
    store = make_store(tmp_path)
    kept_rows(kept, store, N_TOKENS, DESCRIBED)
    same = make_store(tmp_path)
    ReplayedActivations.collect(same, N_TOKENS)
    assert store.n_dataset_processed == same.n_dataset_processed > 0


def test_a_store_of_sentences_goes_on_with_the_next(tmp_path: Path):
    model = make_encoder()
    stores = [sentence_store(model) for _ in range(2)]
    for store in stores:
        ReplayedActivations.collect(PairedActivations(store, 4), 12, path=tmp_path)
    first, second = (store.paired_batch().tokens for store in stores)
    assert torch.equal(first, second)
    assert not torch.equal(first, sentence_store(model).paired_batch().tokens)


# What is never taken for whole


class Stopped(ActivationsStore):
    """Stops in its third forward pass."""

    n_passes = 0
    error: type[BaseException] = KeyboardInterrupt

    @override
    def get_filtered_llm_batch(self, raise_on_epoch_end: bool = False) -> Tensor:
        self.n_passes += 1
        if self.n_passes == 3:
            raise self.error
        return super().get_filtered_llm_batch(raise_on_epoch_end)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_nothing_is_left_of_a_run_that_stops_while_it_collects(
    tmp_path: Path, error: type[BaseException]
):
    cfg = runner_cfg(tmp_path)
    store = Stopped.from_config(make_model(), cfg, override_dataset=make_text())
    store.error = error  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(error):
        kept_rows(tmp_path / "kept", store, N_TOKENS)
    assert list((tmp_path / "kept").iterdir()) == []
    rows = kept_rows(tmp_path / "kept", make_store(tmp_path), N_TOKENS)
    expected = ReplayedActivations.collect(make_store(tmp_path), N_TOKENS).activations
    assert torch.equal(rows, expected)


def collect_until(path: Path, folder: Path, number: int | None) -> int:
    """Collect in a process that is sent a signal in the middle; how it ended."""
    pid = os.fork()
    if pid > 0:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    try:
        # Whatever the process of the tests does at it.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        torch.set_num_threads(1)  # Others are not there after a fork, and would be waited for.
        store = make_store(folder)
        n_passes, read = 0, store.get_filtered_llm_batch

        def read_and_stop(raise_on_epoch_end: bool = False) -> Tensor:
            nonlocal n_passes
            n_passes += 1
            if n_passes == 2 and number is not None:
                os.kill(os.getpid(), number)
            return read(raise_on_epoch_end)

        store.get_filtered_llm_batch = read_and_stop
        kept_rows(path, store, N_TOKENS)
    finally:
        os._exit(0)


def test_a_run_that_is_told_to_end_leaves_nothing_and_one_that_is_killed_is_swept(tmp_path: Path):
    path = tmp_path / "kept"
    # The signal still ends the process: nobody else has a handler for it.
    assert collect_until(path, tmp_path, signal.SIGTERM) == -signal.SIGTERM
    assert list(path.iterdir()) == []
    assert collect_until(path, tmp_path, signal.SIGKILL) == -signal.SIGKILL
    [left] = path.iterdir()
    assert left.name.startswith(".collecting-")
    expected = ReplayedActivations.collect(make_store(tmp_path), N_TOKENS).activations
    for _ in range(2):
        assert torch.equal(kept_rows(path, make_store(tmp_path), N_TOKENS), expected)
        assert [entry.name for entry in path.iterdir()] == ["collection"]
        # Also where there is nothing to collect.
        left.mkdir()


def test_a_run_that_still_collects_is_not_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, store = tmp_path / "kept", make_store(tmp_path)
    save = store.save_to_checkpoint

    def sweep_meanwhile(folder: Path) -> None:
        pid = os.fork()
        if pid == 0:
            sweep(path)
            os._exit(0)
        os.waitpid(pid, 0)
        save(folder)

    monkeypatch.setattr(store, "save_to_checkpoint", sweep_meanwhile)
    assert len(kept_rows(path, store, N_TOKENS)) == N_TOKENS


def test_what_a_version_without_locks_left_is_swept_once_it_is_old(kept: Path, tmp_path: Path):
    left = kept / ".collecting-abc"
    (left / "collection").mkdir(parents=True)
    for age, is_there in ((600, True), (7200, False)):
        for path in (left, left / "collection"):
            os.utime(path, (time.time() - age, time.time() - age))
        kept_rows(kept, make_store(tmp_path), N_TOKENS, DESCRIBED)
        assert left.exists() == is_there


def test_a_full_disk_is_told_with_the_folder_that_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(collecting, "_write", full)
    with pytest.raises(OSError, match="No space left on device") as told:
        ReplayedActivations.collect(make_store(tmp_path), N_TOKENS, path=tmp_path / "kept")
    assert told.value.filename == str(tmp_path / "kept")


def test_a_handler_that_is_there_stays(kept: Path, tmp_path: Path):
    previous = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        kept_rows(tmp_path / "other", make_store(tmp_path), N_TOKENS)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, previous)


def test_what_a_killed_run_left_is_not_read(kept: Path, tmp_path: Path):
    left = kept / ".collecting-abc"
    left.mkdir()
    (kept / "collection").rename(left / "collection")
    with counted_passes((store := make_store(tmp_path)).model) as passes:
        kept_rows(kept, store, N_TOKENS, DESCRIBED)
    assert len(passes) == 3


@pytest.mark.parametrize("n_tokens", [N_TOKENS, BATCH])
def test_of_two_runs_at_once_the_faster_ones_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_tokens: int
):
    path = tmp_path / "kept"
    store = make_store(tmp_path)
    save = store.save_to_checkpoint

    def save_when_the_other_is_done(folder: Path) -> None:
        save(folder)
        kept_rows(path, make_store(tmp_path), n_tokens)
        before.update(files_of(path / "collection"))

    before: dict[str, bytes] = {}
    monkeypatch.setattr(store, "save_to_checkpoint", save_when_the_other_is_done)
    if n_tokens == N_TOKENS:
        rows = kept_rows(path, store, N_TOKENS)
        expected = ReplayedActivations.collect(make_store(tmp_path), N_TOKENS).activations
        assert torch.equal(rows, expected)
    else:
        with pytest.raises(ValueError, match=f"replay_tokens is {BATCH} there and {N_TOKENS} here"):
            kept_rows(path, store, N_TOKENS)
    assert files_of(path) == {f"collection/{name}": file for name, file in before.items()}


def test_rows_that_were_cut_off_are_refused(kept: Path, tmp_path: Path):
    with (kept / "collection" / "activations.bin").open("r+b") as file:
        file.truncate(100)
    with pytest.raises(ValueError, match=r"should have 20480 bytes, 320 rows .* but has 100"):
        kept_rows(kept, make_store(tmp_path), N_TOKENS, DESCRIBED)
    (kept / "collection" / "activations.bin").unlink()
    with pytest.raises(ValueError, match=r"but has 0. Delete .*kept' to collect anew"):
        kept_rows(kept, make_store(tmp_path), N_TOKENS, DESCRIBED)


@pytest.mark.parametrize(("name", "place"), [(FILES[0], 0), (FILES[0], 17_000), (FILES[1], -1)])
def test_one_flipped_bit_is_refused(kept: Path, tmp_path: Path, name: str, place: int):
    path = kept / "collection" / name
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} is not what was written there.*collect anew"):
        kept_rows(kept, make_store(tmp_path), N_TOKENS, DESCRIBED)


def test_the_damaged_block_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(collecting, "BLOCK", 1000)
    kept_rows(tmp_path, make_store(tmp_path), N_TOKENS)
    description = json.loads((tmp_path / "collection" / "description.json").read_text())
    content = bytearray((tmp_path / "collection" / FILES[0]).read_bytes())
    blocks = [content[begin : begin + 1000] for begin in range(0, len(content), 1000)]
    assert description["crc32"] == [zlib.crc32(block) for block in blocks]
    content[20_100] ^= 1
    (tmp_path / "collection" / FILES[0]).write_bytes(content)
    with pytest.raises(ValueError, match="bytes 20000 to 20480 differs"):
        kept_rows(tmp_path, make_store(tmp_path), N_TOKENS)


def test_without_checksums_there_is_one_warning(
    kept: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    path = kept / "collection" / "description.json"
    old = {k: v for k, v in json.loads(path.read_text()).items() if not k.startswith("crc32")}
    path.write_text(json.dumps(old))
    with caplog.at_level(logging.WARNING):
        assert len(kept_rows(kept, make_store(tmp_path), N_TOKENS, DESCRIBED)) == N_TOKENS
    assert [r.getMessage() for r in caplog.records if "no checksum" in r.getMessage()] != []
    assert len([r for r in caplog.records if r.name.startswith("bae_lens")]) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_rows": -1}, "n_rows has to be a whole number from 0 up; got -1"),
        ({"n_rows": 320.0}, "n_rows has to be a whole number from 0 up; got 320.0"),
        ({"n_rows": True}, "n_rows has to be a whole number"),
        ({"n_rows": None}, "n_rows has to be a whole number from 0 up; got None"),
        ({"width": "16"}, "width has to be a whole number from 0 up; got '16'"),
        ({"width": [16]}, "width has to be a whole number"),
        ({"n_rows": 2**70}, "n_rows|description.json cannot be read"),
        ({"n_rows": 2**62}, "4611686018427387904 rows of 16 numbers, and 320 rows were asked for"),
        ({"n_rows": 2**40, "width": 0}, "1099511627776 rows of 0 numbers"),
        ({"n_rows": 320, "width": 0}, "320 rows of 0 numbers"),
        ({"n_rows": 160, "width": 32}, "width is 32 there and 16 here"),
        (
            {"n_rows": 10, "width": 16},
            "should have 640 bytes, 10 rows of 16 numbers, but has 20480",
        ),
        ({"crc32": 5}, "checksums cannot be read"),
        ({"crc32": []}, "0 checksums for 1 blocks"),
        ({"crc32": [1, 2]}, "checksum of bytes 0 to 20480 differs"),
        ({"crc32_block_bytes": 0}, "checksums cannot be read"),
        ({"crc32_block_bytes": 10**18, "crc32_state": "x"}, "state.safetensors is not what was"),
    ],
)
def test_what_the_description_claims_is_not_believed(
    kept: Path, tmp_path: Path, changes: dict[str, Any], message: str
):
    path = kept / "collection" / "description.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ValueError, match=message):
        kept_rows(kept, make_store(tmp_path), N_TOKENS, DESCRIBED)


def test_a_folder_that_cannot_be_written_is_found_before_anything_is_read():
    with pytest.raises(ValueError, match="/proc/bae cannot be written"):
        check_collection("/proc/bae", {})


@pytest.mark.parametrize("text", ['{"format": 1, ', None, "[" * 100_000, "[1]"])
def test_rows_whose_description_cannot_be_read_are_refused(
    kept: Path, tmp_path: Path, text: str | None
):
    path = kept / "collection" / "description.json"
    path.unlink()
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=r"description.json cannot be read .* to collect anew"):
        kept_rows(kept, make_store(tmp_path), N_TOKENS, DESCRIBED)


# What is not what was asked for


@pytest.mark.parametrize(
    ("n_tokens", "described", "message"),
    [
        (N_TOKENS + 1, {}, "replay_tokens is 320 there and 321 here"),
        (N_TOKENS, {"hook_name": "x"}, f"hook_name is '{HOOK}' there and 'x' here"),
        (N_TOKENS, {"seqpos_slice": (None,)}, r"seqpos_slice is \[1, None\] there and \[None\]"),
        (N_TOKENS, {"text_unit": "sentence"}, "text_unit is None there and 'sentence' here"),
        (
            *(BATCH, {"hook_name": None}),
            f"hook_name is '{HOOK}' there and None here; replay_tokens is 320 there and 64 here",
        ),
    ],
)
def test_it_is_refused_by_the_names_of_the_fields(
    kept: Path, tmp_path: Path, n_tokens: int, described: dict[str, Any], message: str
):
    before = files_of(kept)
    with pytest.raises(ValueError, match=rf"not those that this run asks for: {message}") as caught:
        kept_rows(kept, make_store(tmp_path), n_tokens, DESCRIBED | described)
    advice = "Name another folder, or delete this one to collect anew."
    assert str(caught.value).endswith(advice)
    assert str(kept) in str(caught.value)
    assert files_of(kept) == before


def test_another_dtype_or_sequence_length_is_refused(kept: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=r"dtype is 'torch.float32' there and 'torch.bfloat16'"):
        kept_rows(kept, make_store(tmp_path, dtype="bfloat16"), N_TOKENS, DESCRIBED)
    with pytest.raises(ValueError, match="sequence_length is None there and 16 here"):
        kept_rows(kept, paired_store(CONTEXT_SIZE), N_TOKENS, DESCRIBED)


def test_rows_of_another_layout_are_refused(kept: Path, tmp_path: Path):
    path = kept / "collection" / "description.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 0'))
    with pytest.raises(ValueError, match="format is 0 there and 1 here"):
        kept_rows(kept, make_store(tmp_path), N_TOKENS, DESCRIBED)


def test_what_is_not_asked_for_is_not_compared(kept: Path, tmp_path: Path):
    check_collection(kept, {"hook_name": HOOK})
    kept_rows(kept, make_store(tmp_path), N_TOKENS)


@pytest.mark.parametrize("there", [[], ["notes.txt", "collection.json"]])
def test_a_folder_without_a_collection_will_do(tmp_path: Path, there: list[str]):
    path = tmp_path / "kept"
    path.mkdir()
    for name in there:
        (path / name).write_text("mine")
    check_collection(path, {"hook_name": "x"})
    kept_rows(path, make_store(tmp_path), N_TOKENS)
    assert {entry.name for entry in path.iterdir()} == {*there, "collection"}


def test_a_file_is_no_folder(tmp_path: Path):
    (tmp_path / "kept").touch()
    with pytest.raises(ValueError, match=r"kept in a folder; .*kept' is a file"):
        kept_rows(tmp_path / "kept", make_store(tmp_path), N_TOKENS)


def test_what_json_has_no_word_for_is_told_by_its_name(tmp_path: Path):
    described = {"model_kwargs": {"dtype": torch.float16}}
    kept_rows(tmp_path / "kept", make_store(tmp_path), N_TOKENS, described)
    kept_rows(tmp_path / "kept", make_store(tmp_path), N_TOKENS, described)
    with pytest.raises(ValueError, match=r"{'dtype': 'torch.float16'} there and {} here"):
        kept_rows(tmp_path / "kept", make_store(tmp_path), N_TOKENS, {"model_kwargs": {}})


def test_that_rows_that_are_not_finite_are_counted_when_they_are_collected(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = make_store(tmp_path)
    read, n_read = store.get_filtered_llm_batch, 0

    def with_infinity(**kwargs: Any) -> Tensor:
        nonlocal n_read
        batch, n_read = read(**kwargs).clone(), n_read + 1
        if n_read == 1:
            batch[3, 0], batch[5] = float("nan"), float("inf")
        return batch

    store.get_filtered_llm_batch = with_infinity  # type: ignore[method-assign]
    kept_rows(tmp_path / "kept", store, N_TOKENS)
    assert f"2 of {N_TOKENS} collected activations have NaN or infinite values" in caplog.text
