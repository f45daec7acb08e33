"""Joint entropies from counts, against every spanning tree, exact enumeration and explicit tables."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bae_lens.nn import (
    ChowLiuTree,
    binary_entropy,
    chance_co_firing,
    chow_liu_tree,
    marginal_entropy,
    miller_madow_correction,
    mutual_information,
    plug_in_entropy,
)


def random_bits(n: int, d: int, seed: int = 0, density: float = 0.4) -> Tensor:
    return torch.rand(n, d, generator=torch.Generator().manual_seed(seed)) < density


def all_codes(d: int) -> Tensor:
    """Every code of d bits once: fair and independent."""
    return torch.tensor(list(itertools.product([False, True], repeat=d)))


def tree_of(bits: Tensor) -> ChowLiuTree:
    counts = bits.long()
    pairs = counts.T @ counts
    return chow_liu_tree(counts.sum(0), lambda i: pairs[i], len(bits))


def entropy_of(values: list) -> float:
    """−Σ p·log₂ p of the frequencies of some values."""
    shares = [count / len(values) for count in Counter(values).values()]
    return -sum(p * math.log2(p) for p in shares)


def information_between(a: Tensor, b: Tensor) -> float:
    """H(a) + H(b) − H(a, b), from the columns themselves."""
    x, y = a.tolist(), b.tolist()
    return entropy_of(x) + entropy_of(y) - entropy_of(list(zip(x, y, strict=True)))


def information_matrix(bits: Tensor) -> list[list[float]]:
    columns = bits.unbind(1)
    return [[information_between(a, b) for b in columns] for a in columns]


def is_tree(edges: list[tuple[int, int]], d: int) -> bool:
    """Whether d − 1 edges connect all of d nodes."""
    component = list(range(d))
    for a, b in edges:
        component = [component[a] if c == component[b] else c for c in component]
    return len(edges) == d - 1 and len(set(component)) <= 1


def joint_entropy(bits: Tensor) -> float:
    return entropy_of([tuple(row) for row in bits.tolist()])


# The tree, against a plain reference


@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(1, 12), d=st.integers(1, 5), density=st.floats(0, 1), seed=st.integers(0, 2**16)
)
def test_no_spanning_tree_explains_more(n, d, density, seed):
    bits = random_bits(n, d, seed, density)
    shared = information_matrix(bits)
    possible = itertools.combinations(itertools.combinations(range(d), 2), d - 1)
    most = max(sum(shared[a][b] for a, b in edges) for edges in possible if is_tree([*edges], d))

    tree = tree_of(bits)

    assert tree.information.sum().item() == pytest.approx(most, abs=1e-12)
    marginal = sum(entropy_of(column.tolist()) for column in bits.T)
    assert tree.entropy == pytest.approx(marginal - most, abs=1e-12)


def test_a_larger_tree_weighs_what_kruskals_does():
    d = 14
    bits = random_bits(60, d)
    bits[:, 1] ^= bits[:, 0] & bits[:, 7]
    shared = information_matrix(bits)
    pairs = sorted(itertools.combinations(range(d), 2), key=lambda pair: -shared[pair[0]][pair[1]])
    component, most = list(range(d)), 0.0
    for a, b in pairs:
        if component[a] != component[b]:
            most += shared[a][b]
            component = [component[a] if c == component[b] else c for c in component]

    assert tree_of(bits).information.sum().item() == pytest.approx(most, abs=1e-12)


def test_parents_form_one_tree_over_the_latents_that_vary():
    bits = random_bits(80, 12)
    bits[:, 3], bits[:, 8] = False, True

    parent = tree_of(bits).parent.tolist()

    roots = [i for i, up in enumerate(parent) if up == -1]
    assert len(roots) == 3
    assert {3, 8} < set(roots)
    live = [i for i in range(12) if i not in (3, 8)]
    edges = [(live.index(i), live.index(up)) for i, up in enumerate(parent) if up != -1]
    assert is_tree(edges, len(live))


def test_information_is_that_with_the_parent():
    bits = random_bits(70, 9)
    bits[:, 5] = False

    tree = tree_of(bits)

    for column, up, shared in zip(
        bits.T, tree.parent.tolist(), tree.information.tolist(), strict=True
    ):
        expected = 0 if up == -1 else information_between(column, bits[:, up])
        assert shared == pytest.approx(expected, abs=1e-12)


def test_each_row_of_counts_is_asked_for_once_at_most_and_none_of_a_constant_latent():
    bits = random_bits(50, 10)
    bits[:, 4] = True
    counts = bits.long()
    asked = []

    def co_fired(i: int) -> Tensor:
        asked.append(i)
        return counts.T @ counts[:, i]

    chow_liu_tree(counts.sum(0), co_fired, len(bits))

    assert len(asked) == len(set(asked))
    assert set(asked) <= set(range(10)) - {4}


def test_counts_of_any_integer_dtype():
    counts = random_bits(40, 6).int()
    pairs = counts.T @ counts

    tree = chow_liu_tree(counts.sum(0).int(), lambda i: pairs[i].int(), 40)

    assert tree.entropy == tree_of(counts.bool()).entropy


# Known answers


def test_a_duplicated_fair_bit_counts_once():
    bits = all_codes(3)

    assert tree_of(bits.repeat(1, 3)).entropy == pytest.approx(3, abs=1e-12)


def test_a_complement_says_nothing_more():
    bits = all_codes(2)

    assert tree_of(torch.cat([bits, ~bits], 1)).entropy == pytest.approx(2, abs=1e-12)


def test_independent_bits_keep_their_marginal_entropy():
    tree = tree_of(all_codes(4))

    assert tree.entropy == pytest.approx(4, abs=1e-12)
    assert tree.information.sum().item() == pytest.approx(0, abs=1e-12)


def test_the_entropy_of_a_markov_chain_is_exact():
    # P(next = now) = 3/4, in counts that realise every chain exactly as often as it is probable.
    d = 5
    chains = all_codes(d)
    stays = (chains[:, 1:] == chains[:, :-1]).sum(1)
    bits = chains.repeat_interleave(3**stays, dim=0)[:, torch.tensor([2, 0, 4, 1, 3])]

    tree = tree_of(bits)

    expected = 1 + (d - 1) * entropy_of([0, 1, 1, 1])
    assert tree.entropy == pytest.approx(expected, abs=1e-12)
    assert tree.entropy == pytest.approx(joint_entropy(bits), abs=1e-12)


def test_an_exclusive_or_is_not_seen():
    a, b = all_codes(2).unbind(1)
    bits = torch.stack([a, b, a ^ b], 1)

    assert joint_entropy(bits) == 2
    assert tree_of(bits).entropy == pytest.approx(3, abs=1e-12)


def test_constant_latents_are_ignored():
    bits = random_bits(30, 4)
    constant = torch.tensor([False, True, False]).expand(30, 3)

    with_constant = tree_of(torch.cat([constant[:, :2], bits, constant[:, 2:]], 1))

    alone = tree_of(bits)
    assert with_constant.entropy == pytest.approx(alone.entropy, abs=1e-12)
    assert with_constant.parent.tolist() == [
        -1,
        -1,
        *(up if up == -1 else up + 2 for up in alone.parent.tolist()),
        -1,
    ]
    assert with_constant.information[[0, 1, 6]].tolist() == [0, 0, 0]


def test_one_latent_keeps_its_own_entropy():
    tree = tree_of(torch.tensor([[True], [False], [False], [False]]))

    assert tree.entropy == pytest.approx(entropy_of([1, 0, 0, 0]), abs=1e-15)
    assert tree.parent.tolist() == [-1]
    assert tree.information.tolist() == [0]


@pytest.mark.parametrize("n", [1, 5])
def test_a_code_that_never_changes_has_no_entropy(n):
    # A single token is such a code as well.
    tree = tree_of(torch.tensor([False, True, True]).expand(n, 3))

    assert tree.entropy == 0
    assert tree.parent.tolist() == [-1, -1, -1]
    assert tree.information.tolist() == [0, 0, 0]


# Invariants


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(1, 40), d=st.integers(1, 7), density=st.floats(0, 1), seed=st.integers(0, 2**16)
)
def test_between_the_joint_and_the_marginal_entropy(n, d, density, seed):
    bits = random_bits(n, d, seed, density)
    if d > 2:
        bits[:, 0] = bits[:, 1] | bits[:, 2]

    bound = tree_of(bits).entropy

    assert joint_entropy(bits) <= bound + 1e-11
    assert bound <= marginal_entropy(bits.double()).item() + 1e-11


@settings(deadline=None, max_examples=40)
@given(n=st.integers(2, 30), d=st.integers(1, 7), seed=st.integers(0, 2**16))
def test_inverting_and_reordering_latents_changes_nothing(n, d, seed):
    bits = random_bits(n, d, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    flipped = torch.rand(d, generator=generator) < 0.5
    order = torch.randperm(d, generator=generator)

    assert tree_of((bits ^ flipped)[:, order]).entropy == pytest.approx(
        tree_of(bits).entropy, abs=1e-12
    )


# Mutual information of a pair


@settings(deadline=None, max_examples=60)
@given(n=st.integers(1, 50), p=st.floats(0, 1), q=st.floats(0, 1), seed=st.integers(0, 2**16))
def test_mutual_information_equals_that_of_the_columns(n, p, q, seed):
    a, b = random_bits(n, 1, seed, p)[:, 0], random_bits(n, 1, seed + 1, q)[:, 0]
    both, first, second = (a & b).sum(), a.sum(), b.sum()

    shared = mutual_information(both, first, second, n)

    assert shared.item() == pytest.approx(information_between(a, b), abs=1e-12)
    assert shared.item() >= 0
    assert shared.dtype == torch.float64
    torch.testing.assert_close(
        mutual_information(both, second, first, n), shared, rtol=0, atol=1e-14
    )


def test_mutual_information_is_elementwise_and_broadcasts():
    bits = random_bits(40, 6).long()
    pairs, fired = bits.T @ bits, bits.sum(0)

    shared = mutual_information(pairs, fired.unsqueeze(1), fired, 40)

    expected = torch.tensor(information_matrix(bits), dtype=torch.float64)
    torch.testing.assert_close(shared, expected, rtol=0, atol=1e-12)


def test_a_bit_shares_all_it_has_with_itself_and_with_its_complement():
    fired = torch.arange(11)
    entropy = binary_entropy(fired.double() / 10)

    itself = mutual_information(fired, fired, fired, 10)
    complement = mutual_information(torch.zeros_like(fired), fired, 10 - fired, 10)

    torch.testing.assert_close(itself, entropy, rtol=0, atol=1e-14)
    torch.testing.assert_close(complement, entropy, rtol=0, atol=1e-14)


def test_counts_of_many_tokens_leave_independent_bits_independent():
    # Large counts of four cells, which nearly cancel.
    n, first, second = 10**9, 3 * 10**8, 10**6
    both = first * second // n

    shared = mutual_information(torch.tensor(both), torch.tensor(first), torch.tensor(second), n)

    assert 0 <= shared.item() < 1e-13


# Chance


def test_chance_counts_respect_what_each_latent_fires():
    n, n_fired = 60, torch.tensor([0, 1, 17, 30, 55, 60])
    row = chance_co_firing(n_fired, n)

    for i, fired in enumerate(n_fired.tolist()):
        both = row(i)
        assert both.shape == n_fired.shape
        assert both.dtype == torch.int64
        assert (both <= n_fired.clamp(max=fired)).all()
        assert (both >= (n_fired + fired - n).clamp(min=0)).all()


def test_chance_counts_are_those_of_their_seed():
    n_fired = torch.tensor([40, 50, 60])
    rows = [[chance(i).tolist() for i in range(3)] for chance in (
        chance_co_firing(n_fired, 100),
        chance_co_firing(n_fired, 100, seed=0),
        chance_co_firing(n_fired, 100, seed=1),
    )]  # fmt: skip

    assert rows[0] == rows[1] != rows[2]


def test_chance_counts_are_those_of_independent_latents_on_average():
    n, n_fired = 200, torch.tensor([20, 100, 150])
    row = chance_co_firing(n_fired, n)

    draws = torch.stack([row(1) for _ in range(2000)]).double()

    # Hypergeometric: mean and variance of a draw without replacement.
    p, q = n_fired.double() / n, 100 / n
    mean, variance = n * p * q, n * p * (1 - p) * q * (1 - q) * n / (n - 1)
    torch.testing.assert_close(draws.mean(0), mean, rtol=0, atol=0.4)
    torch.testing.assert_close(draws.var(0), variance, rtol=0.15, atol=0)


def test_chance_finds_the_total_correlation_of_shuffled_columns():
    n, d = 100, 12
    bits = random_bits(n, d, density=0.3)
    bits[:, ::2] = bits[:, 1::2]  # what shuffling takes away
    generator = torch.Generator().manual_seed(1)
    n_fired = bits.sum(0)

    def found_in_shuffled() -> float:
        columns = [column[torch.randperm(n, generator=generator)] for column in bits.T]
        return tree_of(torch.stack(columns, 1)).information.sum().item()

    def found_by_chance(seed: int) -> float:
        tree = chow_liu_tree(n_fired, chance_co_firing(n_fired, n, seed), n)
        return tree.information.sum().item()

    shuffled = sum(found_in_shuffled() for _ in range(40)) / 40
    by_chance = sum(found_by_chance(seed) for seed in range(40)) / 40

    assert found_by_chance(0) > 0
    assert by_chance == pytest.approx(shuffled, rel=0.1)
    assert tree_of(bits).information.sum().item() > 3 * by_chance


# Of whole codes


def test_plug_in_entropy_known_answers():
    assert {plug_in_entropy(torch.tensor([n])) for n in range(1, 1000)} == {0.0}
    assert plug_in_entropy(torch.tensor([1, 1, 1, 1])) == 2
    assert plug_in_entropy(torch.tensor([2, 1, 1])) == pytest.approx(1.5, abs=1e-15)
    assert plug_in_entropy(torch.tensor([3, 0, 3])) == pytest.approx(1, abs=1e-15)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 1000), min_size=1, max_size=30))
def test_plug_in_entropy_is_never_negative_nor_above_log_of_tokens_or_values(counts):
    value = plug_in_entropy(torch.tensor(counts))

    assert 0 <= value <= math.log2(sum(counts)) + 1e-12
    assert value <= math.log2(len(counts)) + 1e-12
    assert value == pytest.approx(
        entropy_of([i for i, count in enumerate(counts) for _ in range(count)]), abs=1e-11
    )


# Bias of a marginal entropy


def test_miller_madow_counts_the_latents_that_vary():
    n = 20
    n_fired = torch.tensor([0, 1, 10, 19, 20])

    assert miller_madow_correction(n_fired, n).item() == pytest.approx(3 / (40 * math.log(2)))
    assert miller_madow_correction(torch.tensor([0, n]), n).item() == 0


@pytest.mark.parametrize("p", [0.5, 0.3])
def test_miller_madow_removes_most_of_the_bias(p):
    n, d, repeats = 40, 20, 500
    bits = torch.rand(repeats, n, d, generator=torch.Generator().manual_seed(0)) < p
    n_fired = bits.sum(1)
    truth = d * binary_entropy(torch.tensor(p, dtype=torch.float64)).item()

    plain = binary_entropy(n_fired.double() / n).sum(1).mean().item()
    correction = sum(miller_madow_correction(row, n).item() for row in n_fired) / repeats

    assert plain < truth
    assert abs(plain + correction - truth) < 0.1 * (truth - plain)
