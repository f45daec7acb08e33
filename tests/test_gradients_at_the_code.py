"""Gradients with respect to activations: exact ones, also where a latent is off, as attribution needs."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from sae_lens import SAE, StandardSAE, StandardSAEConfig
from torch import Tensor

from bae_lens import BAE, TopKTranscoder, TopKTranscoderConfig, TrainingBAE, attached
from tests.helpers import (
    D_IN,
    D_SAE,
    HOOK,
    HOOK_OUT,
    LENGTH,
    between,
    fit_codes,
    make_activations,
    make_bae,
    make_bridge,
    make_clvq,
    make_model,
    make_pairs,
    make_tokens,
    make_training_bae,
    make_training_clvq,
)

POST, PRE = "hook_sae_acts_post", "hook_sae_acts_pre"
BRIDGE_HOOKS = ("blocks.0.hook_out", "blocks.1.hook_out")


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


def sequences() -> Tensor:
    return make_pairs(8 * LENGTH)[0].reshape(-1, LENGTH, D_IN)


def measure(out: Tensor) -> Tensor:
    """A number that depends on every entry of the output, and not linearly."""
    weight = torch.linspace(-1, 2, out.numel()).reshape(out.shape).to(out.dtype)
    return (out.tanh() * weight).sum()


def plain_bae(sae: Any, acts: Tensor) -> Tensor:
    return acts @ sae.W_dec.detach() + sae.b_dec.detach()


def plain_clvq(sae: Any, acts: Tensor) -> Tensor:
    """From the decoder's own parts: each token's code is a sum of the codebook's rows."""
    codes = torch.einsum("btk,kd->btd", acts / sae.scale, sae.codebook.to(acts.dtype))
    return sae.target_mean + sae.target_scale * sae.decoder(codes)


CASES: dict[str, tuple[Any, Any]] = {
    "bae": (make_bae, plain_bae),
    "bae_training": (make_training_bae, plain_bae),
    "clvq_token": (lambda: make_clvq(decoder="token"), plain_clvq),
    "clvq_transformer": (lambda: make_clvq(decoder="transformer"), plain_clvq),
    "clvq_training_token": (lambda: make_training_clvq(decoder="token"), plain_clvq),
    "clvq_predictive": (
        lambda: make_clvq(decoder="token", encoder="predictive", predictor_hidden=20),
        plain_clvq,
    ),
    "clvq_training_predictive": (
        lambda: make_training_clvq(decoder="token", encoder="predictive"),
        plain_clvq,
    ),
    "clvq_training_transformer": (lambda: make_training_clvq(decoder="transformer"), plain_clvq),
}


def gradients(sae: SAE[Any], x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """What comes out, and what backward hooks at each hook point are given."""
    grads: dict[str, Tensor] = {}
    hooks: list[Any] = [
        (name, lambda grad, hook: grads.__setitem__(hook.name, grad.clone()))
        for name in sae.hook_dict
    ]
    with sae.hooks(bwd_hooks=hooks):
        out = sae(x)
        measure(out).backward()
    return out.detach(), grads


@pytest.mark.parametrize("name", CASES)
def test_it_is_that_of_a_plain_reference(name):
    make, plain = CASES[name]
    sae, x = make(), sequences()
    out, grads = gradients(sae, x)
    acts = sae.encode(x).detach().requires_grad_()
    expected_out = plain(sae, acts)
    measure(expected_out).backward()
    torch.testing.assert_close(out, expected_out.detach(), rtol=1e-4, atol=1e-5)
    assert acts.grad is not None
    torch.testing.assert_close(grads[POST], acts.grad, rtol=1e-4, atol=1e-5)
    # Where a latent is off there is one, too.
    assert (grads[POST][acts == 0] != 0).float().mean() > 0.99
    assert {POST, PRE, "hook_sae_recons", "hook_sae_output"} <= grads.keys()


@pytest.mark.parametrize("name", CASES)
def test_it_is_what_a_little_more_of_a_latent_does(name):
    make, _ = CASES[name]
    sae, x = make().to(torch.float64), sequences().double()
    _, grads = gradients(sae, x)
    acts = sae.encode(x).detach()
    for at in ((0, 0, 1), (3, 5, 7), (7, 2, 4)):
        step = torch.zeros_like(acts)
        step[at] = 1e-6
        with torch.no_grad():
            slope = (measure(sae.decode(acts + step)) - measure(sae.decode(acts - step))) / 2e-6
        assert grads[POST][at].item() == pytest.approx(slope.item(), rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("name", CASES)
def test_activations_are_what_they_were_and_without_gradients_nothing_is_built(name):
    sae, x = CASES[name][0](), sequences()
    with torch.no_grad():
        pre = sae.run_with_cache(x)[1][PRE]
        acts, out = sae.encode(x), sae(x)
    assert acts.grad_fn is None
    assert out.grad_fn is None
    if isinstance(sae, (BAE, TrainingBAE)):
        expected = (pre > 0).to(pre.dtype) * sae.scale
    else:
        expected = torch.nn.functional.one_hot(pre.argmax(-1), pre.shape[-1]) * sae.scale
    assert torch.equal(acts, expected)
    assert torch.equal(sae.encode(x), acts)
    assert torch.equal(sae(x), out)
    assert sae.encode(x).requires_grad
    sae.requires_grad_(False)
    assert not sae.encode(x).requires_grad


@pytest.mark.parametrize("surrogate", ["sigmoid", "identity", "paper"])
@pytest.mark.parametrize("temperature", [0.3, 2.0])
def test_below_the_code_it_is_the_surrogate_of_the_training(tmp_path, surrogate, temperature):
    trained = make_training_bae(surrogate=surrogate, temperature=temperature)
    trained.firing_rate.fill_(0.1)
    trained.n_updates.fill_(1)
    trained.save_inference_model(tmp_path)
    saved = SAE.load_from_disk(tmp_path)
    grads = []
    for sae in (trained, saved):
        x = make_activations(50).requires_grad_()
        measure(sae(x)).backward()
        grads.append(x.grad)
    assert isinstance(saved, BAE)
    assert grads[0].abs().max() > 0
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "details",
    [None, [], "x", {"surrogate": "tanh"}, {"surrogate": ["a"], "temperature": "warm"}]
    + [{"temperature": value} for value in (0, -1, float("nan"), float("inf"), True, None)],
    ids=repr,
)
def test_metadata_that_says_no_surrogate_leaves_the_default(details):
    expected, x = make_bae(), make_activations(20)
    cfg = copy.deepcopy(expected.cfg)
    cfg.metadata.training_architecture_details = details
    sae = BAE(cfg)
    sae.load_state_dict(expected.state_dict())
    for one in (expected, sae):
        one.zero_grad()
        measure(one(x)).backward()
    assert torch.equal(sae.W_enc.grad, expected.W_enc.grad)  # pyright: ignore[reportArgumentType]
    assert sae.activation_fn.keywords == {"surrogate": "sigmoid", "temperature": 0.5}  # pyright: ignore[reportFunctionMemberAccess]


@pytest.mark.parametrize("decoder", ["token", "transformer"])
def test_which_code_is_nearest_has_no_gradient(decoder):
    sae, x = make_clvq(decoder=decoder), sequences().requires_grad_()
    _, grads = gradients(sae, x)
    assert not grads[PRE].any()
    assert x.grad is not None
    assert not x.grad.any()


def test_tokens_that_are_hidden_from_a_decoder_have_none():
    sae, x = make_clvq(decoder="transformer"), sequences()
    valid = torch.ones(x.shape[:2], dtype=torch.bool)
    valid[:, 2] = False
    with sae.only_tokens(valid):
        _, grads = gradients(sae, x)
    assert not grads[POST][:, 2].any()
    assert (grads[POST][:, 3] != 0).float().mean() > 0.99


@pytest.mark.parametrize("name", ["bae", "bae_training"])
def test_with_the_error_term_the_output_is_the_input_and_the_gradient_that_of_the_decoder(name):
    sae, x = CASES[name][0](), make_activations(30)
    with pytest.warns(DeprecationWarning, match="use_error_term"):
        sae.use_error_term = True
    out, grads = gradients(sae, x)
    torch.testing.assert_close(out, x, rtol=1e-5, atol=1e-5)
    expected = grads["hook_sae_output"] @ sae.W_dec.T
    torch.testing.assert_close(grads[POST], expected, rtol=1e-4, atol=1e-5)


def saes(hooks: tuple[str, str]) -> dict[str, Any]:
    activations = make_model().run_with_cache(make_tokens())[1]
    torch.manual_seed(3)
    return {
        "standard": between(StandardSAE(StandardSAEConfig(d_in=D_IN, d_sae=D_SAE)), hooks[0], None),
        "bae": between(make_bae(), hooks[0], None),
        "bae_training": between(make_training_bae(), hooks[0], None),
        "topk": between(
            TopKTranscoder(TopKTranscoderConfig(d_in=D_IN, d_sae=D_SAE, d_out=D_IN, k=5)), *hooks
        ),
        **{
            decoder: between(fit_codes(make_clvq(d_out=D_IN, decoder=decoder), activations[HOOK]), *hooks)
            for decoder in ("token", "transformer")
        },
    }  # fmt: skip


def loss_and_gradient(
    model: Any, point: str, tokens: Tensor, change: Any = None
) -> tuple[float, Tensor, Tensor]:
    """The model's loss, activations at a hook point and the loss's gradient there."""
    found: dict[str, Tensor] = {}

    def keep(acts: Tensor, hook: Any) -> Tensor:
        found["acts"] = acts if change is None else change(acts)
        return found["acts"]

    hooks = {
        "fwd_hooks": [(point, keep)],
        "bwd_hooks": [(point, lambda grad, hook: found.__setitem__("grad", grad.clone()))],
    }
    with model.hooks(**hooks):
        loss = model(tokens, return_type="loss")
        loss.backward()
    return loss.item(), found["acts"].detach(), found.get("grad", torch.zeros(()))


@pytest.mark.parametrize("use_error_term", [True, False])
@pytest.mark.parametrize("kind", ["HookedSAETransformer", "SAETransformerBridge"])
@pytest.mark.parametrize(
    "name", ["standard", "bae", "bae_training", "topk", "token", "transformer"]
)
def test_attached_it_is_that_of_a_leaf_put_there_by_hand(tmp_path, kind, name, use_error_term):
    hooks = (HOOK, HOOK_OUT) if kind == "HookedSAETransformer" else BRIDGE_HOOKS
    model: Any = make_model() if hooks[0] == HOOK else make_bridge(tmp_path)
    tokens, sae = make_tokens(), saes(hooks)[name]
    point = f"{sae.cfg.metadata.hook_name_out or hooks[0]}.{POST}"
    leaf: dict[str, Tensor] = {}

    def put_leaf(acts: Tensor) -> Tensor:
        return leaf.setdefault("acts", acts.detach().requires_grad_())

    with attached(model, sae, use_error_term=use_error_term):
        loss, acts, grad = loss_and_gradient(model, point, tokens)
        same_loss, _, _ = loss_and_gradient(model, point, tokens, put_leaf)
    assert loss == pytest.approx(same_loss, rel=1e-6)
    assert torch.equal(acts, leaf["acts"].detach())
    expected = leaf["acts"].grad
    assert expected is not None
    torch.testing.assert_close(grad, expected, rtol=1e-3, atol=1e-6)
    assert grad[acts == 0].abs().max() > 1e-5


def on_the_way(acts: Tensor, other: Tensor, share: float) -> Tensor:
    """Between ``other`` and ``acts``, in the graph of ``acts``, where the gradient is read."""
    return acts + ((1 - share) * (other - acts)).detach()


@pytest.mark.parametrize("name", ["bae", "token"])
def test_integrated_gradients_add_up_to_what_the_code_does(name):
    model, tokens, sae = make_model(), make_tokens(), saes((HOOK, HOOK_OUT))[name]
    point = f"{sae.cfg.metadata.hook_name_out or HOOK}.{POST}"
    # From the activations of other text, so that there is a code at either end.
    with attached(model, sae, use_error_term=True):
        end, acts, _ = loss_and_gradient(model, point, tokens)
        other = acts.roll(1, 0)
        begin, _, _ = loss_and_gradient(model, point, tokens, lambda _: other)
        total = torch.zeros_like(acts)
        n = 64
        for i in range(n):
            path = partial(on_the_way, other=other, share=(i + 0.5) / n)
            total += loss_and_gradient(model, point, tokens, path)[2] / n
    attribution = (total * (acts - other)).sum().item()
    assert abs(end - begin) > 1e-2
    assert attribution == pytest.approx(end - begin, rel=2e-2)


def test_the_attribution_of_a_bit_is_what_its_ablation_does_to_what_is_linear_in_it():
    sae, x = make_bae(), make_activations(40)
    acts = sae.encode(x)
    metric = (sae.decode(acts) @ torch.linspace(-1, 1, D_IN)).sum(0)
    (grad,) = torch.autograd.grad(metric, acts)
    for latent in (0, 7, 30):
        without = acts.detach().clone()
        without[:, latent] = 0
        change = metric - (sae.decode(without) @ torch.linspace(-1, 1, D_IN)).sum(0)
        effect = (grad * acts)[:, latent].sum()
        torch.testing.assert_close(effect, change, rtol=1e-3, atol=1e-3)


def test_caching_hooks_hold_the_gradient():
    for sae in (make_bae(), make_clvq()):
        cache, fwd, bwd = sae.get_caching_hooks(incl_bwd=True)
        with sae.hooks(fwd_hooks=fwd, bwd_hooks=bwd):
            measure(sae(sequences())).backward()
        assert cache[f"{POST}_grad"].shape == cache[POST].shape
        assert cache[f"{POST}_grad"].any()


# Not of the transformer: torch has none of its attention on the CPU.
@pytest.mark.parametrize("name", ["bae", "bae_training", "clvq_token"])
def test_second_derivatives_pass_the_code_too(name):
    sae, x = CASES[name][0](), sequences()
    acts = sae.encode(x)
    (grad,) = torch.autograd.grad(measure(sae.decode(acts)), acts, create_graph=True)
    (second,) = torch.autograd.grad(grad.square().sum(), acts)
    assert second.isfinite().all()
    assert second.any()
