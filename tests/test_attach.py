"""``attached``: an SAE in the model's forward pass, special tokens passing by it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE, HookedSAETransformer, SAETransformerBridge
from torch import Tensor

from bae_lens.attach import attached
from tests.helpers import make_bae, make_bridge, make_model, make_tokens

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


def test_the_error_term_of_the_sae_itself_is_honoured_and_left_alone(model, tokens):
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
