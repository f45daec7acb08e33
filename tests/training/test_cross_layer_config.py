"""Runs of two hook points: what is refused, under which names, and the config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from sae_lens import SAE, TopKTrainingSAEConfig
from sae_lens.training.activations_store import ActivationsStore

from bae_lens import (
    CrossLayerRunnerConfig,
    CrossLayerTrainingRunner,
    TrainingRunner,
)
from bae_lens import offline as demo
from bae_lens.activations.sentence_store import SentenceStore
from bae_lens.offline import movie_reviews, smollm2
from bae_lens.training import load_config
from bae_lens.training.cross_layer_runner import is_cross_layer
from tests.helpers import (
    BATCH,
    CONTEXT_SIZE,
    D_IN,
    D_SAE,
    HOOK,
    HOOK_OUT,
    make_model,
    make_text,
    runner_cfg,
    training_cfg,
)
from tests.training.cross_layer_runs import KINDS, MLP, REPLAY, make_cfg, make_runner, sae_cfg

# What is refused, before any text is read or anything written


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Build a runner in ``tmp_path`` that must be refused; gives the message."""

    def read_text(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the activations store was built")

    monkeypatch.setattr(ActivationsStore, "from_config_multi_hook", read_text)
    monkeypatch.setattr(SentenceStore, "__init__", read_text)

    def build(error: type[Exception] = ValueError, **kwargs: Any) -> str:
        with pytest.raises(error) as caught:
            make_runner(tmp_path, **kwargs)
        assert list(tmp_path.iterdir()) == []
        return str(caught.value)

    return build


@pytest.mark.parametrize("field", ["hook_name", "hook_name_out"])
@pytest.mark.parametrize("text_unit", ["context", "sentence"])
def test_a_hook_that_the_model_lacks(refused: Any, field: str, text_unit: str):
    message = refused(**{field: "blocks.0.hook_resid_pots"}, text_unit=text_unit)
    assert "no hook 'blocks.0.hook_resid_pots'. Did you mean blocks.0.hook_resid_post" in message


@pytest.mark.parametrize(
    ("field", "hook_field"), [("d_in", "hook_name"), ("d_out", "hook_name_out")]
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_width_that_is_not_the_hooks(refused: Any, kind: str, field: str, hook_field: str):
    message = refused(**{"kind": kind, hook_field: MLP})
    assert f"sae.{field} is {D_IN}, but the activations at '{MLP}' have width {2 * D_IN}" in message
    assert f"Set sae.{field} to {2 * D_IN}" in message


@pytest.mark.parametrize("field", ["hook_name", "hook_name_out"])
def test_a_hook_with_heads(refused: Any, field: str):
    message = refused(**{field: "blocks.0.attn.hook_z"})
    assert "'blocks.0.attn.hook_z' has 2 heads; hook a point without heads" in message


def test_a_hook_that_does_not_fire(refused: Any):
    assert "does not fire" in refused(hook_name_out="blocks.0.attn.hook_result")


def test_what_every_run_is_refused_for(refused: Any):
    assert f"is {BATCH}, but the buffer holds only 48" in refused(n_batches_in_buffer=3)
    assert "less than one batch" in refused(replay_tokens=BATCH - 1)
    assert "prefetch" in refused(replay_tokens=REPLAY, prefetch_llm_batches=True)
    message = refused(FileNotFoundError, resume_from_checkpoint="checkpoints/none")
    assert "'checkpoints/none', which lacks" in message


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hook_name_out": HOOK}, f"hook_name_out is '{HOOK_OUT}' there and '{HOOK}' here"),
        ({"text_unit": "sentence"}, "text_unit is 'context' there and 'sentence' here"),
        ({"kind": "transformer"}, "sequence_length is None there and 16 here"),
        ({"replay_tokens": BATCH}, f"replay_tokens is {REPLAY} there and {BATCH} here"),
    ],
)
def test_a_folder_of_other_activations(tmp_path: Path, fields: dict[str, Any], message: str):
    path = tmp_path / "kept"
    make_runner(tmp_path, replay_tokens=REPLAY, replay_path=path).run()
    with pytest.raises(ValueError, match=f"this run asks for: {message}. Name another folder"):
        make_runner(tmp_path, **{"replay_tokens": REPLAY, "replay_path": path, **fields})


def test_a_folder_of_activations_of_one_hook_point(tmp_path: Path):
    cfg, path = runner_cfg(tmp_path), tmp_path / "kept"
    replay: Any = {"replay_tokens": REPLAY, "replay_path": path}
    TrainingRunner(cfg, make_text(), make_model(), **replay).run()
    message = f"hook_name_out is None there and '{HOOK_OUT}' here; text_unit is None there"
    with pytest.raises(ValueError, match=message):
        make_runner(tmp_path, replay_tokens=REPLAY, replay_path=path)


def test_a_batch_that_is_not_whole_sequences(tmp_path: Path):
    with pytest.raises(ValueError, match=r"whole sequences of 16 tokens; got a batch size of 40"):
        make_runner(tmp_path, "transformer", train_batch_size_tokens=40)
    make_runner(tmp_path, "token", train_batch_size_tokens=40)


def test_a_model_without_a_tokenizer_reads_no_sentences(tmp_path: Path):
    model = make_model()
    model.tokenizer = None
    cfg = make_cfg(tmp_path, text_unit="sentence", exclude_special_tokens=[0])
    with pytest.raises(ValueError, match="no tokenizer"):
        CrossLayerTrainingRunner(cfg, make_text(), model)


# Names


def test_our_names_are_resolved_and_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(smollm2, "load_hooked", lambda device: make_model())
    monkeypatch.setattr(movie_reviews, "load_movie_reviews", lambda split: make_text())
    names = {"model_name": demo.MODEL_NAME, "dataset_path": demo.DATASET_NAME}
    for unit in ("context", "sentence"):
        folder = tmp_path / unit
        CrossLayerTrainingRunner(make_cfg(folder, text_unit=unit, **names)).run()
        metadata = SAE.load_from_disk(folder / "output").cfg.metadata
        assert metadata.model_name == demo.MODEL_NAME
        assert metadata.dataset_path == demo.DATASET_NAME


def test_other_names_go_to_saelens_with_both_hooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []

    def load_model(*args: Any, **kwargs: Any) -> Any:
        asked.append((*args, kwargs["hook_names"]))
        return make_model()

    monkeypatch.setattr("bae_lens.loading.language_models.sae_lens_load_model", load_model)
    CrossLayerTrainingRunner(make_cfg(tmp_path, model_name="gpt2"), make_text())
    CrossLayerTrainingRunner(make_cfg(tmp_path, model_name="gpt2", hook_name_out=HOOK), make_text())
    assert asked == [
        ("HookedTransformer", "gpt2", [HOOK, HOOK_OUT]),
        ("HookedTransformer", "gpt2", [HOOK]),
    ]


def test_a_dataset_of_sentences_is_loaded_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked = []

    def load_dataset(path: str, **kwargs: Any) -> Dataset:
        asked.append((path, kwargs))
        return make_text()

    monkeypatch.setattr("bae_lens.loading.hub.hf_load_dataset", load_dataset)
    cfg = make_cfg(tmp_path, text_unit="sentence", dataset_path="some/texts", streaming=False)
    CrossLayerTrainingRunner(cfg, None, make_model()).run()
    assert asked == [("some/texts", {"split": "train", "streaming": False})]


# The config


def test_which_architectures_have_two_hook_points():
    assert all(is_cross_layer(name) for name in ("clvq_vae", "topk_transcoder"))
    assert not any(is_cross_layer(name) for name in ("bae", "topk", "standard", "batchtopk"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hook_head_index": 0}, "hook_head_index is not supported with two hook points; got 0"),
        ({"use_cached_activations": True}, "use_cached_activations is not supported"),
        ({"text_unit": "page"}, "text_unit must be one of context, sentence; got 'page'"),
        (
            {"text_unit": "sentence", "seqpos_slice": (1, None)},
            r"seqpos_slice is not supported with text_unit='sentence'.*exclude_special_tokens",
        ),
        (
            {"initialization_tokens": 1},
            "initialization_tokens must be a whole number of at least 2; got 1",
        ),
        ({"context_size": -1}, "context_size is -1 is negative"),
    ],
)
def test_a_field_without_a_meaning_here_is_refused(
    tmp_path: Path, fields: dict[str, Any], message: str
):
    with pytest.raises(ValueError, match=message):
        make_cfg(tmp_path, **fields)


@pytest.mark.parametrize("kind", KINDS)
def test_activations_are_not_scaled_twice(tmp_path: Path, kind: str):
    # The trainer would scale what it trains on, and not what the units are set from.
    sae = sae_cfg(kind, normalize_activations="expected_average_only_in")
    with pytest.raises(ValueError, match=r"normalize_activations to 'none'; got 'expected_average"):
        make_cfg(tmp_path, sae=sae)


@pytest.mark.parametrize("sae", [TopKTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE), training_cfg()])
def test_an_architecture_of_one_hook_point_is_refused(tmp_path: Path, sae: Any):
    name = sae.architecture()
    message = rf"A '{name}' reconstructs its own input.*are clvq_vae, topk_transcoder"
    with pytest.raises(ValueError, match=message):
        CrossLayerRunnerConfig(sae=sae, checkpoint_path=None, verbose=False)


@pytest.mark.parametrize(
    ("kind", "fields", "length"),
    [
        ("transformer", {}, CONTEXT_SIZE),
        ("transformer", {"seqpos_slice": (1, None)}, CONTEXT_SIZE - 1),
        ("transformer", {"seqpos_slice": (2, -4)}, CONTEXT_SIZE - 6),
        ("transformer", {"text_unit": "sentence", "context_size": 9}, 9),
        ("token", {}, None),
        ("topk", {}, None),
    ],
)
def test_only_the_transformer_decoder_is_given_sequences(
    tmp_path: Path, kind: str, fields: dict[str, Any], length: int | None
):
    cfg = make_cfg(tmp_path, kind, **fields)
    assert cfg.sequence_length == length
    assert getattr(cfg.sae, "sequence_length", None) == length


def test_the_higher_hook_point_is_the_lower_one_unless_named(tmp_path: Path):
    assert make_cfg(tmp_path, hook_name_out="").hook_name_out == HOOK
    assert make_cfg(tmp_path).hook_name_out == HOOK_OUT
    assert (
        CrossLayerRunnerConfig(sae=sae_cfg("token"), verbose=False, hook_name="x").hook_name_out
        == "x"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_config_comes_back_from_its_dict(tmp_path: Path, kind: str):
    cfg = make_cfg(tmp_path, kind, text_unit="sentence", initialization_tokens=77)
    again = CrossLayerRunnerConfig.from_dict(cfg.to_dict())
    assert again.to_dict() == cfg.to_dict()
    assert type(again) is CrossLayerRunnerConfig


def test_what_a_run_writes_is_a_config_that_can_be_run(tmp_path: Path):
    make_runner(tmp_path, "transformer", initialization_tokens=99).run()
    path = tmp_path / "output" / "runner_cfg.json"
    runner = load_config(path).runner
    assert isinstance(runner, CrossLayerRunnerConfig)
    assert (runner.hook_name_out, runner.initialization_tokens) == (HOOK_OUT, 99)
    assert runner.sae.sequence_length == CONTEXT_SIZE
