"""``attached`` at hook points that have heads: one of them, or all side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE, HookedSAETransformer
from torch import Tensor
from transformer_lens import HookedTransformerConfig

from bae_lens.attach import attached
from tests.attach.test_attach import SPECIAL, Model, hook_out_of, is_bridge
from tests.helpers import D_IN, between, make_bae, make_bridge, make_tokenizer, make_tokens
from tests.helpers import make_transcoder as transcoder_of

N_HEADS, N_KV_HEADS, D_HEAD = 4, 2, 8


@pytest.fixture(params=["hooked", "bridge"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Model:
    return make_grouped_model() if request.param == "hooked" else make_bridge(tmp_path)


@pytest.fixture
def tokens() -> Tensor:
    tokens = make_tokens(3, 9)
    tokens[1, 4] = SPECIAL[1]
    return tokens


def make_grouped_model() -> HookedSAETransformer:
    """Two query heads to each head of keys and values."""
    cfg = HookedTransformerConfig(
        n_layers=2,
        d_model=D_IN,
        n_heads=N_HEADS,
        n_key_value_heads=N_KV_HEADS,
        d_head=D_HEAD,
        d_mlp=2 * D_IN,
        n_ctx=32,
        d_vocab=44,
        act_fn="gelu",
        positional_embedding_type="rotary",
        rotary_dim=D_HEAD,
        device="cpu",
        seed=0,
        initializer_range=0.3,
    )
    model = HookedSAETransformer(cfg, tokenizer=make_tokenizer()).eval()
    model.set_use_attn_result(True)
    return model


def hooks_of(model: Model) -> dict[str, tuple[str, int, int]]:
    """Hook points with heads: name, how many, and how wide each is."""
    if is_bridge(model):
        attn = "blocks.1.attn"
        names = {"q": f"{attn}.q.hook_out", "k": f"{attn}.k.hook_out", "v": f"{attn}.v.hook_out"}
        return {
            key: (name, 2, D_IN // 2) for key, name in {**names, "z": f"{attn}.o.hook_in"}.items()
        }
    sizes = {
        "q": ("hook_q", N_HEADS, D_HEAD),
        "k": ("hook_k", N_KV_HEADS, D_HEAD),
        "v": ("hook_v", N_KV_HEADS, D_HEAD),
        "z": ("hook_z", N_HEADS, D_HEAD),
        "rotated": ("hook_rot_k", N_KV_HEADS, D_HEAD),
        "result": ("hook_result", N_HEADS, D_IN),
    }
    return {key: (f"blocks.1.attn.{name}", n, width) for key, (name, n, width) in sizes.items()}


KEYS = ("q", "k", "v", "z", "rotated", "result")


def at(sae: SAE[Any], name: str, head: int | None = None) -> SAE[Any]:
    sae.cfg.metadata.hook_name, sae.cfg.metadata.hook_head_index = name, head
    return sae


def hook_of(model: Model, key: str) -> tuple[str, int, int]:
    hooks = hooks_of(model)
    if key not in hooks:
        pytest.skip("The Bridge has it by another name.")
    return hooks[key]


@torch.no_grad()
def by_hand(model: Model, sae: SAE[Any], tokens: Tensor, heads: slice) -> Tensor:
    """Logits with the reconstruction of some heads, side by side, in their place."""
    keep = torch.isin(tokens, torch.tensor(SPECIAL))[..., None]

    def replace(acts: Tensor, hook: Any) -> Tensor:
        old = acts[:, :, heads].flatten(2)
        new = torch.where(keep, old, sae.decode(sae.encode(old)))
        acts = acts.clone()
        acts[:, :, heads] = new.reshape(acts[:, :, heads].shape)
        return acts

    return model.run_with_hooks(tokens, fwd_hooks=[(sae.cfg.metadata.hook_name, replace)])


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("head", [0, 1, -1])
def test_an_sae_of_one_head_is_attached_to_that_head(model, tokens, key, head):
    name, n_heads, width = hook_of(model, key)
    sae = at(make_bae(d_in=width), name, head)
    expected = by_hand(model, sae, tokens, slice(head % n_heads, head % n_heads + 1))
    clean = model(tokens)

    with torch.no_grad(), attached(model, sae):
        logits = model(tokens)

    torch.testing.assert_close(logits, expected)
    assert (logits - clean).abs().max() > 1e-3
    torch.testing.assert_close(model(tokens), clean)


@pytest.mark.parametrize("key", KEYS)
def test_heads_side_by_side_are_put_back_in_their_places(model, tokens, key):
    name, n_heads, width = hook_of(model, key)
    sae = at(make_bae(d_in=n_heads * width, d_sae=80), name)
    expected = by_hand(model, sae, tokens, slice(None))

    with torch.no_grad(), attached(model, sae):
        logits = model(tokens)

    torch.testing.assert_close(logits, expected)
    assert (logits - model(tokens)).abs().max() > 1e-3


@pytest.mark.parametrize("head", [None, 1])
@pytest.mark.parametrize("key", ["q", "z"])
def test_with_the_error_term_heads_are_exact(model, tokens, key, head):
    name, n_heads, width = hook_of(model, key)
    sae = at(make_bae(d_in=width if head is not None else n_heads * width), name, head)
    clean = model(tokens)

    with attached(model, sae, use_error_term=True):
        torch.testing.assert_close(model(tokens), clean)


def test_one_inside_another_at_heads(model, tokens):
    name, n_heads, width = hook_of(model, "z")
    outer, inner = at(make_bae(d_in=n_heads * width), name), at(make_bae(3, d_in=width), name, 1)
    expected = by_hand(model, outer, tokens, slice(None))
    of_inner = by_hand(model, inner, tokens, slice(1, 2))

    with torch.no_grad(), attached(model, outer):
        first = model(tokens)
        with attached(model, inner):
            inside = model(tokens)
        last = model(tokens)

    torch.testing.assert_close([first, inside, last], [expected, of_inner, expected])


@pytest.mark.parametrize("head", [None, 1])
def test_an_sae_that_reads_heads_and_writes_elsewhere(model, tokens, head):
    name, n_heads, width = hook_of(model, "z")
    d_in = width if head is not None else n_heads * width
    sae = at(between(transcoder_of(d_in=d_in, d_out=D_IN), name, hook_out_of(model)), name, head)
    keep = torch.isin(tokens, torch.tensor(SPECIAL))[..., None]
    read: dict[str, Tensor] = {}

    def note(acts: Tensor, hook: Any) -> None:
        read["acts"] = acts.flatten(2) if head is None else acts[:, :, head]

    def write(acts: Tensor, hook: Any) -> Tensor:
        return torch.where(keep, acts, sae(read["acts"]))

    expected = model.run_with_hooks(tokens, fwd_hooks=[(name, note), (hook_out_of(model), write)])

    with attached(model, sae):
        logits = model(tokens)

    torch.testing.assert_close(logits, expected)
    assert (logits - model(tokens)).abs().max() > 1e-3


def test_a_head_that_is_not_there(model, tokens):
    name, n_heads, width = hook_of(model, "k")
    residual = hook_out_of(model)
    for sae, message in (
        (
            at(make_bae(d_in=width), name, n_heads),
            f"hook_head_index is {n_heads}, .* {n_heads} head",
        ),
        (at(make_bae(), residual, 0), "hook_head_index is 0, .* no heads"),
        (
            at(make_bae(d_in=width), name),
            f"width {n_heads * width}, and the SAE reads width {width}",
        ),
        (at(make_bae(d_in=3), name, 0), f"width {width}, and the SAE reads width 3"),
    ):
        clean = model(tokens)
        with pytest.raises(ValueError, match=message), attached(model, sae):
            model(tokens)
        assert torch.equal(model(tokens), clean)
