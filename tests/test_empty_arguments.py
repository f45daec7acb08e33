"""An empty or falsy argument is no absent one: it means what it says, or is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from bae_lens import attached, load_config
from bae_lens.activations.held_out import held_out_store
from bae_lens.activations.sentence_store import SentenceStore
from bae_lens.activations.special_tokens import special_token_ids
from bae_lens.cli import main
from bae_lens.concept_ablation.passes import check_hooks
from bae_lens.concept_ablation.run import probed_hooks
from bae_lens.evals import run_evals
from bae_lens.examples.collect import collect_examples
from bae_lens.examples.records import ExampleSettings
from bae_lens.report import write_report
from bae_lens.training.config_file import build_config
from bae_lens.training.runner import TrainingRunner
from tests.helpers import (
    BATCH,
    HOOK,
    between,
    make_bae,
    make_model,
    make_rows,
    make_text,
    make_tokens,
    make_training_clvq,
    runner_cfg,
)


@pytest.fixture(scope="module")
def model() -> Any:
    return make_model()


@pytest.fixture
def sae() -> Any:
    return between(make_bae(), HOOK, None)


# Special tokens


@pytest.mark.parametrize(
    ("exclude", "expected"),
    [
        ([], []),
        ((), []),
        (None, []),
        (False, []),
        (np.bool_(False), []),
        ([0], [0]),
        (np.array([0]), [0]),
        (torch.tensor([0]), [0]),
        (torch.tensor([0, 7]), [0, 7]),
        (np.array([], dtype=int), []),
        (range(2), [0, 1]),
        ((np.int64(3), torch.tensor(0)), [3, 0]),
        (np.bool_(True), [0, 1, 2]),
    ],
)
def test_token_ids(model, exclude: Any, expected):
    assert sorted(special_token_ids(model, exclude)) == sorted(expected)


@pytest.mark.parametrize("exclude", [0, 1, 7, "", "<bos>", ["<bos>"], [True], [-1], [0.0], [None]])
def test_what_is_no_token_id(model, exclude: Any):
    with pytest.raises(ValueError, match="exclude_special_tokens must be True, False or token ids"):
        special_token_ids(model, exclude)


@torch.no_grad()
def test_bos_by_its_id_which_is_zero(model, sae):
    tokens = make_tokens(2, 6)
    with attached(model, sae, exclude_special_tokens=[0]):
        expected = model(tokens)
    for exclude in (np.array([0]), torch.tensor([0])):
        with attached(model, sae, exclude_special_tokens=exclude):  # pyright: ignore
            assert torch.equal(model(tokens), expected)
    with attached(model, sae, exclude_special_tokens=[]):
        assert not torch.allclose(model(tokens), expected)


# Text


@pytest.mark.parametrize("data", [[], "", {}, Dataset.from_dict({"text": []})])
def test_no_text_is_not_the_text_in_the_metadata(model, sae, data):
    sae.cfg.metadata.dataset_path = "bae-lens/movie-reviews"
    with pytest.raises(ValueError, match="The dataset has no text"):
        held_out_store(sae, model, data)


@pytest.mark.parametrize("source", ["", Dataset.from_dict({"text": []})])
def test_there_is_no_evidence_of_no_text(model, sae, source):
    sae.cfg.metadata.dataset_path = "bae-lens/movie-reviews"
    with pytest.raises(ValueError, match="no text"):
        collect_examples(model, sae, source)


def test_there_is_no_evidence_of_an_empty_list_of_texts(model, sae):
    with pytest.raises(ValueError, match="the text is empty"):
        collect_examples(model, sae, [])


def test_no_labels_are_not_labels_of_none(model, sae):
    with pytest.raises(ValueError, match="got 0 labels for 1 texts"):
        collect_examples(model, sae, ["word1 word2"], labels=[])


def test_a_batch_of_no_text(model, sae):
    with pytest.raises(ValueError, match="store_batch_size_prompts must be"):
        held_out_store(sae, model, make_text(), store_batch_size_prompts=0)


@pytest.mark.parametrize("sizes", [(0, 4), (None, 0)])
def test_a_batch_of_no_sentence(model, sizes):
    n, usual = sizes

    def read() -> Any:
        store = SentenceStore(
            model, make_text(), [HOOK], context_size=16, store_batch_size_prompts=usual
        )
        return store.get_batch(n)

    with pytest.raises(ValueError, match=r"batch_size(_prompts)? must be"):
        read()


# Numbers


def test_no_code_tokens_are_no_group(model, sae):
    store = held_out_store(sae, model, make_text())
    assert "code" not in run_evals(sae, store, model, model_kwargs={}, n_code_tokens=0)[0]


def test_a_batch_of_no_tokens():
    with pytest.raises(ValueError, match="batch_size must be"):
        make_training_clvq().calibrate(make_rows(), 0)


@pytest.mark.parametrize("n", [0, False])
def test_nothing_to_replay_is_not_no_replay(model, tmp_path, n):
    with pytest.raises(ValueError, match="replay_tokens"):
        TrainingRunner(
            runner_cfg(tmp_path),
            override_model=model,
            override_dataset=make_text(),
            replay_tokens=n,
        )


# Names and paths


@pytest.mark.parametrize("name", ["output_path", "resume_from_checkpoint", "from_pretrained_path"])
def test_an_empty_path_is_not_the_working_directory(model, tmp_path, name):
    empty: dict[str, Any] = {name: ""}
    cfg = runner_cfg(tmp_path, **empty)
    with pytest.raises(ValueError, match=f"{name} must be a path or None"):
        TrainingRunner(cfg, override_model=model, override_dataset=make_text())


@pytest.mark.parametrize("name", ["output_path", "checkpoint_path", "replay_path"])
def test_an_empty_path_in_a_file(name):
    content = {"model_name": "a", "dataset_path": "b", "hook_name": "c", name: ""}
    sae = {"architecture": "bae", "d_in": 4, "d_sae": 8}
    with pytest.raises(ValueError, match=f"{name} must be a path or null"):
        build_config(content | {"sae": sae})


def test_an_empty_folder_to_replay_from(model, tmp_path):
    with pytest.raises(ValueError, match="replay_path must be a folder"):
        TrainingRunner(
            runner_cfg(tmp_path),
            override_model=model,
            override_dataset=make_text(),
            replay_tokens=4 * BATCH,
            replay_path="",
        )


@pytest.mark.parametrize("name", ["output_path", "replay_tokens", "dataset_path", "sae.d_sae"])
def test_an_empty_override_is_not_none(name):
    for empty in ("", " "):
        with pytest.raises(ValueError, match=f"{name} is empty"):
            load_config("smollm2-bae", {name: empty})
    assert load_config("smollm2-bae", {"output_path": "null"}).runner.output_path is None


def test_an_empty_hook_point_is_none_of_the_models(model, sae):
    # What concept_ablation does first.
    hooks = probed_hooks(model, sae, "")
    with pytest.raises(ValueError, match="no hook point ''"):
        check_hooks(model, hooks)


def test_an_empty_title_is_one(model, sae, tmp_path):
    settings = ExampleSettings(n_tokens=20, n_neighbors=0)
    records = collect_examples(model, sae, ["word1 word2 word3"] * 8, settings)
    for title in ("", None):
        write_report(tmp_path / "report.html", records, title=title)
        html = (tmp_path / "report.html").read_text()
        assert (f"bae at {HOOK}" in html) == (title is None)


@pytest.mark.parametrize(
    ("argv", "name"),
    [
        (["eval", ""], "path"),
        (["eval", ".", "--output", ""], "--output"),
        (["eval", ".", "--dataset", ""], "--dataset"),
        (["report", "a", ""], "PATH"),
        (["report", "a", "--output="], "--output"),
        (["report", "a", "--lemmas", ""], "--lemmas"),
        (["ablate", "a", "--data", ""], "--data"),
        (["ablate", "a", "--data", "b", "--hook_name_out", ""], "--hook_name_out"),
        (["ablate", "a", "--data", "b", "--reference_data", ""], "--reference_data"),
        (["finetune", "", "--output", "b"], "DATA"),
        (["finetune", "a", "--output", ""], "--output"),
        (["finetune", "a", "--output", "b", "--model", ""], "--model"),
        (["quiz", "a", "--data", "b", "--reference", "", "--output", "c"], "--reference"),
        (["score-quiz", "a", "--key", ""], "--key"),
        (["score-quiz", "a", "--key", "b", "--output", ""], "--output"),
    ],
)
def test_an_empty_option_is_not_left_out(argv, name, capsys, monkeypatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    assert f"bae-lens: error: {name} is empty. Give it a value" in capsys.readouterr().err
