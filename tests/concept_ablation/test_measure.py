"""Concepts that were planted: what is lost when they are removed is known beforehand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from bae_lens.concept_ablation import AblationTask, ConceptAblationResult, ablate
from bae_lens.concept_ablation import result as names
from bae_lens.concept_ablation.concepts import Clusters, describe
from bae_lens.concept_ablation.interventions import ablate_vectors
from bae_lens.concept_ablation.measure import _other_ids, concept_subspace
from bae_lens.concept_ablation.removals import Subspace
from tests.concept_ablation.helpers import (
    LOWER_HOOK,
    Planted,
    directions,
    noise,
    planted_task,
)

N, D = 240, 32
MEAN, TOKEN = 30.0, 6.0
RETRAINED = names.CONCEPT + names.RETRAINED
BASIS = directions(8, D)
SHARED, CONCEPT, SECOND = BASIS[:3]
BINARY = torch.arange(N) % 2
SIGN = (2.0 * BINARY - 1)[:, None]


def clusters(*centroids: Tensor) -> Clusters:
    return Clusters(torch.stack(centroids), LOWER_HOOK)


def about(centroids: Clusters, n_each: int = 40) -> Tensor:
    """Tokens near each of the centroids."""
    places = centroids.centroids.repeat(n_each, 1)
    return places + 0.1 * noise(*places.shape, seed=7)


def opposite(mean: float = MEAN) -> tuple[Planted, Clusters]:
    """Two classes either side of a large mean that all share; their tokens are farther from it."""
    middle = mean * SHARED
    codes = clusters(middle + TOKEN * CONCEPT, middle - TOKEN * CONCEPT)
    vectors = middle + 2 * SIGN * CONCEPT + 0.5 * noise(N, D)
    salient = middle + TOKEN * SIGN * CONCEPT + 0.1 * noise(N, D, seed=1)
    return Planted(BINARY, vectors, salient, about(codes)), codes


def classes(n_classes: int = 3, n_others: int = 0) -> tuple[Planted, Clusters]:
    """A direction a class, all orthogonal, and codes that are of no class."""
    labels, middle = torch.arange(N) % n_classes, MEAN * SHARED
    own = BASIS[1 : n_classes + 1]
    others = BASIS[n_classes + 1 : n_classes + 1 + n_others]
    codes = clusters(*(middle + TOKEN * torch.cat([own, others])))
    vectors = middle + 3 * own[labels] + 0.3 * noise(N, D)
    salient = middle + TOKEN * own[labels] + 0.1 * noise(N, D, seed=1)
    return Planted(labels, vectors, salient, about(codes)), codes


def measure(planted: tuple[Planted, Clusters], **settings: Any) -> ConceptAblationResult:
    return ablate(planted_task(planted[0], **settings), planted[1])


def own_concept(task: AblationTask, codes: Clusters) -> Subspace:
    subspace = concept_subspace(task, describe(codes, task.sample))
    assert subspace is not None
    return subspace


def accuracy(result: ConceptAblationResult, method: str, place: str = names.LOWER) -> float:
    concept_of = "" if method.startswith((names.MEAN, names.LEACE, "none")) else "word"
    return result.row(place, method, concept_of).accuracy


def at_chance(value: float, chance: float = 0.5, n: int = N) -> bool:
    """Within three standard errors."""
    return abs(value - chance) < 3 * math.sqrt(chance * (1 - chance) / n)


# What carries the label


@pytest.mark.parametrize("probe", ["logistic", "mlp"])
def test_without_its_concept_the_label_is_predicted_by_chance_and_not_below(probe):
    result = measure(opposite(), probe=probe, n_folds=3)

    assert accuracy(result, "none") > 0.97
    assert at_chance(accuracy(result, names.CONCEPT))
    assert at_chance(accuracy(result, RETRAINED))
    assert at_chance(accuracy(result, names.LEACE))
    assert at_chance(accuracy(result, names.LEACE + names.RETRAINED))


@pytest.mark.parametrize("concept_of", ["word", "readout"])
def test_the_same_at_both_hook_points(concept_of):
    planted, codes = opposite()
    turned = directions(D, D, seed=3)
    planted = planted._replace(upper=(planted.vectors @ turned, planted.tokens @ turned))

    result = ablate(planted_task(planted), codes)

    for place in names.STORED:
        assert result.row(place, "none", "").accuracy > 0.97
        assert at_chance(result.row(place, names.CONCEPT, concept_of).accuracy)
        assert result.row(place, names.RANDOM_EQUAL, concept_of).accuracy > 0.9


def test_the_concept_of_vectors_that_are_read_is_told_from_their_own_mean():
    """As a [CLS] has: far from the tokens, with codes of its own."""
    planted, _ = opposite()
    offset = MEAN * SHARED + 20 * BASIS[5]
    codes = clusters(*(offset + SIGN[:2] * TOKEN * CONCEPT), *(MEAN * SHARED + 5 * BASIS[6:8]))
    vectors = offset + 2 * SIGN * CONCEPT + 0.5 * noise(N, D)
    planted = planted._replace(vectors=vectors, tokens=about(codes))

    result = ablate(planted_task(planted), codes)

    assert result.row(concept_of="word", method="none").accuracy > 0.97
    assert at_chance(result.row(concept_of="readout").accuracy)


def test_the_concept_of_a_word_is_told_from_the_mean_of_all_tokens_that_were_read():
    planted, codes = opposite()
    task = planted_task(planted)
    mean = task.sample.lower_mean + 3 * BASIS[4]
    task = replace(task, sample=task.sample._replace(lower_mean=mean))
    task.__dict__["salient"] = planted_task(planted).salient

    basis = own_concept(task, codes).basis

    expected = normalize(codes.centroids.mean(0) + TOKEN * SIGN * CONCEPT - mean, dim=1)
    cosines = (basis[:, 0] * expected).sum(1).abs()
    assert cosines.min() > 0.99


@pytest.mark.parametrize("mean", [0.0, 30.0, 300.0])
def test_a_shared_mean_makes_no_difference_once_it_is_removed(mean):
    planted, codes = opposite(mean)

    result = ablate(planted_task(planted), codes)

    assert at_chance(accuracy(result, names.CONCEPT))
    # All but the noise in that direction, which the mean has no part in.
    expected = (planted.vectors - planted.vectors.mean(0)) @ CONCEPT
    moved = expected.abs() / planted.vectors.norm(dim=1)
    assert result.row().removed_norm == pytest.approx(moved.mean().item(), rel=0.02)


def test_a_shared_mean_that_is_projected_out_inverts_the_probe():
    released = measure(opposite(), protocol="released", probe="mlp", n_folds=3)
    centered = measure(opposite(), probe="mlp", n_folds=3)

    inverted, chance = released.row(), centered.row()
    assert inverted.accuracy < 0.1
    assert at_chance(chance.accuracy)
    # The label is all there, as whoever looks anew can see.
    assert accuracy(released, RETRAINED) > 0.97
    assert at_chance(accuracy(centered, RETRAINED))


def test_inversion_is_no_drop_but_the_papers_headline_rewards_it():
    released = measure(opposite(), protocol="released", probe="logistic", n_folds=3)
    centered = measure(opposite(), n_folds=3)
    original = accuracy(released, "none")

    assert released.drop(released.row()) == pytest.approx(original - 0.5)
    assert released.drop(released.row()) == pytest.approx(centered.drop(centered.row()), abs=0.05)
    assert released.relative_drop(released.row()) > 0.9
    assert centered.relative_drop(centered.row()) == pytest.approx(0.5, abs=0.1)


def test_uncentered_the_shared_mean_is_most_of_what_is_removed():
    released = measure(opposite(), protocol="released", probe="logistic", n_folds=3)
    centered = measure(opposite(), n_folds=3)

    assert released.row().removed_norm > 0.9
    assert centered.row().removed_norm < 0.1


# What does not


@pytest.mark.parametrize("method", [names.RANDOM, names.RANDOM_EQUAL, names.MEAN])
def test_other_directions_cost_nothing(method):
    result = measure(opposite())

    lost = result.change(result.row(method=method))

    assert abs(lost.mean) < 0.02
    assert lost.low <= 0 <= lost.high
    assert result.excess_over(result.row(), names.RANDOM_EQUAL).low > 0.3


def test_a_control_of_equal_norm_removes_as_much_as_the_concept():
    result = measure(opposite())

    concept, equal = result.row(), result.row(method=names.RANDOM_EQUAL)

    assert equal.removed_norm == pytest.approx(concept.removed_norm, rel=1e-5)
    assert result.row(method=names.RANDOM).removed_norm < 0.5 * concept.removed_norm
    assert equal.rank == concept.rank == 1


def test_of_three_classes_each_is_carried_by_its_own_concept():
    result = measure(classes())

    assert result.chance == pytest.approx(1 / 3)
    assert accuracy(result, "none") > 0.97
    # Noise alone decides, and rather for the two classes whose direction still has some of it.
    assert accuracy(result, names.CONCEPT) < 0.4
    assert result.drop(result.row()) == pytest.approx(accuracy(result, "none") - 1 / 3, abs=0.07)
    assert at_chance(accuracy(result, RETRAINED), 1 / 3)
    assert accuracy(result, names.OTHER_CLASS) > 0.9
    assert accuracy(result, names.RANDOM_CONCEPT) > 0.9
    assert at_chance(accuracy(result, names.LEACE), 1 / 3)


def test_the_concept_of_another_label_does_not_remove_this_one():
    other = torch.arange(N) // 2 % 2  # independent of the label
    middle = MEAN * SHARED
    codes = clusters(
        *(middle + TOKEN * s * v for v in (CONCEPT, SECOND) for s in (1.0, -1.0)),
    )
    vectors = middle + 2 * SIGN * CONCEPT + (4.0 * other[:, None] - 2) * SECOND
    vectors = vectors + 0.5 * noise(N, D)
    of_label = middle + TOKEN * SIGN * CONCEPT
    of_other = middle + TOKEN * (2.0 * other[:, None] - 1) * SECOND

    own = ablate(planted_task(Planted(BINARY, vectors, of_label, about(codes))), codes)
    else_ = ablate(planted_task(Planted(BINARY, vectors, of_other, about(codes))), codes)

    assert at_chance(accuracy(own, names.CONCEPT))
    assert accuracy(else_, names.CONCEPT) > 0.97
    assert accuracy(else_, RETRAINED) > 0.97
    assert own.row().removed_norm == pytest.approx(else_.row().removed_norm, rel=0.1)


def test_a_random_concept_is_another_one_that_is_in_use():
    # Of a thousand codes only those that tokens have are drawn.
    planted, codes = classes(2, n_others=3)
    far = 1000 + torch.arange(50.0)[:, None] * torch.ones(D)
    result = ablate(planted_task(planted), Clusters(torch.cat([codes.centroids, far]), LOWER_HOOK))

    assert set(sum(result.concept_ids, ())) == {0, 1}
    assert result.row(method=names.RANDOM_CONCEPT).rank == 1
    assert accuracy(result, names.RANDOM_CONCEPT) > 0.9


def test_none_of_an_examples_own_concepts_is_drawn_as_a_random_one():
    in_use = torch.arange(40) * 3
    ids = in_use[noise(200, 40).topk(3).indices]
    ids[5, 1:] = -1

    drawn = _other_ids(ids, in_use, torch.Generator().manual_seed(0))

    assert not (drawn[:, :, None] == ids[:, None])[torch.arange(200) != 5].any()
    assert drawn[5, 0] not in (-1, ids[5, 0])
    assert drawn[5, 1:].tolist() == [-1, -1]
    assert set(drawn.unique().tolist()) == {-1, *in_use.tolist()}


# Where else the label may be


def test_a_second_copy_of_the_label_is_found_by_whoever_looks_anew():
    planted, codes = opposite()
    first = (planted.vectors - MEAN * SHARED) @ CONCEPT
    # Worse than the first, and only its echo: a probe that has the first needs it not.
    echo = 0.5 * first + 0.4 * noise(N, seed=5)
    vectors = planted.vectors + (echo - planted.vectors @ SECOND)[:, None] * SECOND

    result = ablate(planted_task(planted._replace(vectors=vectors)), codes)

    untouched, retrained = result.row(), result.row(method=RETRAINED)
    assert result.change(untouched).low > 0
    assert retrained.accuracy > 0.95
    assert result._compare(retrained, untouched).low > 0
    assert at_chance(accuracy(result, names.LEACE + names.RETRAINED))
    assert retrained.rank == untouched.rank
    assert retrained.removed_norm == untouched.removed_norm


def test_both_copies_go_with_two_codes():
    middle = MEAN * SHARED
    ends = [SIGN * v for v in (CONCEPT, SECOND)]
    codes = clusters(*(middle + TOKEN * s * v for s in (1.0, -1.0) for v in (CONCEPT, SECOND)))
    vectors = middle + 2 * ends[0] + 2 * ends[1] + 0.5 * noise(N, D)
    salient = middle + TOKEN * (ends[0] + ends[1]) / 2
    planted = Planted(BINARY, vectors, salient, about(codes))

    one, two = (ablate(planted_task(planted, rank=rank), codes) for rank in (1, 2))

    assert accuracy(one, RETRAINED) > 0.95
    assert at_chance(accuracy(two, RETRAINED))
    assert (one.row().rank, two.row().rank) == (1, 2)


def test_of_two_concepts_of_one_class_each_the_absence_of_the_other_is_left():
    planted, codes = classes(2, n_others=5)
    task = planted_task(planted)

    result = ablate(task, codes)

    # Its own concept is at the mean, which is halfway; the other class's is still missing.
    ablated = planted.vectors - ablate_vectors(task, 0, own_concept(task, codes)).vectors
    moved = (ablated * BASIS[1:3][planted.labels]).sum(1).mean()
    assert moved == pytest.approx(1.5, abs=0.3)
    assert result.drop(result.row()) < 0.1
    assert at_chance(accuracy(result, names.LEACE))


# What is written down


def test_a_second_dictionary_finds_what_no_dictionary_changes():
    planted, codes = opposite()
    task = planted_task(planted)
    first = ablate(task, codes)
    fitted = ablate(task, Clusters.fit(planted.tokens, 2, LOWER_HOOK), "fitted")

    for method in (names.MEAN, names.LEACE):
        assert fitted.row(method=method, concept_of="") is first.row(method=method, concept_of="")
    assert (first.dictionary, fitted.dictionary) == ("k-means", "fitted")
    assert at_chance(accuracy(fitted, names.CONCEPT))


def test_a_seed_gives_one_result():
    result, other = measure(opposite()), measure(opposite(), seed=1)

    assert result == measure(opposite())
    assert result.row(method=names.RANDOM) != other.row(method=names.RANDOM)


def test_a_dictionary_of_another_width_is_refused():
    planted, _ = opposite()
    with pytest.raises(ValueError, match=f"reads activations of width 5; .* have {D}"):
        ablate(planted_task(planted), Clusters(torch.zeros(2, 5), LOWER_HOOK))
