"""Task vectors: the planted latents are found, and vectors are the sums that they say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from torch import Tensor

from bae_lens import BAE, task_vector
from bae_lens.stats import wilson
from bae_lens.steering import TaskVector
from tests.attach.test_attach import hook_of, hook_out_of
from tests.helpers import (
    D_IN,
    D_SAE,
    between,
    fit_codes,
    make_bae,
    make_bridge,
    make_clvq,
    make_model,
    make_tokens,
)
from tests.steering.test_contexts import ELSEWHERE, MAKE, Model, placed

UP, DOWN = 5, 7


@pytest.fixture(params=["hooked", "bridge"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Model:
    return make_model() if request.param == "hooked" else make_bridge(tmp_path)


def prompts() -> tuple[Tensor, Tensor]:
    """Queries, and before each of them what stands for demonstrations."""
    without = make_tokens(12, 4, seed=1)
    more = make_tokens(12, 5, seed=2)
    return torch.cat([more, without[:, 1:]], 1), without


def last_states(model: Model, name: str, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        return model.run_with_cache(tokens)[1][name][:, -1].flatten(1)


def planted(model: Model) -> BAE:
    """Of its bits one is on for 11 of 12 prompts with demonstrations and one without, another the other way round."""
    sae: Any = placed(make_bae(), model)
    after, before = (last_states(model, hook_of(model), tokens) for tokens in prompts())
    inputs = torch.cat([after, before])
    targets = torch.full((24, 2), -1.0)
    targets[1:12, 0], targets[12, 0] = 1, 1
    targets[0, 1], targets[13:, 1] = 1, 1
    ones = torch.cat([inputs - sae.b_dec, torch.ones(24, 1)], 1)
    with torch.no_grad():
        weights = torch.linalg.lstsq(ones.double(), targets.double(), driver="gelsd").solution
        assert (ones.double() @ weights - targets).abs().max() < 0.9
        sae.b_enc.fill_(-1e4)
        sae.W_enc[:, [UP, DOWN]] = weights[:-1].float()
        sae.b_enc[[UP, DOWN]] = weights[-1].float()
    return sae


def along(direction: Tensor, expected: Tensor, norm: Tensor) -> None:
    torch.testing.assert_close(direction, expected / expected.norm() * norm, atol=1e-4, rtol=1e-4)


def test_planted_latents_are_found_with_their_rates_and_signs(model: Model) -> None:
    sae, (after, before) = planted(model), prompts()
    found = task_vector(model, sae, after, before)

    assert [f.latent for f in found.latents] == [UP, DOWN]
    up, down = found.latents
    assert (up.rate_with, up.rate_without) == (wilson(11, 12), wilson(1, 12))
    assert (down.rate_with, down.rate_without) == (wilson(1, 12), wilson(11, 12))
    assert up.weight == pytest.approx(sae.scale[UP].item())
    assert down.weight == pytest.approx(-sae.scale[DOWN].item())
    states = [last_states(model, hook_of(model), tokens).mean(0) for tokens in (after, before)]
    torch.testing.assert_close(found.difference_of_means, states[0] - states[1])
    rows = sae.scale[:, None].detach() * sae.W_dec.detach()
    norm = found.difference_of_means.norm()
    along(found.direction, rows[UP] - rows[DOWN], norm)
    first = task_vector(model, sae, after, before, k=1)
    along(first.direction, rows[UP], norm)
    assert torch.equal(found.choose(k=1).direction, first.direction)
    assert (found.n_with, found.n_without) == (12, 12)
    assert "+0.833" in found.table().text()

    # By means a bit's weight is its rate × what it is on.
    by_mean = task_vector(model, sae, after, before, by="mean")
    assert torch.equal(found.choose(by="mean").direction, by_mean.direction)
    assert {f.latent: f.weight for f in by_mean.latents} == pytest.approx(
        {UP: 10 / 12 * sae.scale[UP].item(), DOWN: -10 / 12 * sae.scale[DOWN].item()}
    )
    # Token ids one by one, and texts: the same.
    listed = task_vector(model, sae, list(after), list(before))
    assert torch.equal(listed.direction, found.direction)
    tokenizer: Any = model.tokenizer
    one, other = ([tokenizer.decode(row[1:]) for row in tokens] for tokens in (after, before))
    assert torch.equal(model.to_tokens(other[0])[0], before[0])
    torch.testing.assert_close(task_vector(model, sae, one, other).direction, found.direction)


@pytest.mark.parametrize("name", MAKE)
def test_of_all_latents_by_means_it_is_the_difference_as_the_sae_sees_it(
    model: Model, name: str
) -> None:
    sae: Any = placed(MAKE[name](), model, name in ELSEWHERE)
    after, before = prompts()
    by_mean = task_vector(model, sae, after, before, k=None, by="mean")
    codes = []
    for tokens in (after, before):
        code = sae.encode(last_states(model, hook_of(model), tokens)).detach()
        codes.append(code if code.layout == torch.strided else code.to_dense())
    for field in ("ln_mu", "ln_std", "x_norm_coeff"):
        if hasattr(sae, field):
            delattr(sae, field)
    sae.run_time_activation_norm_fn_out = lambda x: x
    with torch.no_grad():
        decoded = [sae.decode(code.mean(0, keepdim=True))[0] for code in codes]
    norm = by_mean.difference_of_means.norm()
    along(by_mean.direction, decoded[0] - decoded[1], norm)
    if name in ELSEWHERE:
        states = [last_states(model, hook_out_of(model), t).mean(0) for t in (after, before)]
        torch.testing.assert_close(by_mean.difference_of_means, states[0] - states[1])

    # Of activations that were read already: the same.
    read = [last_states(model, hook_of(model), t) for t in (after, before)]
    targets = [last_states(model, hook_out_of(model), t) for t in (after, before)]
    written: Any = tuple(targets) if name in ELSEWHERE else None
    of_read = TaskVector.of_activations(sae, *read, k=None, by="mean", written=written)
    torch.testing.assert_close(of_read.direction, by_mean.direction)

    # By rates each is at its mean where it fires.
    by_rate = task_vector(model, sae, after, before, k=6)
    both = torch.cat(codes)
    rates = [(code != 0).double().mean(0) for code in codes]
    difference = rates[0] - rates[1]
    # Of counts, which rounding does not tell apart where they are equal.
    counts = (12 * difference).round().abs()
    assert [f.latent for f in by_rate.latents] == counts.argsort(descending=True, stable=True)[
        :6
    ].tolist()
    for f in by_rate.latents:
        mean = both[:, f.latent].sum() / (both[:, f.latent] != 0).sum()
        assert f.weight == pytest.approx((difference[f.latent].sign() * mean).item(), rel=1e-4)
        assert f.rate_with.mean == pytest.approx(rates[0][f.latent].item())


def test_controls_are_of_equal_norm_and_number(model: Model) -> None:
    after, before = prompts()
    sae: Any = placed(make_bae(n_levels=3), model)
    found = task_vector(model, sae, after, before, k=4)
    norm, mean = found.difference_of_means.norm(), found.difference_of_means
    chosen = [f.latent for f in found.latents]
    makes = [found.random_latents, found.random_signs, found.random_direction]
    for make in makes:
        for seed in range(3):
            torch.testing.assert_close(make(seed).norm(), norm)
        assert torch.equal(make(1), make(1))
    drawn = [found.random_signs(seed) for seed in range(40)]
    assert len({tuple(d.tolist()) for d in drawn}) > 8
    torch.testing.assert_close(found.direction.norm(), norm)

    equal = found.random_direction(3, equal_cosine=True)
    torch.testing.assert_close(equal.norm(), norm)
    cosine = torch.nn.functional.cosine_similarity(equal, mean, dim=0).item()
    assert cosine == pytest.approx(found.cosine, abs=1e-5)
    assert abs(found.cosine) > 0.05

    # Other latents: of no row that was chosen, with these weights.
    control = found.random_latents(2)
    rows = (sae.W_dec * sae.scale[:, None]).detach()
    solution = torch.linalg.lstsq(rows[chosen].T, control[:, None]).solution
    assert (rows[chosen].T @ solution - control[:, None]).norm() > 0.1 * norm
    one = found.choose(k=1)
    [first] = (f.latent for f in one.latents)
    similar = torch.cosine_similarity(one.random_latents(1)[None], rows).abs()
    assert similar.max() > 0.9999
    assert similar.argmax() != first
    everything = task_vector(model, sae, after, before, k=None)
    with pytest.raises(ValueError, match="too few to draw as"):
        everything.random_latents()
    assert everything.random_signs().shape == (D_IN,)


def counted(n_with: list[int], n_without: list[int], of: tuple[int, int]) -> TaskVector:
    """Of bits that are each a dimension, on in so many rows."""
    sae: Any = between(make_bae(d_in=len(n_with), d_sae=len(n_with)), hook_out=None)
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(len(n_with)))
        sae.b_enc.fill_(-0.5)
        sae.scale.fill_(1)
        sae.b_dec.zero_()
    rows = [
        (torch.arange(n)[:, None] < torch.tensor(on)).float()
        for n, on in zip(of, (n_with, n_without), strict=True)
    ]
    return TaskVector.of_activations(sae, *rows, k=None)


@pytest.mark.parametrize("by", ["rate", "mean"])
def test_equal_differences_go_by_index(by: Any) -> None:
    # All are 3/10, for which 0.8 − 0.5 and others are not the same number.
    found = counted([5, 6, 7, 8, 3, 9, 2], [2, 3, 4, 5, 0, 6, 8], (10, 10))
    order = [f.latent for f in found.choose(None, by).latents]
    assert order == [6, 0, 1, 2, 3, 4, 5]
    # Also of other numbers of prompts: 2/3 − 1/3 and 1/2 − 1/6.
    found = counted([4, 2, 3, 5], [4, 1, 2, 6], (6, 12))
    assert [f.latent for f in found.choose(None, by).latents] == [0, 2, 3, 1]
    # 1/6 is no difference from 2/12.
    assert [f.latent for f in counted([1, 3], [2, 3], (6, 12)).choose(None, by).latents] == [1]


def test_other_signs_are_neither_these_nor_the_opposite_ones() -> None:
    found = counted([5, 1], [1, 5], (6, 6))
    for seed in range(20):
        drawn = found.random_signs(seed)
        assert torch.cosine_similarity(drawn, found.direction, dim=0).abs() < 0.999
    with pytest.raises(ValueError, match="of one latent, which with another sign is its negative"):
        found.choose(1).random_signs()


def test_equal_means_have_no_direction() -> None:
    sae = between(make_bae(d_in=2), hook_out=None)
    one = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    for other in (torch.tensor([[0.0, 3.0], [0.0, -3.0]]), one * (1 - 1e-9)):
        with pytest.raises(ValueError, match=r"mean activations .* are equal"):
            TaskVector.of_activations(sae, one + 5, other + 5)


def test_codes_and_heads_of_one_each(model: Model) -> None:
    after, before = prompts()
    clean = model.run_with_cache(after)[1][hook_of(model)]
    sae = placed(fit_codes(make_clvq(decoder="token", d_out=D_IN), clean), model, elsewhere=True)
    found = task_vector(model, sae, after, before, k=None)
    codes = (sae.W_dec * sae.scale[:, None]).detach()
    weights = torch.zeros(len(codes))
    weights[[f.latent for f in found.latents]] = torch.tensor([f.weight for f in found.latents])
    assert set(weights.unique().tolist()) <= {-1.0, 0.0, 1.0}
    along(found.direction, weights @ (codes - codes.mean(0)), found.difference_of_means.norm())
    name = "blocks.0.attn.hook_z" if isinstance(model, type(make_model())) else None
    if name is None:
        return
    one: Any = make_bae(d_in=D_IN // 2)
    one.cfg.metadata.hook_name, one.cfg.metadata.hook_head_index = name, 1
    by_head = task_vector(model, one, after, before)
    states = [model.run_with_cache(t)[1][name][:, -1, 1].mean(0) for t in (after, before)]
    torch.testing.assert_close(by_head.difference_of_means, states[0] - states[1])


def test_what_makes_no_task_vector_is_said(model: Model) -> None:
    sae: Any = placed(make_bae(), model)
    after, before = prompts()

    def refused(match: str, *given: Any, of: Any = sae, **kwargs: Any) -> None:
        with pytest.raises(ValueError, match=match):
            task_vector(model, of, *given, **kwargs)

    refused("with_demonstrations must be a list of prompts; got 'word1'", "word1", before)
    refused("without must be a list of prompts", after, [])
    refused("without must be a list of prompts; got None", after, None)
    refused("token ids of one prompt each", [1, 2], before)
    refused("Prompt 1 of with_demonstrations has no token", [after[0], after[0][:0]], before)
    ended = before.clone()
    ended[3, -1] = 1
    refused("Prompt 3 of without ends with the special token 1", after, ended)
    assert task_vector(model, sae, after, ended, exclude_special_tokens=False).latents
    refused("k must be", after, before, k=0)
    refused("by must be one of rate, mean", after, before, by="share")
    refused(r"mean activations .* are equal", before, before)
    dead: Any = placed(make_bae(), model)
    with torch.no_grad():
        dead.b_enc.fill_(-1e4)
    refused("No latent fires differently", after, before, of=dead)
    sequences = make_clvq(decoder="transformer", d_out=D_IN)
    refused("whole sequences", after, before, of=placed(sequences, model, elsewhere=True))
    batch = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, k=4))
    refused("other tokens of the batch", after, before, of=placed(batch, model))
    elsewhere: Any = placed(MAKE["transcoder"](), model, elsewhere=True)
    with pytest.raises(ValueError, match="give the activations of both there too"):
        TaskVector.of_activations(elsewhere, torch.ones(2, D_IN), torch.ones(2, D_IN))
    for given, match in (
        (torch.ones(2, 3), rf"without must have shape \[n, {D_IN}\]; got \(2, 3\)"),
        (None, r"got None"),
        (torch.ones(0, D_IN), "must have a row at least"),
        (torch.full((2, D_IN), float("nan")), "finite numbers"),
    ):
        with pytest.raises(ValueError, match=match):
            TaskVector.of_activations(sae, torch.ones(2, D_IN), given)  # pyright: ignore
    with pytest.raises(ValueError, match="seed"):
        task_vector(model, sae, after, before).random_signs(-1)
