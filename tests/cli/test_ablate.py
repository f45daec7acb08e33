"""``bae-lens ablate PATH --data FILE`` on a tiny model, resolved from the saved metadata."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from sae_lens.constants import ACTIVATION_SCALER_CFG_FILENAME
from sae_lens.training.activation_scaler import ActivationScaler

from bae_lens import offline as demo
from bae_lens.checks.install_hint import install_command
from bae_lens.cli import main
from bae_lens.concept_ablation import (
    AblationSettings,
    ConceptAblationResult,
    ablation_verdict,
    run,
)
from tests.cli.helpers import resolve_to_tiny
from tests.helpers import (
    CONTEXT_SIZE,
    D_IN,
    HOOK,
    HOOK_OUT,
    make_bae,
    make_clvq,
    make_text,
    make_training_bae,
    save_bert,
)

KNOWN = {
    "model_name": "bae-lens/tiny",
    "model_class_name": "HookedTransformer",
    "dataset_path": "bae-lens/tiny-text",
    "hook_name": HOOK,
}
SMALL = ("--context_size", str(CONTEXT_SIZE), "--n_folds", "2", "--n_steps", "2")
SMALL += ("--n_ordinary", "2", "--n_reference", "20")


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    def text_of(name: str) -> Dataset | None:
        if not name.startswith("bae-lens/"):
            return None
        texts = make_text(30, 6)
        return texts.add_column("label", [i % 2 for i in range(30)])  # pyright: ignore[reportCallIssue]

    return resolve_to_tiny(monkeypatch, text_of)


def save(folder: Path, sae: Any = None, **metadata: Any) -> Path:
    sae = make_bae() if sae is None else sae
    for name, value in {**KNOWN, **metadata}.items():
        sae.cfg.metadata[name] = value
    sae.save_model(folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(tmp_path / "sae", make_clvq(d_out=D_IN), hook_name_out=HOOK_OUT)


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    """Texts that begin with the word which is their rationale."""
    texts = make_text(20, 5)["text"]
    return [
        {"text": f"word{i % 2} {text}", "label": "ab"[i % 2], "rationale": f"word{i % 2}"}
        for i, text in enumerate(texts)
    ]


@pytest.fixture
def data(tmp_path: Path, rows: list[dict[str, Any]]) -> str:
    return write(tmp_path / "data.jsonl", rows)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What reaches the measurement, which is not done."""
    seen: dict[str, Any] = {}

    def stop(model: Any, dictionary: Any, dataset: Any, settings: Any, **options: Any) -> None:
        seen.update(options, dictionary=dictionary, dataset=dataset, settings=settings)
        raise ValueError("stop")

    monkeypatch.setattr(run, "concept_ablation", stop)
    return seen


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The message of a command that fails by what it was given."""
    assert main(["ablate", *argv]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert "bae-lens: error: " in err
    return err


def test_the_table_is_printed_and_the_result_written(folder, data, asked, capsys):
    pytest.importorskip("concept_erasure")
    words = ("--label_words", "word3", "word4")

    assert main(["ablate", str(folder), "--data", data, *SMALL, *words]) == 0

    result = ConceptAblationResult.load(folder / "concept_ablation.json")
    assert asked == [("bae-lens/tiny", "HookedTransformer"), ("bae-lens/tiny-text", "train")]
    assert result.hook_names == (HOOK, HOOK_OUT)
    assert result.label_names == ("a", "b")
    assert {row.place for row in result.rows} == (
        {"lower vector", "upper vector", "salient token", "all tokens"}
    )
    assert {row.read_by for row in result.rows} == {"probe", "label words"}
    out = capsys.readouterr().out
    assert result.table() in out
    assert result.excess_table() in out
    assert result.settings["predicted_by"] == "label_words"
    written = json.loads((folder / "concept_ablation.json").read_text())
    verdict = ablation_verdict(result)
    assert written["verdict"] == verdict._asdict()
    assert out.endswith(
        f"\nWritten to {folder / 'concept_ablation.json'}\nPlot in {folder / 'concept_ablation.png'}\n\n{verdict}\n"
    )
    assert (folder / "concept_ablation.png").read_bytes().startswith(b"\x89PNG")
    summary = dict(line.split("  ", 1) for line in out.split("\n\n")[0].splitlines())
    summary = {name: value.strip() for name, value in summary.items()}
    assert list(summary) == [
        "dictionary",
        "hook points",
        "texts",
        "cut to the context",
        "predicted by",
        "probe",
        "salient words",
        "lie in the rationale",
        "any word would",
        "their concepts do",
        "readout attributed most",
        "missing of the attributions",
        "ordinary text",
    ]
    assert summary["dictionary"] == "clvq_vae"
    assert summary["hook points"] == f"{HOOK} → {HOOK_OUT}"
    assert summary["texts"] == "20: 10 of 'a', 10 of 'b'"
    assert summary["cut to the context"] == "0"
    assert summary["probe"] == "logistic, 2 folds"
    assert summary["salient words"].split(", ") == list(result.salient.words[:10])
    assert summary["any word would"] == "16.7%"
    assert summary["ordinary text"].endswith("nats per token")


def test_what_is_not_known_is_not_printed(folder, tmp_path, rows, capsys):
    pytest.importorskip("concept_erasure")
    data = write(tmp_path / "plain.jsonl", [row | {"rationale": None} for row in rows])
    output = tmp_path / "new" / "result.json"
    options = (
        *SMALL,
        "--salient",
        "readout",
        "--no-causal",
        "--output",
        str(output),
        "--plot",
        "none",
    )

    assert main(["ablate", str(folder), "--data", data, *options]) == 0

    out = capsys.readouterr().out
    assert "rationale" not in out
    assert "attribut" not in out
    assert "ordinary" not in out
    assert ConceptAblationResult.load(output).settings["salient"] == "readout"
    assert not (folder / "concept_ablation.json").exists()
    assert list(output.parent.iterdir()) == [output]


def test_a_classifier_predicts_by_its_head(tmp_path, data, capsys, monkeypatch):
    pytest.importorskip("concept_erasure")
    monkeypatch.setattr(demo, "load_model", lambda *_, **__: None)
    hooks = {"hook_name": "blocks.0.hook_out", "hook_name_out": "blocks.1.hook_out"}
    folder = save(tmp_path / "sae", make_clvq(d_out=D_IN), **hooks)
    bert = str(save_bert(tmp_path / "bert", id2label={0: "b", 1: "a"}))
    model = ("--model", bert, "--model_class_name", "TransformerBridge")

    assert main(["ablate", str(folder), "--data", data, *SMALL, *model]) == 0

    result = ConceptAblationResult.load(folder / "concept_ablation.json")
    assert result.settings["predicted_by"] == "head"
    assert {row.read_by for row in result.rows} == {"probe", "head"}
    out = capsys.readouterr().out
    accuracy = result.row("all tokens", "none", read_by="head").accuracy
    assert f"head, rightly of {accuracy:.1%}" in out
    # Random weights know nothing of the texts.
    assert "not told from chance: without signal" in out
    assert "**Without signal**" in out
    other = str(save_bert(tmp_path / "other", id2label={0: "a", 1: "c"}))
    err = refused(capsys, str(folder), "--data", data, *SMALL, "--model", other, *model[2:])
    assert "labels that it does not know: 'b'" in err


# Options


def test_without_options_the_settings_are_their_own_defaults(folder, data, seen):
    with pytest.raises(ValueError, match="stop"):
        main(["ablate", str(folder), "--data", data])

    assert seen["settings"] == AblationSettings()
    assert seen["settings"].max_examples == 200
    assert seen["hook_name_out"] is None
    assert seen["reference_texts"] == make_text(30, 6)["text"]
    assert seen["dataset"].label_names == ["a", "b"]


def test_all_texts_may_be_asked_for(folder, data, seen, capsys):
    with pytest.raises(ValueError, match="stop"):
        main(["ablate", str(folder), "--data", data, "--max_examples", "all"])

    assert seen["settings"].max_examples is None
    with pytest.raises(SystemExit):
        main(["ablate", str(folder), "--data", data, "--max_examples", "none"])
    assert "must be a whole number or all; got 'none'" in capsys.readouterr().err


def test_options_arrive_in_the_settings(folder, data, seen):
    options = {
        "protocol": "released",
        "readout": "last",
        "template": "Review: {text}\\nSentiment:",
        "label_words": (" bad", " good"),
        "predicted_by": "probe",
        "context_size": 12,
        "max_examples": 7,
        "salient": "gradient_x_activation",
        "n_steps": 3,
        "rank": 2,
        "vectors": "encoder",
        "probe": "logistic",
        "n_folds": 4,
        "n_ordinary": 5,
        "batch_size": 6,
        "seed": 8,
    }
    argv = ["ablate", str(folder), "--data", data, "--causal", "--hook_name_out", HOOK]
    for name, value in options.items():
        argv += [f"--{name}", *(map(str, value) if isinstance(value, tuple) else [str(value)])]

    with pytest.raises(ValueError, match="stop"):
        main(argv)

    expected = {
        **options,
        "template": "Review: {text}\nSentiment:",
        "label_words": [" bad", " good"],
        "causal": True,
    }
    assert seen["settings"] == AblationSettings(**expected)
    assert seen["hook_name_out"] == HOOK


def test_data_may_have_other_columns_or_be_a_dataset(folder, tmp_path, rows, seen, asked):
    renamed = [{"body": row["text"], "y": row["label"]} for row in rows]
    data = write(tmp_path / "renamed.jsonl", renamed)
    columns = ("--text_column", "body", "--label_column", "y")
    for argv in (["--data", data, *columns], ["--data", "bae-lens/reviews", "--split", "train"]):
        with pytest.raises(ValueError, match="stop"):
            main(["ablate", str(folder), *argv])

        assert len(seen["dataset"]) == (20 if columns[1] in argv else 30)
    assert ("bae-lens/reviews", "train") in asked


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--reference_data", "{file}"), 20),
        (("--reference_data", "{file}", "--n_reference", "3"), 3),
        (("--reference_data", "bae-lens/other"), 30),
        (("--n_reference", "7"), 7),
        (("--n_reference", "0"), None),
    ],
)
def test_reference_texts(folder, data, seen, options, expected):
    with pytest.raises(ValueError, match="stop"):
        main(["ablate", str(folder), "--data", data, *(o.format(file=data) for o in options)])

    texts = seen["reference_texts"]
    assert (texts if texts is None else len(texts)) == expected


@pytest.mark.parametrize("dataset_path", [None, "monology/pile-uncopyrighted"])
def test_there_are_no_reference_texts_where_the_text_is_not_ours(
    tmp_path, data, seen, dataset_path
):
    folder = save(tmp_path / "sae", dataset_path=dataset_path)

    with pytest.raises(ValueError, match="stop"):
        main(["ablate", str(folder), "--data", data])

    assert seen["reference_texts"] is None


def test_the_scale_of_a_checkpoint_is_folded_in(tmp_path, data, seen):
    sae = make_training_bae(normalize_activations="expected_average_only_in")
    folder = save(tmp_path / "checkpoint", sae)
    ActivationScaler(0.5).save(str(folder / ACTIVATION_SCALER_CFG_FILENAME))
    sae.fold_activation_norm_scaling_factor(0.5)

    with pytest.raises(ValueError, match="stop"):
        main(["ablate", str(folder), "--data", data])

    assert torch.equal(seen["dictionary"].W_enc, sae.W_enc)


# Errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--data", "gone.jsonl"), "There is no file gone.jsonl"),
        (("--label_column", "class"), "There is no column 'class'"),
        (("--template", "Review:"), "{text} has to stand in the template once"),
        (("--label_words", "word1"), "label_words must be one per class, in the order a, b"),
        (("--label_words", "word1", "word1"), "begin with the same token"),
        (("--predicted_by", "head"), "HookedSAETransformer is no classifier: it has no head"),
        (("--predicted_by", "label_words"), "there are none: give label_words"),
        (
            ("--predicted_by", "head", "--label_words", "word3", "word4"),
            "leave one of the two out",
        ),
        (("--n_folds", "11"), "Each of 11 folds needs a text of every class"),
        (("--n_folds", "1"), "n_folds must be a whole number of at least 2 or None; got 1"),
        (("--n_reference", "-1"), "--n_reference must be a whole number of at least 0; got -1"),
        (("--context_size", "99"), "more than the model's 32"),
        (("--hook_name_out", "blocks.1.hook_resid_pst"), "no hook point 'blocks.1.hook_resid_pst'"),
        (("--reference_data", "gone.csv"), "There is no file gone.csv"),
    ],
)
def test_what_is_wrong_is_a_message_and_no_traceback(folder, data, capsys, options, message):
    assert message in refused(capsys, str(folder), "--data", data, *SMALL, *options)
    assert not list(folder.glob("concept_ablation*"))


def test_a_folder_without_an_sae_is_refused_and_not_made(tmp_path, data, capsys, asked):
    nowhere = tmp_path / "nowhere"

    for path in (nowhere, tmp_path):
        assert "there is no cfg.json in it" in refused(capsys, str(path), "--data", data)
    assert not nowhere.exists()
    assert asked == []


def test_a_width_that_is_not_the_hooks_is_refused(tmp_path, data, capsys):
    folder = save(tmp_path / "sae", hook_name="blocks.0.mlp.hook_post")

    assert f"have width {2 * D_IN}" in refused(capsys, str(folder), "--data", data)


def test_an_output_that_cannot_be_written_is_refused_before_anything_is_loaded(
    folder, data, capsys, asked
):
    for output in (folder, Path(data) / "result.json"):
        argv = (str(folder), "--data", data, "--output", str(output))
        assert f"--output {output}" in refused(capsys, *argv)
    assert asked == []


def test_without_concept_erasure_the_error_is_the_command(folder, data, capsys, monkeypatch, asked):
    monkeypatch.setitem(sys.modules, "concept_erasure", None)

    error = refused(capsys, str(folder), "--data", data)

    assert f"    {install_command('interp')}" in error
    assert asked == []


def test_data_is_required(folder, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["ablate", str(folder)])

    assert stopped.value.code == 2
    assert "--data" in capsys.readouterr().err
