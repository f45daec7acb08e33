"""A profile has every cell, from one pass over texts that are long enough, split alike; bad input is named."""

from __future__ import annotations

import json
import logging
import math
from typing import Any
from unittest.mock import patch

import pytest
import torch

import bae_lens
from bae_lens import TrainingBAEConfig, entropy_profile
from bae_lens.entropy import EntropyProfile, ProfileRow, SeedInterval, estimate_entropy
from bae_lens.entropy.cells import gaussian_like, gaussian_rate, variance_and_rank
from bae_lens.entropy.hidden_states import check_tokenizer, tokenize
from tests.helpers import (
    D_IN,
    make_activations,
    make_bridge,
    make_model,
    make_neox_bridge,
    make_text,
)

HOOKS = ["blocks.0.hook_resid_post", "blocks.1.hook_resid_pre"]
POSITIONS = [1, (2, 3), (5, 16)]


def small_cfg(**overrides) -> TrainingBAEConfig:
    fields = {"d_in": D_IN, "d_sae": 12, "max_density": None, "target_entropy": None}
    return TrainingBAEConfig(**(fields | overrides))


def profile_of(model=None, dataset=None, **overrides) -> EntropyProfile:
    arguments = {
        "hooks": HOOKS,
        "positions": POSITIONS,
        "max_unexplained": 0.5,
        "n_sequences": 100,
        "seeds": (0, 1),
        "cfg": small_cfg(),
        "steps": 10,
        "batch_size": 32,
    }
    dataset = make_text() if dataset is None else dataset
    return entropy_profile(model or make_model(), dataset, **(arguments | overrides))


@pytest.fixture(scope="module")
def profile() -> EntropyProfile:
    return profile_of()


# Rows


def test_rows_are_every_hook_cell_control_and_seed(profile):
    cells = {(row.hook, row.label, row.at, row.control, row.seed) for row in profile.rows}

    assert cells == {
        (hook, label, at, control, seed)
        for hook in HOOKS
        for label, at in (("1", 1), ("2–3", 2.5), ("5–16", 10.5))
        for control in (None, "gaussian")
        for seed in (0, 1)
    }
    assert len(profile.rows) == len(cells)
    assert profile.hooks == HOOKS
    assert profile.labels == ["1", "2–3", "5–16"]
    assert profile.controls == [None, "gaussian"]
    assert (profile.n_texts, profile.n_too_short) == (100, 0)


def test_every_cell_has_equally_many_vectors(profile):
    assert {row.estimate["n_train"] for row in profile.rows} == {80}
    assert {row.estimate["n_tokens"] for row in profile.rows} == {20}


def test_more_vectors_of_each_text_where_all_ranges_have_them():
    profile = profile_of(positions=[(2, 4), (5, 16)], seeds=(0,), gaussian_control=False)
    fewer = profile_of(
        positions=[(2, 4), (5, 16)], seeds=(0,), gaussian_control=False, vectors_per_sequence=2
    )

    assert {row.estimate["n_train"] for row in profile.rows} == {240}
    assert {row.estimate["n_train"] for row in fewer.rows} == {160}


def test_a_row_is_the_estimate_of_the_states_at_that_position(profile):
    model, texts = make_model(), make_text()["text"][:100]
    tokens = torch.cat([model.to_tokens(text, prepend_bos=True) for text in texts])
    _, cache = model.run_with_cache(tokens)
    states = cache[HOOKS[1]][:, 1].float()
    order = torch.randperm(100, generator=torch.Generator().manual_seed(1))

    expected = estimate_entropy(
        states[order[20:]],
        states[order[:20]],
        0.5,
        small_cfg(),
        starts=(0.04,),
        steps=10,
        batch_size=32,
        seed=1,
    )

    [row] = [
        r for r in profile.rows if (r.hook, r.label, r.control, r.seed) == (HOOKS[1], "1", None, 1)
    ]
    assert row.estimate["n_bits"] == expected.sae.cfg.d_sae
    assert row.estimate["chow_liu_entropy"] == pytest.approx(expected.entropy, rel=1e-3)
    assert row.variance == pytest.approx(states[order[20:]].var(0).sum().item(), rel=1e-4)


def test_it_repeats_itself(profile):
    assert profile_of().to_dict() == profile.to_dict()


def test_a_bridge_is_profiled_too(tmp_path):
    profile = profile_of(
        make_bridge(tmp_path), hooks=["blocks.1.hook_out"], seeds=(0,), gaussian_control=False
    )

    assert [row.label for row in profile.rows] == ["1", "2–3", "5–16"]
    assert all(math.isfinite(row.estimate["chow_liu_entropy"]) for row in profile.rows)


def test_the_model_reads_once_and_stops_after_the_last_hook():
    model = make_model()
    with patch.object(model, "run_with_cache", wraps=model.run_with_cache) as run:
        profile_of(model, hooks=["blocks.0.hook_resid_post"], seeds=(0,), gaussian_control=False)

    passes = [call for call in run.call_args_list if call.args[0].numel() > 1]
    assert sum(call.args[0].numel() for call in passes) == 100 * 17
    assert {call.kwargs["stop_at_layer"] for call in passes} == {1}


def test_the_default_config_follows_the_fidelity():
    profile = profile_of(
        cfg=None, seeds=(0,), positions=[(2, 9)], gaussian_control=False, steps=400
    )

    row = profile.rows[0]
    assert row.estimate["n_bits"] <= 2 * D_IN
    # Before pruning too, it is near what was asked for.
    assert row.estimate["trained_unexplained_variance"] == pytest.approx(0.5, abs=0.1)


def test_texts_can_be_strings_or_another_column():
    rows = make_text()["text"]

    from_strings = profile_of(dataset=rows, seeds=(0,), gaussian_control=False)
    from_column = profile_of(
        dataset=[{"review": row} for row in rows],
        text_column="review",
        seeds=(0,),
        gaussian_control=False,
    )

    assert from_strings.to_dict() == from_column.to_dict()


def test_texts_that_are_too_short_are_passed_over_and_counted(caplog):
    texts = list(make_text(110)["text"])
    mixed = [t if i % 2 else " ".join(t.split()[:15]) for i, t in enumerate(texts)]

    with caplog.at_level(logging.WARNING):
        profile = profile_of(dataset=mixed + texts, seeds=(0,), gaussian_control=False)

    # 55 of the first 110 are long enough, and the next 45 all are.
    assert (profile.n_texts, profile.n_too_short) == (100, 55)
    assert "There are only" not in caplog.text


def test_fewer_texts_than_asked_for_are_warned_of(caplog):
    with caplog.at_level(logging.WARNING):
        profile = profile_of(n_sequences=1000, seeds=(0,), gaussian_control=False)

    assert profile.n_texts == 160
    assert "There are only 160 texts of at least 16 tokens, not 1000" in caplog.text


def test_an_unexplained_variance_that_the_held_out_texts_pass_is_warned_of(caplog):
    with caplog.at_level(logging.WARNING):
        profile = profile_of(cfg=small_cfg(d_sae=32), max_unexplained=0.1, steps=60, seeds=(0,))

    assert len(profile.overfit) > 0
    assert all(row.estimate["unexplained_variance"] > 0.11 for row in profile.overfit)
    assert f"{len(profile.overfit)} of 12 estimates leave over 10 % more unexplained" in caplog.text


def test_saelens_shows_its_progress_bars_again_afterwards(profile):
    from sae_lens.training import sae_trainer
    from tqdm.auto import tqdm

    assert sae_trainer.tqdm is tqdm


# The control and the cheap explanations


def test_the_gaussian_has_the_same_mean_and_covariance():
    x = make_activations(3000, offset=2.0) @ torch.randn(D_IN, D_IN)

    drawn = gaussian_like(x, 60_000, seed=0)

    assert drawn.dtype == x.dtype
    torch.testing.assert_close(drawn.mean(0), x.mean(0), atol=0.1, rtol=0.02)
    error = (torch.cov(drawn.T) - torch.cov(x.T)).norm() / torch.cov(x.T).norm()
    assert error < 0.03
    assert not torch.equal(gaussian_like(x, 10, 0), gaussian_like(x, 10, 1))


def test_the_gaussian_of_fewer_vectors_than_dimensions_stays_in_their_span():
    x = make_activations(5)

    drawn = gaussian_like(x, 100, seed=0)

    axes = torch.linalg.svd(x - x.mean(0)).Vh
    centered = drawn - x.mean(0)
    assert (centered @ axes[4:].T).norm() < 1e-3 * centered.norm()


def test_variance_and_effective_rank():
    x = torch.randn(50_000, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [2.0, 2, 0]
    )
    variance, rank = variance_and_rank(x)

    assert variance == pytest.approx(8, rel=0.02)
    assert rank == pytest.approx(2, rel=0.01)
    assert variance_and_rank(x[:, :1])[1] == pytest.approx(1)


def with_variances(*variances: float) -> torch.Tensor:
    """Vectors whose covariance is exactly diagonal."""
    n = len(variances)
    x = torch.linalg.qr(torch.randn(200, n + 1).index_fill(1, torch.tensor([0]), 1.0)).Q[:, 1:]
    return x.double() * (199 * torch.tensor(variances, dtype=torch.float64)).sqrt()


@pytest.mark.parametrize(
    ("variances", "unexplained", "bits"),
    [
        # Above the water level: 2 of the variance 8 is left, 1 in each direction.
        ((4.0, 4.0), 0.25, 2.0),
        # Level 1: the last direction is drowned and keeps its 0.5.
        ((16.0, 4.0, 0.5), 2.5 / 20.5, 2.0 + 1.0),
        # Level 1 as well, of one direction only.
        ((64.0, 0.5, 0.25, 0.0), 1.75 / 64.75, 3.0),
        ((3.0,), 1 / 16, 2.0),
        ((3.0, 1.0), 1.0, 0.0),
        ((3.0, 1.0), 1.7, 0.0),
        ((0.0, 0.0), 0.5, 0.0),
        ((3.0, 1.0), 0.0, math.inf),
    ],
)
def test_the_rate_of_a_gaussian_is_that_of_reverse_water_filling(variances, unexplained, bits):
    assert gaussian_rate(with_variances(*variances), unexplained) == pytest.approx(bits, abs=1e-4)


# What is refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"positions": []}, "positions is empty"),
        ({"positions": [0]}, "Position 0 is BOS"),
        ({"positions": [(0, 4)]}, "Position 0 is BOS"),
        ({"positions": [(4, 3)]}, r"up to its last, both included; got \(4, 3\)"),
        ({"positions": [-1]}, r"from 1 or more up to its last, both included; got \(-1, -1\)"),
        ({"positions": [2, "3"]}, "positions must be whole numbers, or ranges .*; one is '3'"),
        ({"positions": [(1, 2, 3)]}, r"one is \(1, 2, 3\)"),
        ({"positions": [2, 2]}, "positions must be different"),
        ({"positions": [32]}, "beyond the model's context of 32 tokens, whose last position is 31"),
        ({"positions": [31]}, "0 of 160 texts have the 31 tokens"),
        ({"hooks": []}, "hooks must be a list of 1 or more different values"),
        ({"hooks": HOOKS[:1] * 2}, "hooks must be a list of 1 or more different values"),
        (
            {"hooks": ["blocks.0.hook_resid"]},
            "The model has no hook 'blocks.0.hook_resid'. Did you",
        ),
        ({"seeds": ()}, "seeds must be a list of 1 or more different values"),
        ({"seeds": (1, 1)}, "seeds must be a list of 1 or more different values"),
        ({"max_unexplained": 0.0}, "max_unexplained must be a number above 0 and below 1"),
        ({"max_unexplained": 1.0}, "max_unexplained must be a number above 0 and below 1"),
        ({"held_out_share": 0.0}, "held_out_share must be a number above 0 and below 1"),
        ({"vectors_per_sequence": 2}, "from 1 to 1, the width of the narrowest range"),
        ({"vectors_per_sequence": 0}, "vectors_per_sequence must be a whole number of at least 1"),
        ({"batch_size": 81}, "A cell has 80 training vectors .* fewer than batch_size = 81"),
        ({"cfg": small_cfg(n_levels=3)}, "one bit a latent and without feedback.*n_levels=3"),
        ({"cfg": small_cfg(d_sae=41)}, r"fewer than 2 × cfg.d_sae = 82"),
        (
            {"cfg": small_cfg(d_in=8, target_entropy=None)},
            "cfg.d_in is 8, but the hidden states have",
        ),
        ({"text_column": "review"}, "The dataset has no column 'review'; it has text"),
        ({"dataset": []}, "0 of 0 texts have the 16 tokens"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_any_text_is_read(arguments, message):
    model = make_model()
    with (
        patch.object(model, "run_with_cache", wraps=model.run_with_cache) as run,
        pytest.raises(ValueError, match=message),
    ):
        profile_of(model, **arguments)

    assert all(call.args[0].numel() == 1 for call in run.call_args_list)


def test_a_position_where_all_texts_are_the_same_so_far_is_refused():
    texts = [f"word1 {text}" for text in make_text()["text"]]

    with pytest.raises(
        ValueError, match=r"All texts are the same up to position 1, .* Begin later"
    ):
        profile_of(dataset=texts)

    assert profile_of(dataset=texts, positions=[2], seeds=(0,)).labels == ["2"]


@pytest.mark.parametrize(
    ("name", "missing"), [("tokenizer", "has no tokenizer"), ("bos", "no BOS")]
)
def test_a_model_that_cannot_read_text_is_refused(name, missing):
    model = make_model()
    if name == "bos":
        assert model.tokenizer is not None
        model.tokenizer.bos_token = None
    else:
        model.tokenizer = None
    with pytest.raises(ValueError, match=missing):
        profile_of(model)


# Table, plot and numbers


def made_profile(values: dict[tuple[str, str, str | None], list[float]]) -> EntropyProfile:
    rows = [
        ProfileRow(
            *(hook, label, float(label), control, seed, 4.0, 2.5, 7.0),
            {
                "chow_liu_entropy": value,
                "marginal_entropy": value + 1,
                "minibatch_entropy": None,
                "unexplained_variance": 0.41,
                "plug_in_ceiling": 10.0,
            },
        )
        for (hook, label, control), row_values in values.items()
        for seed, value in enumerate(row_values)
    ]
    return EntropyProfile(tuple(rows), "token position", 0.4, 100)


VALUES = {
    ("a", "1", None): [10.0, 12.0, 14.0],
    ("a", "8", None): [20.0, 23.0, 26.0],
    ("a", "1", "gaussian"): [1.0, 1.0, 1.0],
    ("a", "8", "gaussian"): [2.0, 2.0, 2.0],
}


def test_intervals_are_students():
    profile = made_profile(VALUES)

    assert profile.interval("a", 1) == pytest.approx((12, 4.302653 * 2 / math.sqrt(3)))
    assert profile.interval("a", 8, "gaussian") == (2.0, 0.0)
    # Pairs, not the spread of each: 10, 11, 12.
    difference = profile.difference(("a", 8, None), ("a", 1, None))
    assert difference == pytest.approx((11, 4.302653 / math.sqrt(3)))
    one = SeedInterval.of([3.0])
    assert one.mean == 3
    assert math.isnan(one.half_width)
    assert one.format(1) == "3.0"
    # 20 degrees of freedom: 2.086.
    assert SeedInterval.of([0.0, 1.0] * 10 + [0.5]).half_width == pytest.approx(
        2.086 * 0.5 / math.sqrt(21), rel=1e-3
    )


def test_the_table_has_every_number():
    lines = made_profile(VALUES).table().splitlines()

    assert lines[0].startswith(
        "| hook | token position | control | Chow–Liu | marginal | minibatch"
    )
    assert lines[2] == (
        "| a | 1 | | 12.0 ± 5.0 | 13.0 ± 5.0 | – | 0.410 ± 0.000 | 7.0 ± 0.0 | 10.0 ± 0.0 | 4.0 ± 0.0 | 2.5 ± 0.0 |"
    )
    assert len(lines) == 2 + 4
    assert len({line.count("|") for line in lines}) == 1


def test_an_unknown_cell_is_named():
    with pytest.raises(KeyError, match=r"no cell \('a', '3', None\).*\['1', '8'\]"):
        made_profile(VALUES).interval("a", 3)


def test_json(profile):
    numbers = json.loads(json.dumps(profile.to_dict(), allow_nan=False))

    assert numbers["n_texts"] == 100
    assert numbers["max_unexplained"] == 0.5
    assert len(numbers["rows"]) == len(profile.rows)
    assert {"hook", "label", "seed", "control", "effective_rank", "chow_liu_entropy"} <= set(
        numbers["rows"][0]
    )


def test_the_plot_has_a_line_a_hook_and_control_and_units(tmp_path):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")

    figure = made_profile(VALUES).plot("A title")

    axes: Any = figure.axes[0]
    lines = {line.get_label(): line for line in axes.lines}
    assert list(lines) == ["a", "a, gaussian"]
    assert list(lines["a"].get_xdata()) == [1, 8]
    assert list(lines["a"].get_ydata()) == [12, 23]
    assert lines["a"].get_linestyle() == "-"
    assert lines["a, gaussian"].get_linestyle() == "--"
    assert len(axes.collections) == 2
    assert axes.get_xlabel() == "token position (BOS is 0)"
    assert axes.get_ylabel() == "entropy, bits per vector, at 0.4 unexplained"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "8"]
    assert axes.get_title() == "A title"
    figure.savefig(tmp_path / "profile.png")
    matplotlib.pyplot.close(figure)


def test_it_is_exported():
    assert bae_lens.entropy_profile is entropy_profile


# Models that have no BOS, texts that are missing, and what is no text


def test_without_bos_a_text_needs_one_token_more(caplog):
    texts = [" ".join(f"word{(i * 7 + j) % 40}" for j in range(4 + i % 2)) for i in range(120)]
    model = make_model()
    assert profile_of(model, texts, positions=[(2, 4)], steps=2, seeds=(0,)).n_texts == 100
    model.cfg.default_prepend_bos = False
    short = profile_of(model, texts, positions=[(2, 4)], steps=2, seeds=(0,))
    assert (short.n_texts, short.n_too_short) == (60, 60)
    assert "There are only 60 texts of at least 5 tokens" in caplog.text


def test_hidden_states_begin_as_to_tokens_does(tmp_path):
    hooked = make_model()
    hooked.cfg.default_prepend_bos = False
    for model in (hooked, make_neox_bridge(tmp_path), make_model()):
        [ids] = tokenize(model, ["word1 word2"])
        assert torch.equal(ids[None], model.to_tokens("word1 word2"))


def test_a_model_without_bos_needs_no_bos_token():
    model: Any = make_model()
    model.cfg.default_prepend_bos = False
    model.tokenizer.bos_token = None
    model.cfg.tokenizer_prepends_bos = False
    check_tokenizer(model)


def test_missing_texts_are_passed_over():
    texts = list(make_text()["text"])
    gaps: list[Any] = [None, *texts[:50], "", float("nan"), *texts[50:]]
    options = {"positions": [(1, 3)], "steps": 2, "seeds": (0,), "gaussian_control": False}
    rows = [{"text": text} for text in gaps]
    for dataset in (gaps, rows):
        assert profile_of(dataset=dataset, **options).rows == profile_of(**options).rows


@pytest.mark.parametrize("value", [5, b"a", ["a"], "\ud800"])
def test_what_is_no_text_is_refused_with_row_and_value(value):
    with pytest.raises(ValueError, match=r"^The 'text' of row 2 has "):
        profile_of(dataset=[{"text": "word1"}, {"text": value}])
    with pytest.raises(ValueError, match=r"^Text 2 has "):
        profile_of(dataset=["word1", value])


def test_the_old_name_of_the_interval_warns() -> None:
    from bae_lens import entropy

    with pytest.warns(FutureWarning, match="SeedInterval"):
        assert entropy.Interval is SeedInterval
