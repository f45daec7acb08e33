from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import yaml
from sae_lens import (
    LanguageModelSAERunnerConfig,
    LoggingConfig,
    TopKTrainingSAEConfig,
)
from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY
from sae_lens.synthetic import (
    ConstantFiringProbabilityConfig,
    SyntheticModelConfig,
    SyntheticSAERunnerConfig,
)

from bae_lens import (
    CrossLayerRunnerConfig,
    TrainingBAEConfig,
    TrainingCLVQVAEConfig,
    TrainingTopKTranscoderConfig,
)
from bae_lens.training.config_file import RunConfig, build_config, list_configs, load_config
from tests.helpers import runner_cfg

CONTENT: dict[str, Any] = {
    "model_name": "tiny",
    "hook_name": "blocks.0.hook_resid_post",
    "dataset_path": "tiny-text",
    "lr": 0.001,
    "checkpoint_path": None,
    "verbose": False,
    "sae": {"architecture": "bae", "d_in": 16, "d_sae": 40, "temperature": 0.5},
    "logger": {"log_to_wandb": False},
}
SYNTHETIC: dict[str, Any] = {
    "synthetic_model": {"num_features": 8, "hidden_dim": 4},
    "sae": {"architecture": "topk", "d_in": 4, "d_sae": 8, "k": 2},
    "logger": {"log_to_wandb": False},
}


CROSS_LAYER = ["smollm2-clvq-vae", "minilm-clvq-vae", "minilm-clvq-vae-predictive"]


def build(
    overrides: dict[str, Any] | None = None, content: dict[str, Any] = CONTENT, **fields: Any
) -> Any:
    """The runner's config for ``content`` with some fields changed, then overridden."""
    return build_config({**content, **fields}, overrides).runner


def refusal(
    overrides: dict[str, Any] | None = None, content: dict[str, Any] = CONTENT, **fields: Any
) -> str:
    with pytest.raises(ValueError, match=r".") as caught:
        build(overrides, content, **fields)
    return str(caught.value)


# Files


@pytest.mark.parametrize("suffix", ["yaml", "yml", "json"])
def test_a_file_is_read(suffix: str, tmp_path: Path):
    path = tmp_path / f"run.{suffix}"
    ours = {"replay_tokens": 5000, "replay_path": "kept"}
    content = {**CONTENT, **ours, "seqpos_slice": [1, None]}
    path.write_text(json.dumps(content) if suffix == "json" else yaml.safe_dump(content))
    runner, replay_tokens, replay_path = load_config(path)
    assert isinstance(runner, LanguageModelSAERunnerConfig)
    assert isinstance(runner.sae, TrainingBAEConfig)
    assert runner.sae.temperature == 0.5
    assert runner.seqpos_slice == (1, None)
    assert runner.checkpoint_path is None
    assert not runner.logger.log_to_wandb
    assert (replay_tokens, replay_path) == (5000, "kept")


def test_yaml_numbers_may_have_an_exponent_and_no_point(tmp_path: Path):
    path = tmp_path / "run.yaml"
    path.write_text(
        "lr: 1e-4\ntraining_tokens: 2e6\nadam_beta1: .5e0\nlr_end: 1E+2\n"
        "sae: {architecture: topk, d_in: 16, d_sae: 4_0}\ncheckpoint_path: e5\n"
    )
    runner: Any = load_config(path).runner
    assert (runner.lr, runner.training_tokens, runner.adam_beta1) == (1e-4, 2_000_000, 0.5)
    assert (runner.lr_end, runner.sae.d_sae, runner.checkpoint_path) == (100.0, 40, "e5")


def test_what_a_file_leaves_out_keeps_saelens_default():
    content = {"sae": {"architecture": "topk", "d_in": 16, "d_sae": 40}}
    runner = build(content=content)
    expected = LanguageModelSAERunnerConfig(sae=TopKTrainingSAEConfig(d_in=16, d_sae=40))
    assert runner.logger.log_to_wandb
    for name in ("lr", "train_batch_size_tokens", "hook_name", "exclude_special_tokens"):
        assert getattr(runner, name) == getattr(expected, name)


def test_the_file_that_saelens_writes_can_be_read_back(tmp_path: Path):
    cfg = runner_cfg(tmp_path, exclude_special_tokens=[0, 1], lr=3e-5)
    path = tmp_path / "runner_cfg.json"
    path.write_text(json.dumps(cfg.to_dict()))
    assert load_config(path).runner.to_dict() == json.loads(path.read_text()) | {
        "seqpos_slice": (None,)
    }


@pytest.mark.parametrize("name", list_configs())
def test_each_shipped_config_is_offline_and_named_after_its_output(name: str):
    runner, replay_tokens, replay_path = load_config(name)
    assert replay_path is None
    assert not runner.logger.log_to_wandb
    assert runner.output_path == f"output/{name}"
    assert runner.checkpoint_path is None
    if isinstance(runner, LanguageModelSAERunnerConfig):
        assert runner.dataset_path == "bae-lens/movie-reviews"
        assert replay_tokens is not None
        assert replay_tokens >= runner.train_batch_size_tokens
        assert runner.n_batches_in_buffer * runner.context_size >= runner.train_batch_size_tokens


def test_the_twins_differ_only_in_the_autoencoder():
    bae, topk = (load_config(f"smollm2-{name}") for name in ("bae", "topk"))
    assert bae.replay_tokens == topk.replay_tokens
    a, b = bae.runner.to_dict(), topk.runner.to_dict()
    a["logger"]["run_name"] = b["logger"]["run_name"]
    assert {name for name in a if a[name] != b[name]} == {"sae", "output_path"}
    assert isinstance(topk.runner.sae, TopKTrainingSAEConfig)
    assert a["sae"]["normalize_activations"] == b["sae"]["normalize_activations"]


def test_levels_differ_from_bits_in_two_fields():
    bits, levels = (load_config(f"smollm2-{name}") for name in ("bae", "bae-levels"))
    assert bits.replay_tokens == levels.replay_tokens
    a, b = bits.runner.to_dict(), levels.runner.to_dict()
    a["logger"]["run_name"] = b["logger"]["run_name"]
    assert {name for name in a if a[name] != b[name]} == {"sae", "output_path"}
    a, b = a["sae"], b["sae"]
    assert {name for name in a if a[name] != b[name]} == {"n_levels", "feedback_steps"}
    assert (b["n_levels"], b["feedback_steps"]) == (7, 2)


def test_a_missing_file_names_what_there_is(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"'smolm2-bae', nor .* Did you mean smollm2-bae"):
        load_config("smolm2-bae")
    (tmp_path / "mine.yaml").touch()
    with pytest.raises(FileNotFoundError, match=f"Did you mean {tmp_path / 'mine.yaml'}"):
        load_config(tmp_path / "nine.yaml")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.yaml", "lr: [1", "a.yaml cannot be read"),
        ("a.json", "{'lr': 1}", "a.json cannot be read"),
        ("a.yaml", "just a text", "must hold fields and their values; got 'just a text'"),
        ("a.yaml", "", "must hold fields and their values; got None"),
        ("a.yaml", "sae: 3", "a.yaml: sae must be a section of fields; got 3"),
    ],
)
def test_a_file_that_is_no_config(name: str, text: str, message: str, tmp_path: Path):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=r".") as caught:
        load_config(tmp_path / name)
    assert message in str(caught.value)
    assert name in str(caught.value)


# Fields


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hook_nmae": "x"}, "Unknown field 'hook_nmae'. Did you mean hook_name"),
        (
            {"sae": {**CONTENT["sae"], "d_sea": 3}},
            "Unknown field 'sae.d_sea'. Did you mean sae.d_sae",
        ),
        ({"sae": {**CONTENT["sae"], "k": 3}}, "Unknown field 'sae.k'"),
        ({"logger": {"log_wandb": 1}}, "'logger.log_wandb'. Did you mean logger.log_to_wandb"),
        ({"synthetic_modle": {}}, "Unknown field 'synthetic_modle'"),
    ],
)
def test_an_unknown_field_is_refused_with_the_nearest(fields: dict[str, Any], message: str):
    assert message in refusal(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lr": "fast"}, "lr must be of type float; got 'fast'"),
        ({"lr": True}, "lr must be of type float; got True"),
        ({"lr": {"a": 1}}, "lr must be of type float; got {'a': 1}"),
        ({"lr": None}, "lr must be of type float; got None"),
        ({"training_tokens": 1.5}, "training_tokens must be of type int; got 1.5"),
        ({"streaming": "maybe"}, "streaming must be of type bool; got 'maybe'"),
        ({"seqpos_slice": 3}, "seqpos_slice must be of type tuple"),
        ({"sequence_separator_token": "cls"}, "sequence_separator_token must be of type"),
        (
            {"sae": {**CONTENT["sae"], "surrogate": "step"}},
            "sae.surrogate must be of type Literal[",
        ),
        ({"sae": {**CONTENT["sae"], "metadata": 3}}, "sae.metadata must be of type dict"),
        (
            {"sae": {**CONTENT["sae"], "temperature": -1}},
            "temperature must be a positive number or 'auto'; got -1",
        ),
        ({"replay_tokens": "all"}, "replay_tokens must be of type int | None; got 'all'"),
        ({"replay_path": ["a"]}, "replay_path must be of type str | None; got ['a']"),
    ],
)
def test_a_wrong_type_is_refused(fields: dict[str, Any], message: str):
    assert message in refusal(**fields)


@pytest.mark.parametrize(
    ("sae", "message"),
    [
        ({"architecture": "bae", "d_sae": 4}, "sae.d_in is missing"),
        ({"d_in": 4, "d_sae": 4}, "sae.architecture must be one of"),
        ({"architecture": "bea", "d_in": 4, "d_sae": 4}, "got 'bea'"),
    ],
)
def test_what_an_autoencoder_needs(sae: dict[str, Any], message: str):
    assert message in refusal(sae=sae)


@pytest.mark.parametrize("architecture", sorted(SAE_TRAINING_CLASS_REGISTRY))
def test_every_architecture_of_saelens_can_be_configured(architecture: str):
    runner = build(sae={"architecture": architecture, "d_in": 16, "d_sae": 128})
    assert runner.sae.architecture() == architecture


# Overrides


def test_a_field_is_found_with_and_without_its_section():
    overrides = {
        "lr": "1e-2",
        "training-tokens": "1e6",
        "sae.d_sae": "64",
        "temperature": "2",
        "logger.log_to_wandb": "true",
        "wandb_log_frequency": "7",
    }
    runner = build(overrides)
    assert (runner.lr, runner.training_tokens) == (0.01, 1_000_000)
    assert (runner.sae.d_sae, runner.sae.temperature) == (64, 2.0)
    assert (runner.logger.log_to_wandb, runner.logger.wandb_log_frequency) == (True, 7)


def test_the_runners_field_comes_before_the_autoencoders():
    runner = build({"dtype": "bfloat16"})
    assert (runner.dtype, runner.sae.dtype) == ("bfloat16", "float32")


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("output_path", "2024", "2024"),
        ("output_path", "none", None),
        ("output_path", "null", None),
        ("model_name", "none", "none"),
        ("prefetch_llm_batches", "true", True),
        ("prefetch_llm_batches", "3", 3),
        ("seqpos_slice", "[1, null]", (1, None)),
        ("exclude_special_tokens", "[0, 2]", [0, 2]),
        ("sequence_separator_token", "eos", "eos"),
        ("model_kwargs", "{a: 1}", {"a": 1}),
        ("hook_name", "a: [b", "a: [b"),
    ],
)
def test_text_is_read_as_the_fields_type(name: str, text: str, value: Any):
    assert getattr(build({name: text}), name) == value


@pytest.mark.parametrize(
    ("text", "value"), [("3e2", 300.0), ("d_in", "d_in"), ("d_in/16", "d_in/16"), ("none", None)]
)
def test_text_for_a_field_of_several_types(text: str, value: Any):
    assert build({"target_entropy": text}).sae.target_entropy == value


@pytest.mark.parametrize("by", ["the file", "an override"])
@pytest.mark.parametrize(
    ("share", "steps"),
    [("20%", 200), (" 60 %", 600), ("2.55%", 25), ("0%", 0), ("100%", 1000), ("7", 7), (7, 7)],
)
def test_steps_of_the_schedule_may_be_a_share_of_the_runs(by: str, share: Any, steps: int):
    tokens: dict[str, Any] = {"training_tokens": 100_050, "train_batch_size_tokens": 100}
    for name in ("lr_warm_up_steps", "lr_decay_steps"):
        own = {name: share}
        cfg = build(own, **tokens) if by == "an override" else build(**tokens, **own)
        assert getattr(cfg, name) == steps


def test_a_share_is_of_the_steps_that_there_are_in_the_end():
    tokens: dict[str, Any] = {"training_tokens": 1000, "train_batch_size_tokens": 10}
    cfg = build({"training_tokens": "1e4"}, **tokens, lr_decay_steps="20%")
    assert (cfg.total_training_steps, cfg.lr_decay_steps) == (1000, 200)
    # SAELens' own tokens and batch.
    cfg = build(lr_decay_steps="50%")
    assert cfg.lr_decay_steps == cfg.total_training_steps // 2 > 0
    samples = {"training_samples": 5000, "batch_size": 50, "lr_warm_up_steps": "10%"}
    assert build(content=SYNTHETIC, **samples).lr_warm_up_steps == 10


@pytest.mark.parametrize("share", ["101%", "-1%", "x%", "%", "1e1%", "nan%", "\u0661%", "1/5%"])
def test_a_share_that_is_none(share: str):
    for message in (refusal({"lr_decay_steps": share}), refusal(lr_decay_steps=share)):
        assert "lr_decay_steps must be" in message
        assert "0% to 100%" in message


def test_shares_of_more_than_the_whole_run():
    assert "more than the whole run" in refusal(lr_warm_up_steps="50%", lr_decay_steps="51%")
    assert build(lr_warm_up_steps="50%", lr_decay_steps="50%").lr_decay_steps > 0


def test_a_share_of_steps_that_cannot_be_counted():
    assert "train_batch_size_tokens" in refusal(lr_decay_steps="5%", train_batch_size_tokens=0)
    assert "training_tokens" in refusal(lr_decay_steps="5%", training_tokens="many")


def test_a_value_that_is_no_text_is_taken_as_it_is():
    assert build({"lr": 0.5, "checkpoint_path": None}).lr == 0.5


def test_replay_tokens_can_be_overridden():
    assert build_config({**CONTENT, "replay_tokens": 9}, {"replay_tokens": "1e4"}) == RunConfig(
        build(), 10_000
    )


@pytest.mark.parametrize(("text", "path"), [("kept", "kept"), ("2024", "2024"), ("none", None)])
def test_replay_path_can_be_overridden(text: str, path: str | None):
    run = build_config({**CONTENT, "replay_path": "before"}, {"replay-path": text})
    assert run == RunConfig(build(), None, path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("d_sea", "Unknown field 'd_sea'. Did you mean d_sae"),
        ("sae.d_sea", "Unknown field 'sae.d_sea'. Did you mean sae.d_sae"),
        ("autoencoder.lr", "Unknown field 'autoencoder.lr'"),
        ("logger.lr", "Unknown field 'logger.lr'"),
        ("sae", "Unknown field 'sae'"),
    ],
)
def test_an_unknown_override_is_refused(name: str, message: str):
    assert message in refusal({name: "3"})


def test_an_override_of_a_wrong_type_is_refused():
    assert "lr must be of type float; got 'fast'" in refusal({"lr": "fast"})


@pytest.mark.parametrize("name", ["architecture", "sae.architecture"])
def test_another_architecture_drops_what_it_does_not_have(
    name: str, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.WARNING):
        runner = build({"k": "5", name: "topk"})
    assert isinstance(runner.sae, TopKTrainingSAEConfig)
    assert (runner.sae.d_sae, runner.sae.k) == (40, 5)
    assert "architecture is now 'topk', which has no temperature: dropped" in caplog.text
    assert "Unknown field 'temperature'" in refusal({name: "topk", "temperature": "3"})


def test_the_same_architecture_drops_nothing(caplog: pytest.LogCaptureFixture):
    assert build({"architecture": "bae"}).sae.temperature == 0.5
    assert caplog.text == ""


def test_the_content_is_not_changed():
    before = json.dumps(CONTENT)
    build({"d_sae": "99", "architecture": "topk"})
    assert json.dumps(CONTENT) == before


# Synthetic data


def test_a_synthetic_model_makes_a_synthetic_run():
    runner = build({"num_features": "16", "synthetic_model.bias": "false"}, SYNTHETIC)
    assert isinstance(runner, SyntheticSAERunnerConfig)
    assert isinstance(runner.synthetic_model, SyntheticModelConfig)
    assert runner.synthetic_model.num_features == 16
    assert runner.synthetic_model.bias is False
    assert isinstance(runner.logger, LoggingConfig)


def test_the_sections_inside_it_are_saelens():
    fires = {"generator_name": "constant", "probability": 0.2}
    runner = build({"firing_probability": json.dumps(fires)}, SYNTHETIC)
    assert runner.synthetic_model.firing_probability == ConstantFiringProbabilityConfig(0.2)
    wrong = json.dumps(fires | {"probabilty": 0.1})
    assert "'probabilty'" in refusal({"firing_probability": wrong}, SYNTHETIC)


def test_it_may_be_the_path_of_a_saved_one():
    assert build(content=SYNTHETIC, synthetic_model="some/folder").synthetic_model == "some/folder"


def test_what_only_a_language_model_has_is_refused():
    assert "Unknown field 'replay_tokens'" in refusal(content=SYNTHETIC, replay_tokens=5)
    assert "Unknown field 'replay_path'" in refusal(content=SYNTHETIC, replay_path="kept")
    assert "Unknown field 'hook_name'" in refusal({"hook_name": "x"}, SYNTHETIC)
    wrong = {"num_feature": 8, "hidden_dim": 4}
    message = refusal(content=SYNTHETIC, synthetic_model=wrong)
    assert "'synthetic_model.num_feature'. Did you mean synthetic_model.num_features" in message
    assert "synthetic_model.hidden_dim is missing" in refusal(
        content=SYNTHETIC, synthetic_model={"num_features": 8}
    )


# Two hook points


@pytest.mark.parametrize(
    ("name", "model", "hooks", "text_unit", "width"),
    [
        (
            *("smollm2-clvq-vae", "bae-lens/smollm2-135m"),
            *(("blocks.10.hook_resid_post", "blocks.20.hook_resid_post"), "context", 576),
        ),
        (
            *("minilm-clvq-vae", "bae-lens/minilm-l6"),
            *(("blocks.1.hook_out", "blocks.4.hook_out"), "sentence", 384),
        ),
        (
            *("minilm-clvq-vae-predictive", "bae-lens/minilm-l6"),
            *(("blocks.1.hook_out", "blocks.4.hook_out"), "sentence", 384),
        ),
    ],
)
def test_a_shipped_config_of_two_hook_points(
    name: str, model: str, hooks: tuple[str, str], text_unit: str, width: int
):
    assert name in list_configs()
    runner: Any = load_config(name).runner
    assert type(runner) is CrossLayerRunnerConfig
    assert isinstance(runner.sae, TrainingCLVQVAEConfig)
    assert (runner.hook_name, runner.hook_name_out) == hooks
    assert (runner.model_name, runner.text_unit) == (model, text_unit)
    assert (runner.sae.d_in, runner.sae.d_out) == (width, width)
    assert runner.context_size == 128
    assert runner.sae.sequence_length == (None if runner.sae.decoder == "token" else 128)
    assert runner.train_batch_size_tokens % runner.context_size == 0


def test_a_decoder_without_sequences_has_none():
    runner: Any = load_config("smollm2-clvq-vae", {"decoder": "token"}).runner
    assert (runner.sae.decoder, runner.sequence_length) == ("token", None)
    again: Any = load_config("smollm2-clvq-vae", {"context_size": "64"}).runner
    assert again.sae.sequence_length == 64


@pytest.mark.parametrize("name", CROSS_LAYER)
def test_fields_of_the_second_hook_point_can_be_changed(name: str):
    overrides = {
        "hook_name_out": "blocks.3.hook_out",
        "initialization-tokens": "1e3",
        "text_unit": "sentence",
        "sae.d_out": "9",
        "top_k": "1",
    }
    runner: Any = load_config(name, overrides).runner
    assert (runner.hook_name_out, runner.initialization_tokens) == ("blocks.3.hook_out", 1000)
    assert (runner.text_unit, runner.sae.d_out, runner.sae.top_k) == ("sentence", 9, 1)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"hook_name_uot": "x"}, "Unknown field 'hook_name_uot'. Did you mean hook_name_out"),
        ({"sae.decodre": "token"}, "Unknown field 'sae.decodre'. Did you mean sae.decoder"),
        ({"decoder": "mlp"}, "decoder must be of type Literal["),
        ({"text_unit": "page"}, "text_unit must be of type Literal["),
        ({"hook_head_index": "3"}, "hook_head_index is not supported with two hook points; got 3"),
        ({"d_out": "0"}, "d_out must be a whole number of at least 1"),
        ({"hook_name_out": "x", "architecture": "topk"}, "Unknown field 'hook_name_out'"),
    ],
)
def test_what_is_wrong_with_two_hook_points(overrides: dict[str, str], message: str):
    with pytest.raises(ValueError, match=r".") as caught:
        load_config("smollm2-clvq-vae", overrides)
    assert message in str(caught.value)


def test_the_second_hook_point_is_unknown_to_other_architectures():
    assert "Unknown field 'hook_name_out'" in refusal({"hook_name_out": "x"})
    assert "Unknown field 'text_unit'" in refusal(text_unit="context")


def test_a_transcoder_can_be_trained_where_a_vqvae_is(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        run = load_config(
            "smollm2-clvq-vae", {"architecture": "topk_transcoder", "k": "32", "d_sae": "4096"}
        )
    runner: Any = run.runner
    assert type(runner) is CrossLayerRunnerConfig
    assert isinstance(runner.sae, TrainingTopKTranscoderConfig)
    assert (runner.sae.d_in, runner.sae.d_out, runner.sae.d_sae, runner.sae.k) == (
        *(576, 576),
        *(4096, 32),
    )
    assert runner.hook_name_out == "blocks.20.hook_resid_post"
    assert runner.sequence_length is None
    assert "has no decoder, decoder_layers, decoder_width: dropped" in caplog.text
    assert run.replay_tokens == load_config("smollm2-clvq-vae").replay_tokens
