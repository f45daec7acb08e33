"""``attached``: an SAE in the model's forward pass, special tokens passing by it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE, HookedSAETransformer, SAETransformerBridge
from sae_lens.analysis.hooked_sae_transformer import get_deep_attr
from sae_lens.saes.transcoder import JumpReLUSkipTranscoder, SkipTranscoder
from torch import Tensor

from bae_lens.architectures.clvq_vae import only_tokens
from bae_lens.attach import attached
from bae_lens.attach.points import hook_path
from tests.helpers import (
    D_IN,
    between,
    fit_codes,
    make_bae,
    make_bridge,
    make_clvq,
    make_model,
    make_tokens,
    make_transcoder,
)

BOS, EOS, PAD = 0, 1, 2
SPECIAL = (BOS, EOS, PAD)

Model = HookedSAETransformer | SAETransformerBridge


@pytest.fixture(params=["hooked", "bridge"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Model:
    return make_model() if request.param == "hooked" else make_bridge(tmp_path)


@pytest.fixture
def tokens() -> Tensor:
    """Special tokens at the beginning, in the middle and at the end."""
    tokens = make_tokens(3, 12)
    tokens[0, 5] = EOS
    tokens[1, 9:] = PAD
    return tokens


def hook_of(model: Model) -> str:
    """The residual after block 0."""
    return "blocks.0.hook_out" if is_bridge(model) else "blocks.0.hook_resid_post"


def hook_after(model: Model) -> str:
    """The same activations, where the next block reads them."""
    return "blocks.1.hook_in" if is_bridge(model) else "blocks.1.hook_resid_pre"


def hook_out_of(model: Model) -> str:
    """The residual after block 1."""
    return hook_of(model).replace("blocks.0", "blocks.1")


def is_bridge(model: Model) -> bool:
    return isinstance(model, SAETransformerBridge)


def sae_for(model: Model, seed: int = 0, **overrides: Any) -> SAE[Any]:
    sae = make_bae(seed, **overrides)
    sae.cfg.metadata.hook_name = hook_of(model)
    return sae


def by_hand(
    model: Model, sae: SAE[Any], tokens: Tensor, special: Sequence[int] = SPECIAL
) -> Tensor:
    """Logits with the reconstruction written into the hook point, but for special tokens."""
    is_special = torch.isin(tokens, torch.tensor(special, dtype=tokens.dtype))

    def replace(acts: Tensor, hook: Any) -> Tensor:
        return torch.where(is_special.unsqueeze(-1), acts, sae.decode(sae.encode(acts)))

    return model.run_with_hooks(tokens, fwd_hooks=[(hook_of(model), replace)])


def zero(acts: Tensor, hook: Any) -> Tensor:
    return torch.zeros_like(acts)


def cached_shapes(model: Model, tokens: Tensor) -> dict[str, torch.Size]:
    return {name: acts.shape for name, acts in model.run_with_cache(tokens)[1].items()}


def assert_untouched(model: Model, tokens: Tensor, clean: Tensor) -> None:
    assert model.acts_to_saes == {}
    assert not model.embed._forward_pre_hooks
    assert torch.equal(model(tokens), clean)


# What the model computes


def test_logits_are_those_of_a_replacement_by_hand(model, tokens):
    sae = sae_for(model)
    expected = by_hand(model, sae, tokens)
    others = [by_hand(model, sae, tokens, special) for special in ((), (BOS,), (BOS, EOS))]

    with attached(model, sae) as with_sae:
        assert with_sae is model
        logits = model(tokens)

    torch.testing.assert_close(logits, expected)
    assert all((logits - other).abs().max() > 1e-2 for other in others)


def test_what_is_no_number_is_not_hidden_by_a_code(model, tokens):
    sae, word = sae_for(model), int(tokens[0, -2])
    weight = model.W_E
    before = weight.data[word].clone()
    try:
        weight.data[word] = torch.nan
        with attached(model, sae):
            assert model(tokens)[0, -2:].isnan().all()
    finally:
        weight.data[word] = before


def test_special_positions_are_untouched_and_all_others_are_not(model, tokens):
    sae = sae_for(model)
    clean = model.run_with_cache(tokens)[1][hook_after(model)]

    with attached(model, sae):
        seen = model.run_with_cache(tokens)[1][hook_after(model)]

    is_special = torch.isin(tokens, torch.tensor(SPECIAL))
    assert torch.equal(seen[is_special], clean[is_special])
    torch.testing.assert_close(seen[~is_special], sae(clean[~is_special]))
    assert (seen - clean)[~is_special].abs().amax(-1).min() > 1e-2


@pytest.mark.parametrize("text", ["word1 word7 word3", ["word1", "word2 word3 word4 word5"]])
@pytest.mark.parametrize("prepend_bos", [True, False])
def test_text_is_its_tokens(model, text, prepend_bos):
    sae = sae_for(model)
    tokens = model.to_tokens(text, prepend_bos=prepend_bos)
    assert (tokens[:, 0] == BOS).all() == prepend_bos
    expected = by_hand(model, sae, tokens)

    with attached(model, sae):
        logits = model(text, prepend_bos=prepend_bos)

    # Text that is padded comes with an attention mask, on which padding itself depends.
    is_word = ~torch.isin(tokens, torch.tensor(SPECIAL))
    torch.testing.assert_close(logits[is_word], expected[is_word])


def test_every_forward_pass_has_its_own_special_positions(model):
    sae = sae_for(model)
    batches = [make_tokens(2, 5, seed=1), make_tokens(4, 9, seed=2), make_tokens(1, 7, seed=3)]
    batches[1][:, 4] = EOS
    expected = [by_hand(model, sae, tokens) for tokens in batches]

    with attached(model, sae):
        logits = [model(tokens) for tokens in batches]

    torch.testing.assert_close(logits, expected)


def test_runs_with_cache_and_with_hooks(model, tokens):
    sae = sae_for(model)
    expected = by_hand(model, sae, tokens)

    with attached(model, sae):
        cached, cache = model.run_with_cache(tokens)
        hooked = model.run_with_hooks(tokens, fwd_hooks=[(hook_after(model), zero)])

    torch.testing.assert_close(cached, expected)
    codes = [name for name in cache if name.endswith("hook_sae_acts_post")]
    assert [cache[name].shape for name in codes] == [(*tokens.shape, sae.cfg.d_sae)]
    assert (hooked - expected).abs().max() > 1e-2


def test_every_position_is_replaced_where_that_is_asked_for(model, tokens):
    sae = sae_for(model)
    expected = by_hand(model, sae, tokens, ())

    with attached(model, sae, exclude_special_tokens=False):
        logits = model(tokens)

    torch.testing.assert_close(logits, expected)


@pytest.mark.parametrize("special", [[7, 11], (BOS,), []])
def test_special_tokens_by_their_ids(model, tokens, special):
    sae = sae_for(model)
    tokens[:, 3], tokens[:, 6] = 7, 11
    expected = by_hand(model, sae, tokens, special)

    with attached(model, sae, exclude_special_tokens=special):
        logits = model(tokens)

    torch.testing.assert_close(logits, expected)


def test_a_model_without_tokenizer_needs_token_ids(model, tokens, monkeypatch):
    monkeypatch.setattr(model, "tokenizer", None)
    sae = sae_for(model)
    expected = by_hand(model, sae, tokens)

    with pytest.raises(ValueError, match="token ids"), attached(model, sae):
        pytest.fail("the body ran")
    with attached(model, sae, exclude_special_tokens=SPECIAL):
        logits = model(tokens)

    torch.testing.assert_close(logits, expected)


def test_heads(model, tokens):
    # A HookedTransformer's SAE takes heads apart, a Bridge's takes them flattened.
    name = "blocks.0.attn.o.hook_in" if is_bridge(model) else "blocks.0.attn.hook_z"
    flat = make_bae()
    sae = flat if is_bridge(model) else make_bae(reshape_activations="hook_z")
    sae.cfg.metadata.hook_name = name
    is_word = ~torch.isin(tokens, torch.tensor(SPECIAL))

    def replace(z: Tensor, hook: Any) -> Tensor:
        recons = flat.decode(flat.encode(z.flatten(-2))).reshape(z.shape)
        return torch.where(is_word[..., None, None], recons, z)

    expected = model.run_with_hooks(tokens, fwd_hooks=[(name, replace)])
    shapes = cached_shapes(model, tokens)

    with attached(model, sae):
        logits = model(tokens)

    torch.testing.assert_close(logits, expected)
    assert (logits - model(tokens)).abs().max() > 1e-2
    assert cached_shapes(model, tokens) == shapes


# The error term


def test_with_the_error_term_the_logits_are_the_models_own(model, tokens):
    clean = model(tokens)

    with attached(model, sae_for(model), use_error_term=True):
        logits = model(tokens)

    torch.testing.assert_close(logits, clean)


def test_the_error_term_of_the_sae_itself_is_honored_and_left_alone(model, tokens):
    sae = sae_for(model)
    replaced, clean = by_hand(model, sae, tokens), model(tokens)
    sae.use_error_term = True

    with attached(model, sae):
        own = model(tokens)
    with attached(model, sae, use_error_term=False):
        without = model(tokens)

    torch.testing.assert_close(own, clean)
    torch.testing.assert_close(without, replaced)
    assert sae.use_error_term is True


def test_a_change_of_the_code_is_seen_beside_the_error_term(model, tokens):
    sae = sae_for(model)
    clean = model(tokens)

    with attached(model, sae, use_error_term=True):
        [name] = [n for n in model.hook_dict if n.endswith("hook_sae_acts_post")]
        logits = model.run_with_hooks(tokens, fwd_hooks=[(name, zero)])

    is_word = ~torch.isin(tokens, torch.tensor(SPECIAL))
    assert (logits - clean)[is_word].abs().max() > 1e-2


# Before and after


def test_the_model_is_as_before(model, tokens):
    clean = model(tokens)

    with attached(model, sae_for(model)):
        assert list(model.acts_to_saes) == [hook_of(model)]

    assert_untouched(model, tokens, clean)


def test_the_model_is_as_before_after_an_exception(model, tokens):
    clean = model(tokens)

    def fail(acts: Tensor, hook: Any) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"), attached(model, sae_for(model)):
        model.run_with_hooks(tokens, fwd_hooks=[(hook_after(model), fail)])

    assert_untouched(model, tokens, clean)


def test_a_hook_point_that_the_model_does_not_have(model, tokens):
    clean = model(tokens)
    sae = sae_for(model)
    sae.cfg.metadata.hook_name = "blocks.9.hook_resid_post"

    with (
        pytest.raises(ValueError, match=r"no hook point 'blocks\.9\.hook_resid_post'"),
        attached(model, sae),
    ):
        pytest.fail("the body ran")

    assert_untouched(model, tokens, clean)


def test_an_output_hook_that_the_model_does_not_have():
    # SAELens does not attach it, and leaves what was there.
    model = make_model()
    first, second = sae_for(model), sae_for(model, seed=5)
    second.cfg.metadata.hook_name_out = "blocks.9.hook_resid_post"
    model.add_sae(first)

    with pytest.raises(ValueError, match="no hook point"), attached(model, second):
        pytest.fail("the body ran")

    assert model.acts_to_saes == {hook_of(model): first}


def test_the_hook_point_is_as_before(model, tokens):
    # SAELens leaves a new one on a Bridge, at which hooks added by name do nothing.
    seen = []
    point = model.hook_dict[hook_of(model)]
    expected = model.run_with_hooks(tokens, fwd_hooks=[(hook_of(model), zero)])

    with attached(model, sae_for(model)):
        pass

    again = model.hook_dict[hook_of(model)]
    assert again.name == point.name
    assert torch.equal(model.run_with_hooks(tokens, fwd_hooks=[(hook_of(model), zero)]), expected)
    with model.hooks(fwd_hooks=[(hook_of(model), lambda acts, hook: seen.append(hook.name))]):
        model(tokens)
    assert seen == [hook_of(model)]


def test_an_alias_of_a_hook_point(tmp_path, tokens):
    # The name it has on a HookedTransformer.
    bridge = make_bridge(tmp_path)
    sae = sae_for(bridge)
    expected = by_hand(bridge, sae, tokens)
    sae.cfg.metadata.hook_name = "blocks.0.hook_resid_post"

    with attached(bridge, sae):
        logits = bridge(tokens)

    torch.testing.assert_close(logits, expected)


def test_an_sae_that_was_attached_before_is_back(model, tokens):
    first, second = sae_for(model), sae_for(model, seed=5)
    expected = by_hand(model, second, tokens)
    model.add_sae(first, use_error_term=False)
    before = model(tokens)

    with attached(model, second):
        inside = model(tokens)

    torch.testing.assert_close(inside, expected)
    assert model.acts_to_saes == {hook_of(model): first}
    assert torch.equal(model(tokens), before)


def test_one_inside_another_at_the_same_hook_point(model, tokens):
    outer, inner = sae_for(model), sae_for(model, seed=5)
    clean = model(tokens)
    expected = [by_hand(model, sae, tokens) for sae in (outer, inner, outer)]

    with attached(model, outer):
        logits = [model(tokens)]
        with attached(model, inner):
            logits.append(model(tokens))
        # Special tokens still pass by the outer one.
        logits.append(model(tokens))

    torch.testing.assert_close(logits, expected)
    assert_untouched(model, tokens, clean)


def test_one_inside_another_that_replaces_every_position(model, tokens):
    outer, inner = sae_for(model), sae_for(model, seed=5)
    expected = by_hand(model, inner, tokens, ())

    with attached(model, outer), attached(model, inner, exclude_special_tokens=False):
        logits = model(tokens)

    torch.testing.assert_close(logits, expected)


def test_two_at_different_hook_points(model, tokens):
    first, second = sae_for(model), sae_for(model, seed=5)
    last = hook_of(model).replace("blocks.0", "blocks.1")
    second.cfg.metadata.hook_name = last
    is_special = torch.isin(tokens, torch.tensor(SPECIAL)).unsqueeze(-1)

    def replacement(sae: SAE[Any]) -> Any:
        return lambda acts, hook: torch.where(is_special, acts, sae.decode(sae.encode(acts)))

    expected = model.run_with_hooks(
        tokens, fwd_hooks=[(hook_of(model), replacement(first)), (last, replacement(second))]
    )

    with attached(model, first), attached(model, second):
        logits = model(tokens)

    torch.testing.assert_close(logits, expected)


def test_one_context_after_another(model, tokens):
    sae = sae_for(model)
    expected = by_hand(model, sae, tokens)

    for _ in range(2):
        with attached(model, sae):
            torch.testing.assert_close(model(tokens), expected)


@pytest.mark.parametrize("where", ["same", "other"])
def test_contexts_that_end_in_the_order_in_which_they_began(model, tokens, where):
    """As those of generators do, and of code that enters them by hand."""
    first, second, third = (sae_for(model, seed) for seed in (0, 5, 6))
    if where == "other":
        second.cfg.metadata.hook_name = hook_of(model).replace("blocks.0", "blocks.1")
    clean, point = model(tokens), get_deep_attr(model, hook_path(model, hook_of(model)))
    expected = by_hand(model, third, tokens)
    with attached(model, second):
        expected_of_second = model(tokens)

    contexts = [attached(model, sae) for sae in (first, second, third)]
    for context in contexts[:2]:
        context.__enter__()
    contexts[0].__exit__(None, None, None)
    torch.testing.assert_close(model(tokens), expected_of_second)
    contexts[2].__enter__()
    contexts[1].__exit__(None, None, None)
    torch.testing.assert_close(model(tokens), expected)
    contexts[2].__exit__(None, None, None)

    assert_untouched(model, tokens, clean)
    assert get_deep_attr(model, hook_path(model, hook_of(model))) is point
    assert "forward" not in vars(model if not is_bridge(model) else model.original_model)
    with attached(model, third):
        torch.testing.assert_close(model(tokens), expected)


# An SAE that writes to another hook point than it reads


def mlp_of(model: Model) -> tuple[str, int]:
    """Hidden activations of the MLP in block 1, and their width."""
    if is_bridge(model):
        return "blocks.1.mlp.in.hook_out", 4 * D_IN
    return "blocks.1.mlp.hook_post", 2 * D_IN


def crossing(model: Model, kind: str = "transcoder", **overrides: Any) -> Any:
    hook_out, d_out = hook_out_of(model), D_IN
    if kind == "wide":
        hook_out, d_out = mlp_of(model)
    if kind in ("transcoder", "wide"):
        return between(make_transcoder(d_out=d_out, **overrides), hook_of(model), hook_out)
    sae = between(make_clvq(d_out=d_out, decoder=kind, **overrides), hook_of(model), hook_out)
    return fit_codes(sae, model.run_with_cache(make_tokens(4, seed=9)[:, 1:])[1][hook_of(model)])


KINDS = ("transcoder", "wide", "token", "transformer")


def across_by_hand(
    model: Model,
    sae: SAE[Any],
    tokens: Tensor,
    special: Sequence[int] = SPECIAL,
    hide: bool = True,
    at_input: Any = None,
) -> Tensor:
    """Logits with what the SAE makes of the lower activations written at the upper hook point."""
    keep = ~torch.isin(tokens, torch.tensor(special, dtype=tokens.dtype))
    metadata = sae.cfg.metadata
    before = [] if at_input is None else [(metadata.hook_name, at_input)]
    read: dict[str, Tensor] = {}

    def note(acts: Tensor, hook: Any) -> None:
        read["acts"] = acts

    def replace(acts: Tensor, hook: Any) -> Tensor:
        with only_tokens(sae, keep if hide else None):
            return torch.where(keep[..., None], sae(read["acts"]), acts)

    hooks = [*before, (metadata.hook_name, note), (metadata.hook_name_out, replace)]
    return model.run_with_hooks(tokens, fwd_hooks=hooks)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("special", [True, False, [7, 11]])
def test_it_writes_to_its_other_hook_point(model, tokens, kind, special):
    tokens[:, 3], tokens[:, 6] = 7, 11
    sae = crossing(model, kind)
    ids = SPECIAL if special is True else special or ()
    expected = across_by_hand(model, sae, tokens, ids)

    with attached(model, sae, exclude_special_tokens=special):
        logits = model(tokens)
        _, cache = model.run_with_cache(tokens)

    torch.testing.assert_close(logits, expected)
    assert (logits - model(tokens)).abs().max() > 1e-2
    out = sae.cfg.metadata.hook_name_out
    assert cache[f"{out}.hook_sae_acts_post"].shape == (*tokens.shape, sae.cfg.d_sae)


def test_special_tokens_are_hidden_from_a_decoder_over_sequences(model, tokens):
    sae = crossing(model, "transformer")
    seen = across_by_hand(model, sae, tokens, hide=False)

    with attached(model, sae):
        logits = model(tokens)

    is_word = ~torch.isin(tokens, torch.tensor(SPECIAL))
    assert (logits - seen)[is_word].abs().max() > 1e-2


def test_a_clvq_vae_of_one_hook_point(model, tokens):
    sae = crossing(model, "transformer")
    sae.cfg.metadata.hook_name_out = hook_of(model)
    keep = ~torch.isin(tokens, torch.tensor(SPECIAL))

    def replace(acts: Tensor, hook: Any) -> Tensor:
        with only_tokens(sae, keep):
            return torch.where(keep[..., None], sae(acts), acts)

    expected = model.run_with_hooks(tokens, fwd_hooks=[(hook_of(model), replace)])
    sae.cfg.metadata.hook_name_out = None

    with attached(model, sae):
        logits = model(tokens)

    torch.testing.assert_close(logits, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_across_the_error_term_is_exact(model, tokens, kind):
    clean = model(tokens)
    sae = crossing(model, kind)

    with attached(model, sae, use_error_term=True):
        logits = model(tokens)
        [name] = [n for n in model.hook_dict if n.endswith("hook_sae_acts_post")]
        changed = model.run_with_hooks(tokens, fwd_hooks=[(name, zero)])

    relative = (logits - clean).norm(dim=-1) / clean.norm(dim=-1)
    assert (relative <= 1e-5).float().mean() >= 0.995
    is_word = ~torch.isin(tokens, torch.tensor(SPECIAL))
    assert (changed - clean)[is_word].abs().max() > 1e-2


def test_across_every_forward_pass_has_its_own_input_and_special_positions(model):
    sae = crossing(model, "transformer")
    batches = [make_tokens(2, 5, seed=1), make_tokens(4, 9, seed=2), make_tokens(1, 7, seed=3)]
    batches[1][:, 4] = EOS
    expected = [across_by_hand(model, sae, tokens) for tokens in batches]

    with attached(model, sae):
        # One that stops before the SAE has its turn leaves nothing behind.
        model.run_with_cache(batches[1], names_filter=[hook_of(model)], stop_at_layer=1)
        logits = [model(tokens) for tokens in batches]

    torch.testing.assert_close(logits, expected)


def test_a_single_sequence_without_batch(model):
    sae = crossing(model, "transformer")
    tokens = make_tokens(1, 6)

    with attached(model, sae):
        torch.testing.assert_close(model(tokens[0]), model(tokens))


def test_an_intervention_where_it_reads_shows_in_what_it_writes(model, tokens):
    sae = crossing(model)

    def halve(acts: Tensor, hook: Any) -> Tensor:
        return acts / 2

    expected = across_by_hand(model, sae, tokens, at_input=halve)

    with attached(model, sae):
        logits = model.run_with_hooks(tokens, fwd_hooks=[(hook_of(model), halve)])

    torch.testing.assert_close(logits, expected)


def test_across_the_model_is_as_before(model, tokens):
    clean = model(tokens)
    names = [hook_of(model), hook_out_of(model)]
    points = [model.hook_dict[name] for name in names]
    shapes = cached_shapes(model, tokens)

    def fail(acts: Tensor, hook: Any) -> None:
        raise KeyError("mine")

    with attached(model, crossing(model)):
        assert list(model.acts_to_saes) == [hook_of(model)]
    with pytest.raises(KeyError, match="mine"), attached(model, crossing(model)):
        model.run_with_hooks(
            tokens, fwd_hooks=[("unembed.hook_in", fail), (hook_after(model), fail)]
        )

    assert_untouched(model, tokens, clean)
    assert model._transcoder_output_hooks == {}
    assert all(model.hook_dict[name] is p for name, p in zip(names, points, strict=True))
    assert [point.name for point in points] == names
    assert not any(point.fwd_hooks or point._forward_hooks for point in points)
    assert cached_shapes(model, tokens) == shapes


def test_other_hooks_are_left_alone(model, tokens):
    # SAELens takes all permanent ones away where the SAE reads, and all where it writes.
    seen: list[str] = []
    sae = crossing(model)
    points = [model.hook_dict[name] for name in (hook_of(model), hook_out_of(model))]
    for point in points:
        point.add_hook(lambda acts, hook: seen.append(hook.name), is_permanent=True)

    with attached(model, sae):
        model(tokens)
        points[0].add_hook(lambda acts, hook: seen.append("added inside"), is_permanent=True)
    inside = list(seen)
    seen.clear()
    model(tokens)

    assert inside == [hook_of(model)]
    assert seen == [hook_of(model), "added inside", hook_out_of(model)]


@pytest.mark.parametrize("field", ["hook_name", "hook_name_out"])
@pytest.mark.parametrize("is_occupied", [False, True])
def test_across_a_hook_point_that_the_model_does_not_have(model, tokens, field, is_occupied):
    # Where another SAE is attached a Bridge does not look whether there is a hook to write to.
    sae, first = crossing(model), sae_for(model)
    sae.cfg.metadata[field] = "blocks.0.hook_resid_pst"
    if is_occupied:
        model.add_sae(first)
    before = model(tokens)

    with (
        pytest.raises(ValueError, match=r"no hook point 'blocks\.0\.hook_resid_pst'.*Did you mean"),
        attached(model, sae),
    ):
        pytest.fail("the body ran")

    assert model.acts_to_saes == ({hook_of(model): first} if is_occupied else {})
    assert torch.equal(model(tokens), before)


def test_an_sae_that_would_write_before_it_has_read(model, tokens):
    sae = between(make_transcoder(), hook_out_of(model), hook_of(model))
    clean = model(tokens)

    for _ in range(2):
        with (
            pytest.raises(ValueError, match="without having passed 'blocks"),
            attached(model, sae),
        ):
            model(tokens)

    assert_untouched(model, tokens, clean)


def test_what_it_writes_has_to_be_what_it_decodes(model):
    sae = crossing(model, "transformer", decoder_memory="encoder")

    for use_error_term in (True, False):
        with (
            pytest.raises(ValueError, match=r"decoder_memory='encoder'.*cannot be attached"),
            attached(model, sae, use_error_term=use_error_term),
        ):
            pytest.fail("the body ran")


@pytest.mark.parametrize("kind", [SkipTranscoder, JumpReLUSkipTranscoder])
def test_a_skip_connection_needs_the_error_term(model, tokens, kind):
    sae = between(make_transcoder(kind), hook_of(model), hook_out_of(model))
    clean = model(tokens)

    with pytest.raises(ValueError, match="without its skip connection"), attached(model, sae):
        pytest.fail("the body ran")
    with attached(model, sae, use_error_term=True):
        torch.testing.assert_close(model(tokens), clean)


@pytest.mark.parametrize("hook", [hook_of, hook_out_of])
def test_across_an_sae_that_was_attached_before_is_back(model, tokens, hook):
    # Where it reads, and where it writes.
    first, sae = sae_for(model), crossing(model)
    first.cfg.metadata.hook_name = hook(model)
    model.add_sae(first, use_error_term=False)
    before, names = model(tokens), set(model.hook_dict)

    with attached(model, sae):
        inside = model(tokens)

    assert (inside - before).abs().max() > 1e-2
    assert model.acts_to_saes == {hook(model): first}
    assert torch.equal(model(tokens), before)
    assert set(model.hook_dict) == names


def test_it_reads_what_an_sae_below_it_writes(model, tokens):
    first, sae = sae_for(model), crossing(model, "transformer")
    is_word = ~torch.isin(tokens, torch.tensor(SPECIAL))

    def rebuilt(acts: Tensor, hook: Any) -> Tensor:
        return torch.where(is_word[..., None], first(acts), acts)

    expected = across_by_hand(model, sae, tokens, at_input=rebuilt)

    with attached(model, first), attached(model, sae):
        logits = model(tokens)

    torch.testing.assert_close(logits, expected)


def test_two_that_read_the_same_and_write_elsewhere(model, tokens):
    outer, inner = crossing(model, "transformer"), crossing(model, "wide")
    attention = "blocks.1.attn.hook_out" if is_bridge(model) else "blocks.1.hook_attn_out"
    outer.cfg.metadata.hook_name_out = attention
    clean, expected = model(tokens), across_by_hand(model, outer, tokens)
    x = model.run_with_cache(tokens)[1][hook_of(model)]
    keep = ~torch.isin(tokens, torch.tensor(SPECIAL))

    def replacement(sae: SAE[Any]) -> Any:
        with only_tokens(sae, keep):
            output = sae(x)
        return lambda acts, hook: torch.where(keep[..., None], output, acts)

    both = model.run_with_hooks(
        tokens,
        fwd_hooks=[(attention, replacement(outer)), (mlp_of(model)[0], replacement(inner))],
    )

    with attached(model, outer):
        logits = [model(tokens)]
        with attached(model, inner):
            logits.append(model(tokens))
        logits.append(model(tokens))

    torch.testing.assert_close(logits, [expected, both, expected])
    assert (both - expected).abs().max() > 1e-2
    assert_untouched(model, tokens, clean)


def test_one_that_saelens_attaches_inside_at_the_same_hook_points(model, tokens):
    sae, other = crossing(model, "transformer"), crossing(model, seed=3)
    clean = model(tokens)
    expected = across_by_hand(model, sae, tokens)

    with attached(model, sae):
        with model.saes(saes=[other]):
            inside = model(tokens)
        after = model(tokens)

    torch.testing.assert_close(inside, across_by_hand(model, other, tokens, ()))
    torch.testing.assert_close(after, expected)
    assert_untouched(model, tokens, clean)


def test_across_an_alias_of_a_hook_point(tmp_path, tokens):
    bridge = make_bridge(tmp_path)
    sae = crossing(bridge, "transformer")
    expected = across_by_hand(bridge, sae, tokens)
    names = ("blocks.0.hook_resid_post", "blocks.1.hook_resid_post")
    sae.cfg.metadata.hook_name, sae.cfg.metadata.hook_name_out = names

    with attached(bridge, sae):
        logits = bridge(tokens)

    torch.testing.assert_close(logits, expected)


def test_both_names_of_one_hook_point(tmp_path, tokens):
    bridge = make_bridge(tmp_path)
    sae = sae_for(bridge)
    expected = by_hand(bridge, sae, tokens)
    sae.cfg.metadata.hook_name_out = "blocks.0.hook_resid_post"

    with attached(bridge, sae):
        logits = bridge(tokens)

    torch.testing.assert_close(logits, expected)


def test_across_text_that_is_padded(model):
    sae = crossing(model, "transformer")
    texts = ["word1", "word2 word3 word4 word5"]
    alone = [across_by_hand(model, sae, model.to_tokens(text)) for text in texts]

    with attached(model, sae):
        logits = model(texts)

    n = alone[0].shape[1]
    torch.testing.assert_close(logits[0, :n], alone[0][0])
    torch.testing.assert_close(logits[1], alone[1][0])
