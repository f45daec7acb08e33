"""``bae-lens report PATH …`` on a tiny model, resolved from the saved metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from sae_lens import HookedSAETransformer

from bae_lens import demo
from bae_lens.cli import main
from bae_lens.interp import Evidence
from tests.helpers import CONTEXT_SIZE, HOOK, make_bae, make_model, make_text, make_transcoder
from tests.report.helpers import TRAINING, Page, make_evidence

KNOWN = {
    "model_name": "bae-lens/tiny",
    "model_class_name": "HookedTransformer",
    "dataset_path": "bae-lens/tiny-text",
    "hook_name": HOOK,
    "context_size": CONTEXT_SIZE,
    "prepend_bos": True,
    "exclude_special_tokens": True,
}
SMALL = ("--n_tokens", "300", "--n_code_tokens", "200", "--n_sentences", "3")


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The names that were resolved, to a tiny model and tiny text."""
    asked: list[Any] = []

    def load_model(
        name: str, class_name: str = "HookedTransformer", device: Any = "cpu"
    ) -> HookedSAETransformer:
        asked.append(name)
        return make_model()

    def load_dataset(name: str, split: str = "train") -> Dataset:
        asked.append((name, split))
        return make_text()

    monkeypatch.setattr(demo, "load_model", load_model)
    monkeypatch.setattr(demo, "load_dataset", load_dataset)
    return asked


def save(folder: Path, sae: Any = None) -> Path:
    sae = make_bae() if sae is None else sae
    for name, value in KNOWN.items():
        sae.cfg.metadata[name] = value
    sae.save_model(folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(tmp_path / "sae")


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The message of a command that fails by what it was given."""
    assert main(["report", *argv]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("bae-lens: error: ")
    return err


def test_a_report_is_written_into_the_folder(folder, capsys, asked):
    assert main(["report", str(folder), *SMALL, "--n_strongest", "2", "--n_random", "1"]) == 0
    assert capsys.readouterr().out == f"Written to {folder / 'report.html'}\n"
    data = Page(folder / "report.html").data
    assert data["title"] == f"sae: bae at {HOOK}"
    [own] = data["dictionaries"]
    assert (own["nTokens"], len(own["nFirings"]), own["training"]) == (300, 40, None)
    assert ("bae-lens/tiny-text", "test") in asked
    values = {name: value for name, value, _ in own["metrics"]}
    assert values["code/n_tokens"] == 200
    assert len(data["sentences"]) == 3
    assert {len(row[0]) for row in data["latents"]} <= {0, 1, 2}
    assert {len(row[1]) for row in data["latents"]} <= {0, 1}


def test_metrics_and_training_that_lie_there_are_shown(folder):
    (folder / "eval_metrics.json").write_text(json.dumps({"code": {"l0": 7.5, "mse": None}}))
    lines = [dict(zip(TRAINING, row, strict=True)) for row in zip(*TRAINING.values(), strict=True)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[1:]))
    assert main(["report", str(folder), *SMALL]) == 0
    [own] = Page(folder / "report.html").data["dictionaries"]
    assert [(name, value) for name, value, _ in own["metrics"]] == [
        ("code/l0", 7.5),
        ("code/mse", None),
    ]
    assert own["training"]["points"][-1][0] == 900_000


def test_labelled_texts(folder, tmp_path):
    texts = list(make_text(20, 5)["text"])
    data = tmp_path / "data.jsonl"
    data.write_text(
        "".join(json.dumps({"text": t, "label": "ab"[i % 2]}) + "\n" for i, t in enumerate(texts))
    )
    assert main(["report", str(folder), "--data", str(data), "--n_code_tokens", "0"]) == 0
    content = Page(folder / "report.html").data
    assert content["classes"] == ["a", "b"]
    assert {label for _, _, label in content["sentences"]} == {"a", "b"}
    assert content["dictionaries"][0]["nTexts"] == len(content["sentences"]) == 20
    assert content["dictionaries"][0]["metrics"] == []


def test_saved_evidence_needs_no_model(folder, tmp_path, asked):
    make_evidence(40).save(tmp_path / "evidence.json")
    output = tmp_path / "new" / "out.html"
    argv = ["--evidence", str(tmp_path / "evidence.json"), "--output", str(output)]
    argv += ["--n_sentences", "0", "--n_code_tokens", "0"]
    assert main(["report", str(folder), *argv]) == 0
    assert asked == []
    assert not (folder / "report.html").exists()
    own = Page(output).data["dictionaries"][0]
    evidence = Evidence.load(tmp_path / "evidence.json")
    assert own["nFirings"] == [latent.n_firings for latent in evidence.latents]


def test_several_are_compared(folder, tmp_path, capsys):
    other = save(tmp_path / "other one", make_transcoder())
    output = tmp_path / "out" / "both.html"
    assert main(["report", str(folder), str(other), *SMALL, "--output", str(output)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    data = Page(output).data
    assert [d["name"] for d in data["dictionaries"]] == ["sae", "other one"]
    assert [d["link"] for d in data["dictionaries"]] == [
        "../sae/report.html",
        "../other%20one/report.html",
    ]
    assert all(Page(f / "report.html").data["kind"] == "report" for f in (folder, other))


def test_folders_of_one_name_go_by_their_paths(tmp_path):
    folders = [save(tmp_path / name / "sae") for name in "ab"]
    output = tmp_path / "both.html"
    argv = [*map(str, folders), *SMALL, "--output", str(output)]
    assert main(["report", *argv]) == 0
    assert [d["name"] for d in Page(output).data["dictionaries"]] == list(map(str, folders))


# Errors


def test_a_folder_without_an_sae(tmp_path, capsys):
    assert "is not the folder of a saved SAE" in refused(capsys, str(tmp_path))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--n_sentences", "-1"), "--n_sentences must be at least 0; got -1"),
        (("--n_code_tokens", "-1"), "--n_code_tokens must be at least 0; got -1"),
        (("--n_tokens", "0"), "n_tokens must be a whole number, 1 at least; got 0"),
        (("--evidence", "a", "b"), "one file a PATH; got 2 files for 1 PATHs"),
        (("--evidence", "nowhere.json"), "There is no file nowhere.json"),
        (("--data", "nowhere.jsonl"), "nowhere.jsonl"),
        (("--data", "x", "--dataset", "y"), "only one of them can be read"),
    ],
)
def test_arguments_at_fault(folder, capsys, asked, argv, message):
    assert message in refused(capsys, str(folder), *argv)
    assert asked == []


def test_an_output_that_is_a_folder(folder, capsys, asked):
    assert "has to be a file" in refused(capsys, str(folder), "--output", str(folder))
    assert asked == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no JSON"),
        ("[]", "must hold a JSON object; got list"),
        ("{}", "is no evidence of collect_evidence"),
    ],
)
def test_evidence_that_is_none(folder, tmp_path, capsys, content, message):
    path = tmp_path / "evidence.json"
    path.write_text(content)
    assert message in refused(capsys, str(folder), "--evidence", str(path))


def test_evidence_with_a_broken_latent(folder, tmp_path, capsys):
    values = make_evidence(40).to_dict()
    del values["latents"][3]["rate"]
    path = tmp_path / "evidence.json"
    path.write_text(json.dumps(values))
    assert "is no evidence of collect_evidence" in refused(
        capsys, str(folder), "--evidence", str(path)
    )


def test_evidence_of_another_sae(folder, tmp_path, capsys):
    make_evidence(12).save(tmp_path / "evidence.json")
    argv = (str(folder), "--evidence", str(tmp_path / "evidence.json"))
    assert "is evidence of 12 latents, and the SAE in" in refused(capsys, *argv)
