"""A model is tried, and what it does not keep is said."""

from __future__ import annotations

import json

import pytest
import torch

from bae_lens.compatibility import Compatibility, Finding, check_model, default_hook
from tests.helpers import (
    D_IN,
    HOOK,
    make_bridge,
    make_headless_encoder,
    make_model,
    make_neox_bridge,
)

PADDED = tuple(f"padding on the {side} changes no token" for side in ("left", "right"))
EXACT, FELT = (
    "attached with the error term, the output stays",
    "attached without it, the output changes",
)
CACHE = "generation with a cache is that without"


def test_a_model_that_keeps_all():
    result = check_model(make_model(), HOOK)

    assert result.holds
    assert result["the hook point fires"].detail == f"width {D_IN}"
    assert result["texts begin with"].detail.startswith("'<bos>', which is left out")
    assert all(result[name].holds for name in (*PADDED, EXACT, FELT, CACHE))
    assert result["predicts classes"].holds is None
    assert str(result.verdict()).startswith(f"tiny (HookedSAETransformer) at {HOOK} keeps all 10")
    said = json.loads(json.dumps(result.to_dict()))
    assert said["holds"] is True
    assert len(said["findings"]) == len(result.findings)
    assert "kept" in result.table().text()


def test_the_default_is_the_residual_stream_in_the_middle(tmp_path):
    assert default_hook(make_model()) == "blocks.1.hook_resid_post"
    assert default_hook(make_bridge(tmp_path)) in ("blocks.1.hook_resid_post", "blocks.1.hook_out")
    model = make_model()
    model.cfg.n_layers = 40
    with pytest.raises(ValueError, match="Name a hook point of the model: it has hook_embed"):
        default_hook(model)


def test_a_bridge_whose_texts_begin_without_bos(tmp_path):
    result = check_model(make_neox_bridge(tmp_path))

    assert result["texts begin with"].detail.startswith("'<unk>', which is none")
    assert result[EXACT].holds
    assert result[FELT].holds


def test_an_encoder_writes_nothing():
    result = check_model(make_headless_encoder())

    assert result.holds
    assert result[CACHE].holds is None
    assert result[PADDED[0]].holds is None
    assert result[PADDED[1]].holds


def test_heads_are_side_by_side():
    result = check_model(make_model(), "blocks.0.attn.hook_z")

    assert result.holds
    assert result["the hook point fires"].detail == "2 heads of width 8, side by side 16"


def test_a_sink_is_seen_and_which_option_leaves_it_out():
    model = make_model()
    with torch.no_grad():
        model.W_E[0] *= 150  # BOS

    found = check_model(model, HOOK)["attention sinks"]

    assert found.detail.startswith("position 0 ")
    assert found.advice == "Train and evaluate with exclude_special_tokens=True."
    other = make_model()
    with torch.no_grad():
        other.W_pos[1] *= 2000
    found = check_model(other, HOOK)["attention sinks"]
    assert found.detail.startswith("position 1 ")
    assert found.advice == "Train and evaluate with exclude_outlier_tokens=True."


def test_a_hook_point_that_the_output_does_not_see():
    model = make_model()
    with torch.no_grad():
        for block in model.blocks:
            block.mlp.W_out.zero_()

    result = check_model(model, "blocks.1.mlp.hook_post")

    assert not result.holds
    assert result[FELT].holds is False
    assert "does not reach the output" in result[FELT].advice
    assert result["gradients reach the hook point"].holds is False
    assert f"does not keep 2 of 10: {FELT}" in str(result.verdict())


def test_weights_that_are_not_finite():
    model = make_model()
    with torch.no_grad():
        model.blocks[0].mlp.W_out[0, 0] = torch.nan

    assert check_model(model, HOOK)["activations are finite"].holds is False


def test_padding_that_is_seen():
    model = make_model()
    forward = model.forward

    def careless(input, **options):
        options.pop("attention_mask", None)
        if isinstance(input, list):
            side = options.pop("padding_side", "right")
            input = model.to_tokens(input, padding_side=side)
            options["attention_mask"] = torch.ones_like(input)
        return forward(input, **options)

    model.forward = careless

    result = check_model(model, HOOK)

    # A causal model does not see what comes after.
    assert [result[name].holds for name in PADDED] == [False, True]
    assert result[PADDED[0]].advice == "Do not pad on the left."


def test_what_is_raised_while_trying_is_a_finding():
    model = make_model()

    def fail(*args, **kwargs):
        raise RuntimeError("no generation here")

    model.generate = fail

    found = check_model(model, HOOK)[CACHE]

    assert found.holds is False
    assert "no generation here" in found.detail


def test_a_model_that_cannot_read_is_a_finding():
    # Weights of a type that its config does not know: LayerNorm's output and theirs differ.
    model = make_model()
    torch.nn.Module.to(model, torch.float64)
    model.blocks[1].to(torch.bfloat16)
    result = check_model(model, HOOK)
    assert [finding.holds for finding in result.findings] == [True, False]
    assert result["texts are read"].detail.startswith("RuntimeError: ")
    result = check_model(model, "blocks.1.hook_resid_post")
    assert [(f.name, f.holds) for f in result.findings] == [("the hook point fires", False)]
    assert "does not keep 1 of 1: the hook point fires" in str(result.verdict())


def test_frozen_weights_and_gradients_of_their_owner():
    model = make_model()
    model.requires_grad_(False)
    assert check_model(model, HOOK)["gradients reach the hook point"].holds

    model = make_model()
    model.W_U.grad = torch.ones_like(model.W_U)
    assert check_model(model, HOOK)["gradients reach the hook point"].holds
    assert torch.equal(model.W_U.grad, torch.ones_like(model.W_U))
    assert model.W_E.grad is None


@pytest.mark.parametrize(("n_ctx", "is_tried"), [(16, True), (6, True), (4, False)])
def test_a_context_that_the_texts_fill(n_ctx, is_tried):
    model = make_model()
    model.cfg.n_ctx = n_ctx
    for part in (model.pos_embed, *(block.attn for block in model.blocks)):
        part.cfg.n_ctx = n_ctx
    model.pos_embed.W_pos = torch.nn.Parameter(model.W_pos[:n_ctx].detach().clone())
    assert model.to_tokens("word1 " * 50).shape[1] == n_ctx
    result = check_model(model, HOOK)
    assert result[CACHE].holds is (True if is_tried else None), result[CACHE]
    assert result.holds


def test_an_encoder_whose_context_the_texts_fill():
    model = make_headless_encoder()
    assert check_model(model).holds
    model.cfg.n_ctx = 12
    model.tokenizer.model_max_length = 12
    result = check_model(model)
    assert result[PADDED[1]].holds, result[PADDED[1]]


@pytest.mark.parametrize("is_training", [True, False])
def test_the_model_is_in_the_mode_that_it_was_in(is_training):
    model = make_model().train(is_training)
    check_model(model, HOOK)
    assert model.training is is_training


def test_what_cannot_be_tried():
    model = make_model()
    with pytest.raises(ValueError, match=r"gives the shape \(1, 2, 1, 1\)"):
        check_model(model, "blocks.0.attn.hook_pattern")
    with pytest.raises(ValueError, match=r"no hook 'blocks\.0\.hook_resid'"):
        check_model(model, "blocks.0.hook_resid")
    model.tokenizer = None
    with pytest.raises(ValueError, match="no tokenizer"):
        check_model(model, HOOK)


def test_a_verdict_names_the_first_advice():
    findings = (
        Finding("one", None, "", "Only advice."),
        Finding("two", False, "", "What to do."),
        Finding("three", True, ""),
    )
    result = Compatibility("m", "C", "h", findings)

    assert not result.holds
    assert str(result.verdict()) == "m (C) at h does not keep 1 of 2: two. What to do."
    assert str(Compatibility("m", "C", "h", findings[::2]).verdict()) == (
        "m (C) at h keeps all 1 that were tried. Only advice."
    )
