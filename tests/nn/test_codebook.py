from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from bae_lens.distributed import own_rows
from bae_lens.nn import (
    EMACodebook,
    sample_codes,
    squared_distances,
    straight_through,
)
from tests.distributed.ranks import on_ranks, results_of
from tests.helpers import grad_of

N, D, K = 64, 6, 9
FLOATS = ("codebook", "ema_count", "ema_sum", "nearest_count", "nearest_distance")
WHOLE = ("steps_unused", "n_updates", "n_revived")


def vectors(n: int = N, d: int = D, seed: int = 0, offset: float = 0.5) -> Tensor:
    return offset + torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_codebook(n_codes: int = K, d: int = D, seed: int = 1, **settings: Any) -> EMACodebook:
    """Codes of random places and counts, none revived unless asked for."""
    book = EMACodebook(n_codes, d, **{"revive_after": None, **settings})
    counts = 1 + torch.rand(n_codes, generator=generator(seed + 1))
    book.set_codebook(vectors(n_codes, d, seed), counts)
    return book


def state(book: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(dict(book.state_dict()))


def assert_same_state(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def assert_consistent(book: EMACodebook) -> None:
    torch.testing.assert_close(book.ema_sum, book.codebook * book.ema_count[:, None])


def step(book: EMACodebook, z: Tensor, mask: Tensor | None = None, **sampling) -> Tensor:
    quantized = book.quantize(z, mask, **sampling)
    book.update(z, quantized.indices, mask, quantized.distance, quantized.nearest)
    return quantized.indices


# A snapshot


@pytest.mark.parametrize("sampling", [{}, {"top_k": 4, "temperature": 2.0}])
@pytest.mark.parametrize("shape", [(N,), (4, 16), (2, 8, 4), ()])
def test_quantized_rows_equal_the_snapshots_rows(shape, sampling):
    book, z = make_codebook(), vectors().reshape(-1)[: torch.Size(shape).numel() * D]
    z = z.reshape(*shape, D)
    snapshot = book.codebook.clone()

    quantized = book.quantize(z, **sampling)
    book.update(z, quantized.indices, distance=quantized.distance)

    assert not torch.equal(book.codebook, snapshot)
    assert torch.equal(quantized.codes, snapshot[quantized.indices])
    distances = squared_distances(z, snapshot)
    assert torch.equal(quantized.nearest, distances.argmin(-1))
    assert torch.equal(quantized.distance, distances.amin(-1))
    assert quantized.indices.shape == quantized.nearest.shape == quantized.distance.shape == shape


def test_quantizing_changes_nothing_in_train_mode_or_eval_mode():
    book = make_codebook(revive_after=1)
    before = state(book)

    for mode in (True, False):
        book.train(mode)
        quantized = book.quantize(vectors().requires_grad_(), top_k=3)
        assert not quantized.codes.requires_grad

    assert_same_state(state(book), before)


def test_the_sampler_divides_by_the_running_mean_of_the_nearest_distance():
    book, z = make_codebook(), vectors()
    step(book, z)
    distances = squared_distances(z, book.codebook)
    expected = sample_codes(distances, 4, 0.7, book.nearest_distance, generator())

    indices = book.quantize(z, top_k=4, temperature=0.7, generator=generator()).indices

    assert torch.equal(indices, expected)


def test_before_the_first_update_the_sampler_divides_by_the_batchs_own():
    book, z = make_codebook(), vectors()
    distances = squared_distances(z, book.codebook)
    mask = torch.rand(N, generator=generator()) < 0.6
    own = distances.amin(-1)[mask].mean()

    indices = book.quantize(z, mask, top_k=4, generator=generator()).indices

    assert torch.equal(indices, sample_codes(distances, 4, 1.0, own, generator()))


@pytest.mark.parametrize("factor", [1e-3, 100.0])
def test_how_often_a_draw_leaves_the_nearest_code_does_not_depend_on_the_scale(factor):
    draws = []
    for scale in (1.0, factor):
        book, z = make_codebook(), scale * vectors(1000)
        book.set_codebook(scale * book.codebook, book.ema_count)
        step(book, z)
        quantized = book.quantize(z, top_k=4, generator=generator())
        draws.append((quantized.indices != quantized.nearest).float().mean().item())

    assert 0.1 < draws[0] < 0.9
    assert draws[1] == pytest.approx(draws[0], abs=0.01)


def test_the_nearest_distance_is_a_plain_mean_at_first():
    book = make_codebook()
    means = []
    for seed in range(4):
        z = vectors(seed=seed)
        means.append(book.quantize(z).distance.mean())
        step(book, z)

    torch.testing.assert_close(book.nearest_distance, torch.stack(means).mean())


def test_update_computes_the_nearest_distance_that_it_is_not_given():
    first, second = make_codebook(), make_codebook()
    z = vectors()
    quantized = first.quantize(z, top_k=4)

    first.update(z, quantized.indices, distance=quantized.distance)
    second.update(z, quantized.indices)

    assert_same_state(state(first), state(second))


def test_what_is_nearest_is_counted_apart_from_what_was_drawn():
    book, z = make_codebook(decay=0.9), vectors(20)
    mask = torch.rand(20, generator=generator()) < 0.7
    counts, drawn = [], []
    for seed in range(3):
        quantized = book.quantize(z, mask, 5, 1e6, generator(seed))
        book.update(z, quantized.indices, mask, quantized.distance, quantized.nearest)
        counts.append(torch.bincount(quantized.nearest[mask], minlength=K).float())
        drawn.append(torch.bincount(quantized.indices[mask], minlength=K).float())
        # A plain mean over batches at first.
        torch.testing.assert_close(book.nearest_count, torch.stack(counts).mean(0))

    assert not torch.equal(torch.stack(counts), torch.stack(drawn))


def test_the_count_of_the_nearest_later_forgets_as_the_codes_do():
    book, z = make_codebook(decay=0.9), vectors()
    book.n_updates.fill_(1000)
    book.nearest_count.fill_(7.0)

    nearest = torch.bincount(step(book, z), minlength=K)

    torch.testing.assert_close(book.nearest_count, 0.9 * 7.0 + 0.1 * nearest)


def test_where_nothing_was_drawn_the_indices_are_the_nearest():
    first, second = make_codebook(revive_after=1), make_codebook(revive_after=1)
    z = vectors(8)
    quantized = first.quantize(z)

    first.update(z, quantized.indices, nearest=quantized.nearest, generator=generator())
    second.update(z, quantized.indices, generator=generator())

    assert_same_state(state(first), state(second))


# Running means


def definition(book: EMACodebook, z: Tensor, indices: Tensor) -> dict[str, Tensor]:
    """One update without revival, in float64, code by code."""
    gamma, epsilon = book.decay, book.epsilon
    counts, sums = [], []
    for k in range(book.n_codes):
        mine = z.double()[indices == k]
        counts.append(gamma * book.ema_count[k].double() + (1 - gamma) * len(mine))
        sums.append(gamma * book.ema_sum[k].double() + (1 - gamma) * mine.sum(0))
    count, total = torch.stack(counts), torch.stack(sums)
    ratio = count.sum() / (count.sum() + book.n_codes * epsilon)
    count, total = (
        (count + epsilon) * ratio,
        (total + epsilon * book.codebook.double()) * ratio,
    )
    return {"ema_count": count, "ema_sum": total, "codebook": total / count[:, None]}


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("epsilon", [1e-5, 0.3])
def test_an_update_equals_its_definition(decay, epsilon):
    book, z = make_codebook(decay=decay, epsilon=epsilon), vectors()
    indices = torch.randint(K - 2, (N,), generator=generator())  # two codes get nothing
    expected = definition(book, z, indices)

    book.update(z, indices)

    for name, value in expected.items():
        torch.testing.assert_close(getattr(book, name).double(), value, rtol=1e-5, atol=1e-6)
    assert_consistent(book)


def test_decay_0_gives_batch_means_and_leaves_unused_codes_where_they_are():
    book, z = make_codebook(decay=0.0), vectors()
    indices = torch.randint(K - 2, (N,), generator=generator())
    before = book.codebook.clone()

    book.update(z, indices)

    means = torch.stack([z[indices == k].mean(0) for k in range(K - 2)])
    torch.testing.assert_close(book.codebook[:-2], means, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(book.codebook[-2:], before[-2:])


def test_codes_can_be_means_of_other_values_than_they_are_chosen_by():
    book, z = make_codebook(decay=0.0), vectors()
    values = 7 + 2 * vectors().flip(0)
    indices = torch.randint(K, (N,), generator=generator())
    mask = torch.rand(N, generator=generator()) < 0.7
    junk = torch.where(mask[:, None], values, float("nan"))

    book.update(z, indices, mask, values=junk)

    means = torch.stack([values[mask & (indices == k)].mean(0) for k in range(K)])
    torch.testing.assert_close(book.codebook, means, rtol=1e-4, atol=1e-4)
    assert_consistent(book)
    with pytest.raises(ValueError, match=r"values must be \(64, .*; got \(63,"):
        book.update(z, indices, values=values[1:])


def test_codes_are_revived_among_the_vectors_and_not_the_values():
    book, z = dead_codebook(revive_after=1, max_revived=K), vectors()
    quantized = book.quantize(z)

    book.update(z, quantized.indices, values=z + 100)

    assert (book.codebook[1:, None] == z).all(-1).any(1).all()


@pytest.mark.parametrize("epsilon", [1e-5, 0.1, 10.0])
def test_smoothing_conserves_the_total(epsilon):
    book, z = make_codebook(decay=0.9, epsilon=epsilon), vectors()

    for _ in range(50):
        expected = 0.9 * book.ema_count.sum() + 0.1 * N
        step(book, z)
        torch.testing.assert_close(book.ema_count.sum(), expected, rtol=1e-5, atol=0)

    assert_consistent(book)


def test_codes_without_vectors_do_not_shrink():
    book = make_codebook()
    far = book.codebook[3] + 100.0
    book.codebook[3] = far
    book.set_codebook(book.codebook, book.ema_count)

    for seed in range(3000):
        step(book, vectors(8, seed=seed))

    torch.testing.assert_close(book.codebook[3], far, rtol=1e-4, atol=0)
    assert_consistent(book)


def test_a_fresh_codebook_starts_consistent_and_one_step_throws_no_code_out():
    torch.manual_seed(0)
    book = EMACodebook(50, D)
    before = book.codebook.clone()
    assert_consistent(book)
    assert (book.ema_count == 1).all()

    indices = step(book, vectors(20))

    used = torch.bincount(indices, minlength=50) > 0
    torch.testing.assert_close(book.codebook[~used], before[~used])
    assert (book.codebook - before).norm(dim=1).max() < 1


def test_codes_find_a_planted_mixture():
    centers = 6 * vectors(4, seed=3)
    book = make_codebook(4, decay=0.9)
    book.set_codebook(centers + 0.5, torch.ones(4))
    for seed in range(100):
        which = torch.randint(4, (N,), generator=generator(seed))
        step(book, centers[which] + 0.1 * torch.randn(N, D, generator=generator(seed)))

    torch.testing.assert_close(book.codebook, centers, rtol=0, atol=0.1)


def test_gradients_do_not_enter_the_buffers():
    book = make_codebook(revive_after=1)
    z = vectors().requires_grad_()

    step(book, z)

    assert not any(buffer.requires_grad for buffer in book.buffers())


# The mask


@pytest.mark.parametrize("junk", [float("nan"), float("inf"), 1e6, 0.0])
def test_masked_positions_contribute_nothing(junk):
    mask = torch.rand(4, 16, generator=generator()) < 0.7
    z = vectors().reshape(4, 16, D)
    z_junk = torch.where(mask[..., None], z, junk)
    masked, alone = make_codebook(), make_codebook()

    for _ in range(3):
        quantized = masked.quantize(z_junk, mask)
        masked.update(z_junk, quantized.indices, mask, quantized.distance)
        step(alone, z[mask])

    for name in FLOATS + WHOLE:
        torch.testing.assert_close(getattr(masked, name), getattr(alone, name))


def test_vectors_of_zeros_count_unless_masked():
    book, z = make_codebook(decay=0.0), torch.zeros(10, D)

    indices = step(book, z)

    assert book.ema_count[indices[0]] == pytest.approx(10, rel=1e-3)
    torch.testing.assert_close(book.codebook[indices[0]], torch.zeros(D), rtol=0, atol=1e-4)


@pytest.mark.parametrize("decay", [0.0, 0.99])
@pytest.mark.parametrize("n", [0, 8])
def test_a_batch_without_valid_vectors_changes_nothing(decay, n):
    book = make_codebook(decay=decay, revive_after=1)
    step(book, vectors())
    before = state(book)

    step(book, vectors(n), torch.zeros(n, dtype=torch.bool))

    assert_same_state(state(book), before)


def test_masks_and_indices_of_another_shape_are_refused():
    book, z = make_codebook(), vectors().reshape(4, 16, D)
    indices = torch.zeros(4, 16, dtype=torch.int64)

    for mask in (torch.ones(4, dtype=torch.bool), torch.ones(4, 16)):
        with pytest.raises(ValueError, match=r"must be boolean .* \(4, 16\); got torch"):
            book.quantize(z, mask)
        with pytest.raises(ValueError, match=r"must be boolean .* \(4, 16\); got torch"):
            book.update(z, indices, mask)
    with pytest.raises(ValueError, match=r"indices must have one entry .* \(4, 16\); got \(64,\)"):
        book.update(z, indices.reshape(-1))
    with pytest.raises(ValueError, match=r"distance must have one entry"):
        book.update(z, indices, distance=torch.zeros(4))
    with pytest.raises(ValueError, match=r"nearest must have one entry"):
        book.update(z, indices, nearest=indices[0])


# Revival


def dead_codebook(**settings: Any) -> EMACodebook:
    """Code 0 takes everything; the others are far away."""
    book = EMACodebook(K, D, **{"revive_after": 3, "max_revived": 2, **settings})
    codes = 1000.0 * torch.ones(K, D) * torch.arange(K)[:, None]
    book.set_codebook(codes, torch.ones(K))
    return book


def test_unused_codes_are_moved_onto_live_vectors_a_few_a_step():
    book, z = dead_codebook(), vectors()
    before = book.codebook.clone()

    revived = []
    for _ in range(8):
        indices = step(book, z)
        revived.append(int(book.n_revived))
        assert_consistent(book)
        if revived[-1] == 0:
            torch.testing.assert_close(book.codebook[1:], before[1:])
            assert indices.max() == 0

    assert revived == [0, 0, 2, 4, 6, 8, 8, 8]
    distance = (book.codebook[:, None] - z).norm(dim=-1).amin(1)
    assert distance.max() < 3
    assert (book.ema_count > 0).all()


def test_a_revived_code_is_a_vector_of_this_batch_counted_as_its_first():
    book, z = dead_codebook(revive_after=1, max_revived=K), vectors()
    step(book, z)

    is_row = (book.codebook[1:, None] == z).all(-1)
    assert is_row.any(1).all()
    assert is_row.any(0).sum() == K - 1  # each onto another
    torch.testing.assert_close(book.ema_count[1:], torch.full((K - 1,), 0.01))
    assert int(book.n_revived) == K - 1
    assert not book.steps_unused.any()
    assert_consistent(book)


def test_codes_are_revived_onto_valid_vectors_only():
    book, z = dead_codebook(revive_after=1, max_revived=K), vectors()
    mask = torch.zeros(N, dtype=torch.bool)
    mask[[5, 40, 63]] = True
    z[~mask] = float("nan")

    quantized = book.quantize(z, mask)
    book.update(z, quantized.indices, mask, quantized.distance)

    assert int(book.n_revived) == 3
    is_row = (book.codebook[:, None] == z[mask]).all(-1)
    assert is_row.any(0).all()
    assert book.codebook.isfinite().all()


def test_codes_in_use_are_not_revived():
    book, z = make_codebook(revive_after=1, max_revived=K), vectors()
    book.set_codebook(z[:K], torch.ones(K))

    step(book, z)

    assert int(book.n_revived) == 0
    assert not book.steps_unused.any()


def test_a_code_that_is_only_drawn_is_dead_and_revived():
    book, z = dead_codebook(revive_after=2, max_revived=1), vectors()
    drawn = torch.ones(N, dtype=torch.int64)

    for _ in range(2):
        book.update(z, drawn, nearest=torch.zeros_like(drawn))

    assert int(book.n_revived) == 1
    assert book.steps_unused[0] == 0
    assert sorted(book.steps_unused.tolist()) == [0, 0] + [2] * (K - 2)


@pytest.mark.parametrize("settings", [{"revive_after": None}, {"max_revived": 0}])
def test_revival_can_be_turned_off(settings):
    book, z = dead_codebook(**settings), vectors()
    for _ in range(6):
        step(book, z)

    assert int(book.n_revived) == 0
    assert book.steps_unused.tolist() == [0] + [6] * (K - 1)


def test_more_codes_than_vectors():
    book = EMACodebook(50, D, revive_after=1, max_revived=50)
    book.set_codebook(1000.0 + vectors(50), torch.ones(50))

    step(book, vectors(3))

    assert int(book.n_revived) == 3


def test_revival_brings_every_code_into_use():
    book = EMACodebook(20, D, revive_after=5, max_revived=3)
    book.set_codebook(torch.cat([vectors(1), 1000.0 + vectors(19)]), torch.ones(20))
    z = vectors(400)
    for _ in range(120):
        step(book, z)

    assert len(book.quantize(z).indices.unique()) == 20


# One code, and settings


@pytest.mark.parametrize("sampling", [{}, {"top_k": 10}])
def test_one_code_is_the_running_mean_of_all(sampling):
    book, z = EMACodebook(1, D, decay=0.0), vectors()

    indices = step(book, z, **sampling)

    assert not indices.any()
    torch.testing.assert_close(book.codebook[0], z.mean(0), rtol=1e-4, atol=1e-5)
    assert book.ema_count.item() == pytest.approx(N)


def test_top_k_above_the_number_of_codes_quantizes():
    book = make_codebook(3)

    indices = book.quantize(vectors(500), top_k=99, temperature=50.0).indices

    assert set(indices.tolist()) == {0, 1, 2}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_codes": 0}, "n_codes must be a whole number of at least 1; got 0"),
        ({"d": 0}, "d must be a whole number of at least 1; got 0"),
        ({"decay": 1.0}, "decay must be a number from 0 to below 1; got 1.0"),
        ({"decay": -0.1}, "decay must be"),
        ({"epsilon": 0.0}, "epsilon must be a positive number; got 0.0"),
        ({"revive_after": 0}, "revive_after must be a whole number of at least 1 or None"),
        ({"max_revived": -1}, "max_revived must be a whole number of at least 0"),
    ],
)
def test_settings_out_of_range_are_refused(arguments: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        EMACodebook(**{"n_codes": K, "d": D, **arguments})


def test_set_codebook_sets_all_statistics():
    book = dead_codebook(revive_after=1)
    step(book, vectors())
    codes, counts = vectors(K, seed=5), torch.arange(K).float()

    book.set_codebook(codes, counts)

    assert torch.equal(book.codebook, codes)
    assert torch.equal(book.ema_count, counts)
    assert torch.equal(book.ema_sum, codes * counts[:, None])
    statistics = (*WHOLE, "nearest_distance", "nearest_count")
    assert not any(getattr(book, name).any() for name in statistics)
    step(book, vectors())
    assert book.codebook.isfinite().all()


def test_a_known_distance_counts_as_one_batch():
    book, z = dead_codebook(revive_after=1), vectors()
    step(book, z)
    codes, counts = vectors(K, seed=5), torch.arange(K).float()

    book.set_codebook(codes, counts, torch.tensor(3.5))

    assert book.nearest_distance == 3.5
    assert torch.equal(book.nearest_count, counts)
    assert int(book.n_updates) == 1
    expected = sample_codes(squared_distances(z, codes), 4, 1.0, 3.5, generator())
    assert torch.equal(book.quantize(z, top_k=4, generator=generator()).indices, expected)
    distance = book.quantize(z).distance.mean()
    step(book, z)
    torch.testing.assert_close(book.nearest_distance, (3.5 + distance) / 2)


@pytest.mark.parametrize(
    ("codes", "counts", "message"),
    [
        (torch.zeros(K, D + 1), torch.ones(K), r"takes codes \(9, 6\) and counts \(9,\); got"),
        (torch.zeros(K, D), torch.ones(K, 1), r"takes codes \(9, 6\) and counts \(9,\); got"),
        (torch.full((K, D), float("nan")), torch.ones(K), "NaN or infinite"),
        (torch.zeros(K, D), torch.full((K,), float("inf")), "NaN or infinite"),
        (torch.zeros(K, D), -torch.ones(K), "must not be negative"),
        (torch.zeros(K, D), torch.zeros(K), "nor all zero"),
    ],
)
def test_set_codebook_refuses_what_is_no_codebook(codes, counts, message):
    book = make_codebook()
    before = state(book)

    with pytest.raises(ValueError, match=message):
        book.set_codebook(codes, counts)

    assert_same_state(state(book), before)


# Precision, device and state


@pytest.mark.parametrize(
    "cast", [lambda m: m.to(torch.bfloat16), lambda m: m.half(), lambda m: m.double()]
)
def test_moves_to_another_dtype_keep_the_statistics_float32(cast):
    book = dead_codebook(revive_after=1)
    for _ in range(300):
        step(book, vectors())
    parent = nn.Sequential(nn.Linear(2, 2), book)
    before = state(book)

    cast(parent)

    assert parent[0].weight.dtype != torch.float32
    assert_same_state(state(book), before)
    assert all(getattr(book, name).dtype == torch.float32 for name in FLOATS)
    assert all(getattr(book, name).dtype == torch.int64 for name in WHOLE)


def test_bf16_vectors_are_averaged_in_float32():
    first, second = make_codebook(), make_codebook()
    z = vectors().to(torch.bfloat16)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        quantized = first.quantize(z)
        first.update(z, quantized.indices)
    step(second, z.float())

    assert quantized.codes.dtype == torch.float32
    assert_same_state(state(first), state(second))


@pytest.mark.parametrize(("assign", "on_meta"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_state_dict_round_trip(assign, on_meta, dtype):
    book = dead_codebook(revive_after=1)
    step(book, vectors())
    saved = {name: value.to(dtype) if dtype else value for name, value in state(book).items()}

    loaded = nn.ModuleDict({"book": EMACodebook(K, D, device="meta" if on_meta else None)})
    loaded.load_state_dict({f"book.{name}": v for name, v in saved.items()}, assign=assign)
    loaded.to(dtype=torch.bfloat16, device="cpu")

    assert [buffer.dtype for buffer in loaded.buffers()] == [b.dtype for b in book.buffers()]
    expected = {name: saved[name].to(value.dtype) for name, value in book.state_dict().items()}
    assert_same_state(state(loaded["book"]), expected)


def test_a_loaded_codebook_goes_on_as_the_saved_one():
    book, loaded = dead_codebook(), EMACodebook(K, D, revive_after=3, max_revived=2)
    for seed in range(2):
        step(book, vectors(seed=seed))
    loaded.load_state_dict(state(book))

    for each in (book, loaded):
        torch.manual_seed(0)
        for seed in range(2, 6):
            step(each, vectors(seed=seed), top_k=3)

    assert int(book.n_revived) > 0
    assert_same_state(state(loaded), state(book))


def test_a_step_never_waits_for_the_device():
    # Fake tensors have no values: whatever asks for one, or for a shape that depends on one, raises.
    with FakeTensorMode():
        book = EMACodebook(K, D, revive_after=1)
        z, mask = torch.empty(4, 16, D), torch.empty(4, 16, dtype=torch.bool)
        with pytest.raises(DataDependentOutputException):
            float(z.sum())

        quantized = book.quantize(z, mask, top_k=3)
        book.update(z, quantized.indices, mask, quantized.distance)

    assert quantized.codes.shape == (4, 16, D)


def test_to_empty_gives_float32_statistics_on_the_device():
    book = EMACodebook(K, D, device="meta").to_empty(device="cpu")

    assert {(b.device.type, b.dtype) for b in book.buffers()} == {
        ("cpu", torch.float32),
        ("cpu", torch.int64),
    }


def test_compiles_whole():
    torch._dynamo.reset()
    eager, compiled = dead_codebook(revive_after=1), dead_codebook(revive_after=1)
    mask = torch.ones(N, dtype=torch.bool)
    mask[::5] = False

    def train_step(book: EMACodebook, z: Tensor) -> Tensor:
        quantized = book.quantize(z, mask, top_k=3)
        book.update(z.detach(), quantized.indices, mask, quantized.distance)
        return straight_through(z, quantized.codes)

    fast = torch.compile(train_step, backend="aot_eager", fullgraph=True)
    z = vectors().requires_grad_()
    outs = []
    for book, fn in ((eager, train_step), (compiled, fast)):
        torch.manual_seed(0)
        outs.append(torch.stack([fn(book, z) for _ in range(2)]))
        outs[-1].sum().backward()

    torch.testing.assert_close(grad_of(z), torch.full_like(z, 4.0))
    assert int(eager.n_revived) == int(compiled.n_revived) > 0
    torch.testing.assert_close(outs[0], outs[1])
    for name in FLOATS:
        torch.testing.assert_close(getattr(compiled, name), getattr(eager, name))


class LargestTensor(TorchDispatchMode):
    """Notes the largest tensor that any operation gives."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, Tensor):
                self.numel = max(self.numel, tensor.numel())
        return out


def test_an_update_holds_nothing_of_n_by_k():
    n, n_codes, d = 40, 60, 3
    book, z = make_codebook(n_codes, d), vectors(n, d)
    quantized = book.quantize(z)

    with LargestTensor() as largest:
        book.update(z, quantized.indices, distance=quantized.distance)

    assert 0 < largest.numel <= n_codes * d < n * n_codes


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(0, 20),
    n_codes=st.integers(1, 12),
    d=st.integers(1, 5),
    top_k=st.integers(1, 15),
    decay=st.sampled_from([0.0, 0.5, 0.99]),
    revive_after=st.sampled_from([None, 1, 2]),
    share=st.floats(0, 1),
    seed=st.integers(0, 2**16),
)
def test_any_steps_keep_the_statistics_consistent(
    n, n_codes, d, top_k, decay, revive_after, share, seed
):
    book = make_codebook(n_codes, d, seed, decay=decay, revive_after=revive_after)
    for i in range(4):
        z = vectors(n, d, seed + i)
        mask = torch.rand(n, generator=generator(seed + i)) < share
        revived = int(book.n_revived)
        indices = step(book, z, mask, top_k=top_k)

        assert ((indices >= 0) & (indices < n_codes)).all()
        assert all(buffer.isfinite().all() for buffer in book.buffers())
        assert (book.ema_count >= 0).all()
        assert 0 <= int(book.n_revived) - revived <= min(5, n_codes, int(mask.sum()))
        assert_consistent(book)


# Ranks


def steps_on_ranks() -> tuple[list[Tensor], dict[str, Tensor]]:
    """Sampled codes and the state after steps on vectors of which the second third counts at times only.

    A fresh codebook has seen no distance, so that the first draw is by the batch's own.
    """
    torch.manual_seed(0)
    book = EMACodebook(2 * K, D, revive_after=1, max_revived=3, decay=0.8)
    drawn = []
    for i in range(6):
        z, valid = vectors(48, seed=i), torch.rand(48, generator=generator(i)) < 0.7
        if i % 2:
            valid[16:32] = False
        if i == 3:
            valid[:] = False
        drawn.append(step(book, own_rows(z), own_rows(valid), top_k=3, temperature=2.0))
    return drawn, state(book)


def test_ranks_move_the_codes_as_one_process_does():
    drawn, expected = steps_on_ranks()
    assert expected["n_revived"] > 3
    ranks = results_of(on_ranks(3, steps_on_ranks))
    for i, indices in enumerate(drawn):
        assert torch.equal(torch.cat([own[0][i] for own in ranks]), indices)
    for _, found in ranks:
        assert_same_state(found, ranks[0][1])
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5, msg=name)
