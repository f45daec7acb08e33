"""``bae-lens quiz PATH … --data FILE --reference FILE`` on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertForSequenceClassification

from bae_lens import offline as demo
from bae_lens.cli import main, quiz
from bae_lens.files.json_file import write_json
from bae_lens.quiz.questions import QuizKey
from bae_lens.scoring.recoverability import RecoverabilityTask
from bae_lens.scoring.recoverability_result import Recoverability
from tests.cli.helpers import resolve_to_tiny
from tests.helpers import (
    CONTEXT_SIZE,
    D_IN,
    HOOK,
    HOOK_OUT,
    make_bae,
    make_bert_tokenizer,
    make_clvq,
    make_text,
    save_bert,
)
from tests.quiz.quizzes import answered
from tests.report.helpers import Page

KNOWN = {
    "model_name": "bae-lens/tiny",
    "model_class_name": "HookedTransformer",
    "dataset_path": "bae-lens/tiny-text",
    "hook_name": HOOK,
}
SMALL = ("--context_size", str(CONTEXT_SIZE), "--n_folds", "2", "--n_steps", "2")
SMALL += ("--n_texts", "6", "--n_controls", "2", "--n_words", "4", "--n_contexts", "2")


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_to_tiny(monkeypatch)


def save(folder: Path, sae: Any, **metadata: Any) -> str:
    for name, value in {**KNOWN, **metadata}.items():
        sae.cfg.metadata[name] = value
    sae.save_model(folder)
    return str(folder)


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    return [
        save(tmp_path / "first_codes", make_clvq(d_out=D_IN), hook_name_out=HOOK_OUT),
        save(tmp_path / "second_bits", make_bae()),
    ]


def write(path: Path, texts: list[str]) -> str:
    """The class of a text is its first word."""
    rows = [{"text": f"word{i % 2} {t}", "label": i % 2} for i, t in enumerate(texts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Labeled texts, and others."""
    data = write(tmp_path / "data.jsonl", list(make_text(30, 5)["text"]))
    others = write(tmp_path / "others.jsonl", list(make_text(70, 7)["text"])[30:])
    return ["--data", data, "--reference", others]


def balanced(folder: Path, texts: list[str]) -> Path:
    """The classifier, made to predict either class of half of the texts."""
    model: Any = BertForSequenceClassification.from_pretrained(folder)
    tokens = make_bert_tokenizer()(
        [f"word{i % 2} {t}" for i, t in enumerate(texts)], return_tensors="pt"
    )
    with torch.no_grad():
        logits = model.eval()(**tokens).logits
        model.classifier.bias[1] -= (logits[:, 1] - logits[:, 0]).median()
    model.save_pretrained(folder)
    return folder


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The message of a command that fails by what it was given."""
    assert main(["quiz", *argv]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert "bae-lens: error: " in err
    return err


def test_a_quiz_of_two_dictionaries_is_written_and_scored(paths, files, tmp_path, capsys):
    pytest.importorskip("concept_erasure")
    output = tmp_path / "new" / "quiz.html"
    argv = [*paths, *files, *SMALL, "--output", str(output), "--class_names", "grumpy", "happy"]

    assert main(["quiz", *argv]) == 0

    out = capsys.readouterr().out
    recoverabilities = [Recoverability.load(Path(path) / "recoverability.json") for path in paths]
    assert [own.dictionary for own in recoverabilities] == ["first_codes", "second_bits"]
    for own in recoverabilities:
        assert own.table() in out
        assert own.hook_names == (HOOK, HOOK_OUT)
        assert own.settings.n_words == 4
    key = QuizKey.load(output.with_name("quiz.key.json"))
    assert key.dictionaries == ("first_codes", "second_bits")
    assert key.class_names == ("grumpy", "happy")
    assert (key.settings.n_texts, key.settings.n_controls) == (6, 2)
    assert f"{key.n_questions} questions about 6 texts." in out
    for item in key.items:
        own = recoverabilities[item.dictionary]
        assert item.predicted == own.predictions[item.text]
        assert item.is_control == (item.latent != own.concepts[item.text])
    data = Page(output).data
    assert data["classes"] == ["grumpy", "happy"]
    assert all(len(words) <= 4 and len(contexts) <= 2 for words, contexts in data["questions"])

    write_json(tmp_path / "answers.json", answered(key, lambda _: 1).to_dict())
    command = out.splitlines()[-1].split()
    assert command[:2] == ["bae-lens", "score-quiz"]
    command[2] = str(tmp_path / "answers.json")
    assert main(command[1:]) == 0
    assert "| first_codes | anna | 0.500" in capsys.readouterr().out


def test_a_classifiers_own_prediction_is_asked_for(files, tmp_path, capsys, monkeypatch):
    pytest.importorskip("concept_erasure")
    monkeypatch.setattr(demo, "load_model", lambda *_, **__: None)
    # Where a probe would read is another place for each; the head predicts the same for both.
    read = {"hook_name": "blocks.0.hook_out"}
    folders = [
        save(tmp_path / "codes", make_clvq(d_out=D_IN), hook_name_out="blocks.1.hook_in", **read),
        save(tmp_path / "bits", make_bae(), **read),
    ]
    bert = str(balanced(save_bert(tmp_path / "bert"), list(make_text(70, 7)["text"])[30:]))
    output = tmp_path / "quiz.html"
    argv = [*folders, *files, *SMALL, "--output", str(output), "--model", bert]
    argv += ["--model_class_name", "TransformerBridge", "--class_names", "grumpy", "happy"]

    assert main(["quiz", *argv]) == 0

    assert "What the classifier's head predicts of 30 texts" in capsys.readouterr().out
    one, other = (Recoverability.load(Path(path) / "recoverability.json") for path in folders)
    assert one.predicted_by == other.predicted_by == "head"
    assert one.predictions == other.predictions
    assert one.class_names == ("grumpy", "happy")
    key = QuizKey.load(output.with_name("quiz.key.json"))
    assert all(item.predicted == one.predictions[item.text] for item in key.items)
    argv += ["--predicted_by", "probe"]
    assert "it would read at 'blocks.1.hook_in', 'blocks.1.hook_out'" in refused(capsys, *argv)


def test_probes_at_different_hook_points_are_refused_before_texts_are_read(
    paths, files, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(RecoverabilityTask, "prepare", None)
    monkeypatch.chdir(tmp_path)
    other = save(tmp_path / "other", make_clvq(d_out=D_IN), hook_name_out="blocks.0.hook_mlp_out")
    err = refused(capsys, paths[0], other, *files)
    assert f"it would read at 'blocks.0.hook_mlp_out', '{HOOK_OUT}'" in err
    assert "--hook_name_out" in err


def test_what_cannot_be_asked_is_refused_before_anything_is_read(
    paths, files, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(quiz, "load_saved", None)
    monkeypatch.chdir(tmp_path)
    assert "cfg.json" in refused(capsys, str(tmp_path / "none"), *files)
    other = save(tmp_path / "other", make_bae(), model_name="another")
    assert "one model; the SAEs are of 'another', 'bae-lens/tiny'" in refused(
        capsys, paths[0], other, *files
    )
    for options, message in (
        (("--n_texts", "0"), "n_texts must be a whole number of at least 1"),
        (("--n_controls", "20"), "n_controls is 20, of n_texts = 12 texts"),
        (("--n_words", "0"), "n_words"),
        (("--context_size", "0"), "context_size"),
        (("--n_reference", "0"), "--n_reference must be a whole number of at least 1"),
        (("--class_names", "a", "b", "c"), "labels 0, 1 differently; got a, b, c"),
        (("--class_names", "a", "a"), "differently; got a, a"),
        (("--output", str(tmp_path)), "a file is to be written there"),
    ):
        assert message in refused(capsys, paths[0], *files, *options)
    assert "none.jsonl" in refused(capsys, paths[0], *files[:3], str(tmp_path / "none.jsonl"))
    assert not list(tmp_path.glob("quiz*"))
