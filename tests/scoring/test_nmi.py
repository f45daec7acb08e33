"""NMI of words' codes with predictions: answers that are known, and the bias that shuffles take away."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score

from bae_lens.scoring import PredictionNMI, prediction_nmi, prediction_nmi_difference

N_TEXTS, N_WORDS = 60, 12
TEXTS = np.repeat(np.arange(N_TEXTS), N_WORDS)
CLASSES = np.arange(N_TEXTS) % 3
PREDICTIONS = CLASSES[TEXTS]
FAST: Any = {"n_resamples": 200}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def noisy(share: float, seed: int = 0) -> np.ndarray:
    """Codes that are the prediction's for a share of the words, else any of 8."""
    generator = rng(seed)
    others = generator.integers(0, 8, len(TEXTS))
    return np.where(generator.random(len(TEXTS)) < share, PREDICTIONS, others)


def bursty(seed: int = 0, n_codes: int = 40) -> np.ndarray:
    """Codes that have to do with the text, and nothing with its class."""
    generator = rng(seed)
    own = generator.dirichlet(np.full(n_codes, 0.1), N_TEXTS)
    return np.concatenate([generator.choice(n_codes, N_WORDS, p=p) for p in own])


@pytest.mark.parametrize("average", ["arithmetic", "geometric", "min", "max"])
def test_that_it_is_scikit_learns(average: str) -> None:
    codes = noisy(0.4)
    found = prediction_nmi(codes, PREDICTIONS, TEXTS, average=average, n_resamples=1)  # pyright: ignore[reportArgumentType]
    expected = normalized_mutual_info_score(codes, PREDICTIONS, average_method=average)
    assert found.value == pytest.approx(expected, rel=1e-9)
    assert (found.n_words, found.n_texts, found.n_codes) == (720, 60, 8)
    # With fewer codes than H(P) is worth, "min" would be H(C).
    by_prediction = prediction_nmi(codes, PREDICTIONS, TEXTS, average="min", n_resamples=1)
    assert found.told.mean == pytest.approx(by_prediction.corrected.mean)


def test_that_a_code_a_class_tells_all_and_one_code_nothing() -> None:
    whole = prediction_nmi(PREDICTIONS + 7, PREDICTIONS, TEXTS, **FAST)
    assert whole.value == pytest.approx(1)
    # Of 60 texts three classes are told by chance a little.
    assert 0 < whole.shuffled < 0.1
    assert whole.told.mean == pytest.approx(whole.corrected.mean, abs=1e-3)
    one = prediction_nmi(np.zeros_like(TEXTS), PREDICTIONS, TEXTS, **FAST)
    assert one.told == (0, 0, 0)
    assert (one.value, one.shuffled, one.corrected) == (0, 0, (0, 0, 0))


def test_that_shuffles_of_texts_take_away_what_texts_have_in_common() -> None:
    """Each text has codes of its own, so that words by themselves seem to tell its class."""
    found = [prediction_nmi(bursty(i), PREDICTIONS, TEXTS, **FAST) for i in range(8)]
    for own in found:
        assert own.value > 0.06
        assert own.corrected.low < 0.02
    assert abs(np.mean([own.corrected.mean for own in found])) < 0.01
    # Shuffles of words would have left most of it.
    assert adjusted_mutual_info_score(bursty(), PREDICTIONS) > 0.04


def test_that_the_interval_is_of_texts_and_covers() -> None:
    truth = np.mean(
        [
            prediction_nmi(noisy(0.3, s), PREDICTIONS, TEXTS, n_resamples=1).corrected.mean
            for s in range(30)
        ]
    )
    found = [prediction_nmi(noisy(0.3, s), PREDICTIONS, TEXTS, **FAST) for s in range(30, 50)]
    hits = sum(own.corrected.low <= truth <= own.corrected.high for own in found)
    assert hits >= 16
    # A text ten times over is one text.
    repeated = [
        np.repeat(x.reshape(N_TEXTS, -1), 10, axis=0).ravel() for x in (noisy(0.3), PREDICTIONS)
    ]
    blocks = np.repeat(TEXTS.reshape(N_TEXTS, -1), 10, axis=0).ravel()
    once = prediction_nmi(noisy(0.3), PREDICTIONS, TEXTS, **FAST)
    often = prediction_nmi(repeated[0], repeated[1], blocks, **FAST)
    assert often.corrected == pytest.approx(once.corrected)


def test_that_what_is_told_does_not_hang_on_the_codes_own_entropy() -> None:
    """Codes that are split at random tell as much as before, and NMI falls."""
    codes = noisy(0.5)
    split = codes * 4 + rng(1).integers(0, 4, len(codes))
    whole, parts = (prediction_nmi(c, PREDICTIONS, TEXTS, **FAST) for c in (codes, split))
    assert parts.corrected.mean < 0.8 * whole.corrected.mean
    assert parts.told.mean == pytest.approx(whole.told.mean, abs=0.02)


def test_a_difference_is_paired() -> None:
    better, worse = noisy(0.5), noisy(0.3)
    between = prediction_nmi_difference(better, worse, PREDICTIONS, TEXTS, **FAST)
    one, other = (prediction_nmi(c, PREDICTIONS, TEXTS, **FAST).corrected for c in (better, worse))
    assert between.mean == pytest.approx(one.mean - other.mean)
    assert between.low > 0
    back = prediction_nmi_difference(worse, better, PREDICTIONS, TEXTS, **FAST)
    assert back == pytest.approx((-between.mean, -between.high, -between.low))
    # Names of codes say nothing.
    same = prediction_nmi_difference(better, 50 - better, PREDICTIONS, TEXTS, **FAST)
    assert same == pytest.approx((0, 0, 0))


def test_that_a_seed_gives_one_result_and_order_none_other() -> None:
    order = rng(3).permutation(len(TEXTS))
    codes = noisy(0.4)
    one = prediction_nmi(codes, PREDICTIONS, TEXTS, **FAST)
    assert one == prediction_nmi(codes, PREDICTIONS, TEXTS, **FAST)
    moved = prediction_nmi(codes[order], PREDICTIONS[order], TEXTS[order], **FAST)
    assert moved.corrected == pytest.approx(one.corrected)
    assert one.corrected != prediction_nmi(codes, PREDICTIONS, TEXTS, seed=1, **FAST).corrected


def test_that_many_codes_are_counted_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = prediction_nmi(noisy(0.4), PREDICTIONS, TEXTS, **FAST)
    monkeypatch.setattr("bae_lens.scoring.nmi._AT_ONCE", 100)
    assert prediction_nmi(noisy(0.4), PREDICTIONS, TEXTS, **FAST) == whole


def test_that_it_is_shown_and_kept() -> None:
    found = prediction_nmi(noisy(0.4), PREDICTIONS, TEXTS, **FAST)
    assert PredictionNMI.from_dict(asdict(found)) == found
    assert f"{found.value:.3f} less {found.shuffled:.3f} of shuffled predictions" in str(found)
    assert str(found).endswith("720 words of 60 texts, 8 codes")


@pytest.mark.parametrize(
    ("codes", "predictions", "texts", "message"),
    [
        (TEXTS[1:], PREDICTIONS, TEXTS, r"of the same words; got shapes \(719,\), \(720,\)"),
        (TEXTS[:0], PREDICTIONS[:0], TEXTS[:0], "two texts and two predicted classes"),
        (TEXTS, 0 * PREDICTIONS, TEXTS, "got 60 texts and 1 classes"),
        (TEXTS, PREDICTIONS, 0 * TEXTS, "got 1 texts"),
        (TEXTS, np.arange(720) % 2, TEXTS, "those of text 0 have several"),
    ],
)
def test_that_words_must_be_of_texts(
    codes: np.ndarray, predictions: np.ndarray, texts: np.ndarray, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        prediction_nmi(codes, predictions, texts)


def test_that_options_are_checked() -> None:
    with pytest.raises(ValueError, match="average must be one of"):
        prediction_nmi(TEXTS, PREDICTIONS, TEXTS, average="mean")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="n_shuffles must be"):
        prediction_nmi(TEXTS, PREDICTIONS, TEXTS, n_shuffles=0)


def test_that_many_codes_of_few_texts_do_not_move_the_interval_off_its_value() -> None:
    """Texts that a draw has twice raise the NMI of many codes more than that of few."""
    many = bursty(n_codes=40) + 40 * PREDICTIONS * (rng(1).random(len(TEXTS)) < 0.3)
    found = prediction_nmi(many, PREDICTIONS, TEXTS, n_resamples=400).corrected
    over = prediction_nmi_difference(many, noisy(0.3), PREDICTIONS, TEXTS, n_resamples=400)

    for interval in (found, over):
        assert interval.low < interval.mean < interval.high
        middle = (interval.low + interval.high) / 2
        assert abs(interval.mean - middle) < 0.2 * (interval.high - interval.low)
