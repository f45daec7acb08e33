"""Attributions against captum's, autograd and what they have to add up to."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from captum.attr import IntegratedGradients
from torch import Tensor

from bae_lens.concept_ablation.attribution import attribute
from bae_lens.concept_ablation.passes import Batch, Reader, pool
from tests.concept_ablation.helpers import LOWER_HOOK, UPPER_HOOK, make_reader, noise
from tests.helpers import make_headless_encoder

D, N_STEPS = 24, 7


@pytest.fixture(scope="module", params=["last", "first", "mean"])
def reader(request) -> Reader:
    return make_reader(readout=request.param)


@pytest.fixture(scope="module")
def plain() -> Reader:
    return make_reader(readout="mean")


def batch_of(reader: Reader) -> Batch:
    return next(iter(reader.batches("")))


def score(vectors: Tensor, index: Tensor) -> Tensor:
    """Linear, and another one for each text."""
    return (vectors * noise(20, vectors.shape[1], seed=3)[index]).sum(1)


def baseline_for(reader: Reader, batch: Batch) -> Tensor:
    lower = reader.run(batch).lower
    return 0.5 * noise(*lower.shape, seed=4).to(lower)


def as_function(reader: Reader, batch: Batch) -> Any:
    """The score of lower activations, for a caller who repeats the batch."""

    def function(lower: Tensor) -> Tensor:
        parts = [
            score(pool(reader.run(batch, lambda _: part).upper, batch.read), batch.examples)  # noqa: B023
            for part in lower.split(len(batch.examples))
        ]
        return torch.cat(parts)

    return function


def test_integrated_gradients_are_captums(reader):
    batch = batch_of(reader)
    baseline = baseline_for(reader, batch)

    ours = attribute(reader, batch, score, baseline, n_steps=N_STEPS)

    lower = reader.run(batch).lower.detach()
    start = torch.where(batch.at[..., None], baseline, lower)
    theirs: Any = IntegratedGradients(as_function(reader, batch)).attribute(
        lower, start, n_steps=N_STEPS, method="gausslegendre"
    )
    torch.testing.assert_close(ours.scores, theirs.sum(-1).detach(), atol=1e-4, rtol=1e-4)
    assert ours.scores.abs().max() > 0.1
    assert torch.equal(ours.lower, lower)


def test_of_first_order_it_is_the_gradient_times_the_change(reader):
    batch = batch_of(reader)
    baseline = baseline_for(reader, batch)

    ours = attribute(reader, batch, score, baseline, "gradient_x_activation", n_steps=N_STEPS)

    lower = reader.run(batch).lower.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(as_function(reader, batch)(lower).sum(), lower)
    expected = (gradient * (lower - baseline)).sum(-1) * batch.at
    torch.testing.assert_close(ours.scores, expected.detach(), atol=1e-5, rtol=1e-4)


def test_many_steps_add_up_to_the_whole(plain):
    batch = batch_of(plain)
    baseline = baseline_for(plain, batch)

    few, many = (attribute(plain, batch, score, baseline, n_steps=n) for n in (1, 24))

    function = as_function(plain, batch)
    lower = plain.run(batch).lower
    whole = function(lower) - function(torch.where(batch.at[..., None], baseline, lower))
    torch.testing.assert_close(many.scores.sum(1), whole.detach(), atol=1e-4, rtol=1e-3)
    assert many.missing.max() < 1e-2
    assert few.missing.max() > 10 * many.missing.max()


@pytest.mark.parametrize("method", ["integrated_gradients", "gradient_x_activation"])
@pytest.mark.parametrize("hook_names", [(LOWER_HOOK,) * 2, ("blocks.1.hook_mlp_out", UPPER_HOOK)])
def test_nothing_is_missing_of_what_is_linear(method, hook_names):
    reader = make_reader(readout="mean", hook_names=hook_names)
    batch = batch_of(reader)

    found = attribute(reader, batch, score, baseline_for(reader, batch), method, n_steps=1)

    assert found.missing.max() < 1e-4


def test_where_nothing_is_ablated_nothing_is_attributed(reader):
    for batch in reader.batches(""):
        found = attribute(reader, batch, score, baseline_for(reader, batch), n_steps=2)

        assert (found.scores[~batch.at] == 0).all()
        assert reader.readout == "first" or not batch.at[:, 0].any()  # BOS
        # A token sees nothing after it, so that what is read first is all that counts.
        if reader.readout == "first":
            assert (found.scores[:, 1:] == 0).all()
        else:
            assert (found.scores[batch.at] != 0).all()


def test_an_encoders_first_token_is_attributed_to_what_it_sees():
    reader = make_reader(
        make_headless_encoder(),
        ["word1 word2 word3", "word4 word5"],
        ("blocks.0.hook_out", "blocks.1.hook_out"),
        "first",
    )
    batch = batch_of(reader)

    found = attribute(reader, batch, score, baseline_for(reader, batch), n_steps=8)

    assert (found.scores[batch.at] != 0).all()
    assert (found.scores[~batch.at] == 0).all()
    assert found.missing.max() < 0.05


def test_the_model_is_left_as_it_was(plain):
    model = plain.model
    parameters = list(model.parameters())
    parameters[0].requires_grad_(False)
    before = [p.requires_grad for p in parameters]

    with torch.no_grad():
        attribute(plain, batch_of(plain), score, baseline_for(plain, batch_of(plain)), n_steps=2)

    assert [p.requires_grad for p in parameters] == before
    assert any(before)
    assert all(p.grad is None for p in parameters)
    assert all(not point.fwd_hooks for point in model.hook_dict.values())
    parameters[0].requires_grad_(True)


def test_gradients_are_asked_for_again_after_an_error(plain):
    def broken(vectors: Tensor, index: Tensor) -> Tensor:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        attribute(plain, batch_of(plain), broken, baseline_for(plain, batch_of(plain)))
    assert all(p.requires_grad for p in plain.model.parameters())


def test_a_score_that_does_not_depend_on_the_lower_hook_is_refused():
    reader = make_reader(hook_names=(UPPER_HOOK, LOWER_HOOK))
    batch = batch_of(reader)
    with pytest.raises(ValueError, match=f"{LOWER_HOOK!r} does not depend on .{UPPER_HOOK}"):
        attribute(reader, batch, score, baseline_for(reader, batch))
