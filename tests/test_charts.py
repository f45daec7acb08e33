"""Figures: everything that was measured is in them, and nothing is drawn twice or lost."""

from __future__ import annotations

import itertools
import json
import math
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from bae_lens.concept_ablation import AblationRow, ConceptAblationResult, SalientTokens
from bae_lens.concept_ablation.result import CAUSAL, CONTROLS, STORED
from bae_lens.evals import CodeStatistics, CodeSummary
from bae_lens.evals.plot import plot_densities
from bae_lens.scoring.intruder_result import LatentTrials, Tally
from bae_lens.scoring.ranking import Comparison, Ranking, RankingSettings
from bae_lens.training.metric_log import read_metric_log
from bae_lens.training.plot import plot_training
from tests.quiz.quizzes import recoverability
from tests.report.helpers import make_comsem, make_intruder, make_records

if TYPE_CHECKING:
    from matplotlib.figure import Figure

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    matplotlib.pyplot.close("all")


def code_of(counts: list[int], n_tokens: int) -> CodeSummary:
    """A code whose latents fired so many times each."""
    statistics = CodeStatistics(len(counts))
    statistics.n_tokens, statistics.n_fired = n_tokens, torch.tensor(counts)
    return statistics.compute()


def panels(figure: Figure) -> list[Any]:
    """The axes, untyped: matplotlib's stubs allow for more kinds of data than are drawn here."""
    return figure.axes


def texts_of(axes: Any) -> list[str]:
    return [text.get_text().strip() for text in axes.texts]


# Densities

COUNTS = [0, 0, 0, 1, 3, 90, 150, 2_000]


def test_densities_have_marks_labels_and_the_number_of_dead():
    figure = plot_densities({"BAE": code_of(COUNTS, 2_000)}, title="A title")

    [axes] = panels(figure)
    assert axes.get_title() == "A title"
    assert axes.get_xscale() == "log"
    assert axes.get_xlabel() == "share of tokens on which the latent fires"
    assert axes.get_ylabel() == "latents per bin"
    assert set(texts_of(axes)) == {"1 %", "10 %", "3 never"}
    marks = {line.get_xdata()[0] for line in axes.lines if len(set(line.get_xdata())) == 1}
    assert marks == {0.01, 0.1}
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["BAE"]
    assert [bar.get_height() for bar in axes.patches] == [3]
    assert axes.patches[0].get_x() < 1 / 2_000


def histogram_of(axes: Any, name: str) -> torch.Tensor:
    [line] = [line for line in axes.lines if line.get_label() == name]
    return torch.tensor(line.get_ydata())


def test_latents_stand_in_the_bin_of_their_rate():
    figure = plot_densities({"BAE": code_of(COUNTS, 2_000)})

    [line] = [line for line in panels(figure)[0].lines if line.get_label() == "BAE"]
    # A bin is a factor of 2000^(1/40) wide, and the center is its middle.
    half_bin = math.log(2_000) / 80
    drawn = [
        x
        for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)
        for _ in range(round(float(y)))
    ]
    rates = [count / 2_000 for count in COUNTS if count > 0]
    assert len(drawn) == len(rates)
    assert all(
        abs(math.log(x / rate)) <= half_bin * 1.01
        for x, rate in zip(sorted(drawn), rates, strict=True)
    )


@pytest.mark.parametrize("n_tokens", [10, 999, 1_000, 3_000, 4_097, 12_345, 65_536, 250_000])
def test_no_latent_is_lost_from_the_rarest_to_the_always_on(n_tokens):
    counts = [0, 1, 1, 2, n_tokens // 2, n_tokens - 1, n_tokens, n_tokens]

    figure = plot_densities({"BAE": code_of(counts, n_tokens)})

    assert histogram_of(panels(figure)[0], "BAE").sum() == 7


def test_several_codes_are_told_apart():
    codes = {
        "BAE": code_of([0, 5, 50], 1_000),
        "TopK": code_of([0, 0, 500], 4_000),
        "ReLU": code_of([1, 1, 1], 1_000),
    }

    [axes] = panels(plot_densities(codes))

    lines = {line.get_label(): line for line in axes.lines if line.get_label() in codes}
    assert list(lines) == list(codes)
    assert len({line.get_color() for line in lines.values()}) == 3
    assert len({line.get_linestyle() for line in lines.values()}) == 3
    assert [bar.get_height() for bar in axes.patches] == [1, 2, 0]
    edges = [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in axes.patches]
    assert all(right < left for (_, right), (left, _) in itertools.pairwise(edges))
    assert [histogram_of(axes, name).sum() for name in codes] == [2, 1, 3]


def test_densities_can_be_saved(tmp_path):
    path = tmp_path / "densities.png"

    plot_densities({"BAE": code_of(COUNTS, 2_000)}).savefig(path)

    assert path.stat().st_size > 5_000


# Training

BAE_LOG = {
    "details/n_training_samples": [1e6, 2e6, 3e6],
    "losses/mse_loss": [300.0, math.nan, 100.0],
    "metrics/entropy": [900.0, 700.0, 610.0],
}
TOPK_LOG = {"details/n_training_samples": [1e6, 2e6], "losses/mse_loss": [200.0, 90.0]}


def test_training_draws_loss_and_entropy_over_tokens():
    figure = plot_training({"BAE": BAE_LOG, "TopK": TOPK_LOG}, title="A title")

    left, right = panels(figure)
    assert [line.get_label() for line in left.lines] == ["BAE", "TopK"]
    assert [line.get_label() for line in right.lines] == ["BAE"]
    assert list(left.lines[0].get_xdata()) == [1.0, 2.0, 3.0]
    assert list(left.lines[1].get_ydata()) == [200.0, 90.0]
    assert list(right.lines[0].get_ydata()) == [900.0, 700.0, 610.0]
    assert left.get_yscale() == "log"
    assert left.get_ylabel().startswith("squared error per token")
    assert right.get_ylabel().startswith("entropy of the code")
    assert {axes.get_xlabel() for axes in figure.axes} == {
        "training tokens (million, replays counted)"
    }
    assert figure.get_suptitle() == "A title"
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["BAE", "TopK"]


def test_training_draws_the_entropy_target():
    _, right = panels(plot_training({"BAE": BAE_LOG}, target_entropy=576.0))

    labels = [text.get_text() for text in right.get_legend().get_texts()]
    assert labels == ["BAE", "target 576"]
    assert [line.get_ydata()[0] for line in right.lines] == [900.0, 576.0]


def test_training_of_a_run_without_entropy_is_drawn_without_a_warning(recwarn, tmp_path):
    figure = plot_training({"TopK": TOPK_LOG})
    figure.savefig(tmp_path / "training.png")

    assert len(figure.axes[1].lines) == 0
    assert not [str(w.message) for w in recwarn if "legend" in str(w.message)]


def test_a_written_log_is_drawn(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [{name: column[i] for name, column in BAE_LOG.items()} for i in range(3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows).replace("NaN", "null"))

    left, right = panels(plot_training({"BAE": read_metric_log(path)}))

    assert math.isnan(left.lines[0].get_ydata()[1])
    assert list(right.lines[0].get_ydata()) == BAE_LOG["metrics/entropy"]


# Concept ablation

METHODS = ("concept", *CONTROLS, "LEACE", "concept, probe retrained", "LEACE, probe retrained")


def make_row(
    place: str,
    method: str,
    right: int,
    norm: float,
    concept_of: str = "",
    read_by: str = "probe",
) -> AblationRow:
    """A row of twenty examples, of which the first so many are right."""
    return AblationRow(
        place=place,
        concept_of=concept_of,
        method=method,
        read_by=read_by,
        rank=1.0,
        removed_norm=norm,
        correct=tuple(i < right for i in range(20)),
        fold_accuracies=(right / 20,),
    )


def make_ablation(
    *places: str, salient: str = "integrated_gradients", concept_of: str = "word"
) -> ConceptAblationResult:
    """Every method in every place, the label words beside the probe in the forward pass."""
    rows = []
    for place in places:
        for reader in ("probe", "label words")[: 1 + (place in CAUSAL)]:
            own = {"read_by": reader}
            rows.append(make_row(place, "none", 18, 0.0, **own))
            for i, method in enumerate(METHODS[: -2 if reader == "label words" else None]):
                own["concept_of"] = "" if method.startswith(("mean", "LEACE")) else concept_of
                rows.append(make_row(place, method, 17 - i, 0.004 * 2**i, **own))
    # A concept that is not drawn beside that of the words.
    rows.append(make_row(places[0], "concept", 3, 0.9, concept_of="readout"))
    return ConceptAblationResult(
        dictionary="CLVQ-VAE",
        hook_names=("lower", "upper"),
        label_names=("a", "b"),
        labels=(0,) * 12 + (1,) * 8,
        settings={"seed": 0, "salient": salient},
        rows=tuple(rows),
        salient=SalientTokens(("good",) * 20),
    )


def marks_of(axes: Any) -> list[Any]:
    return [bar.lines[0] for bar in axes.containers]


def test_ablations_are_drawn_by_place_with_the_untouched_model_and_chance():
    figure = make_ablation(*STORED, *CAUSAL).plot("A title")

    axes = panels(figure)
    assert [a.get_title() for a in axes] == [*STORED, *CAUSAL]
    assert figure.get_suptitle() == "A title"
    assert {a.get_xscale() for a in axes} == {"symlog"}
    assert [a.get_ylabel() for a in axes] == ["accuracy", "", "accuracy", ""]
    assert ["norm" in a.get_xlabel() for a in axes] == [False, False, True, True]
    assert [len(marks_of(a)) for a in axes] == [9, 9, 16, 16]
    for a in axes:
        levels = [line.get_ydata()[0] for line in a.lines if line.get_linestyle() != "None"]
        assert levels == [0.6] + [0.9] * (2 if a.get_title() in CAUSAL else 1)
    [legend] = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "chance",
        "untouched, probe",
        "untouched, label words",
        *METHODS[:-2],
        "hollow: read by label words",
        "small: probe retrained",
    ]


def test_an_ablation_stands_at_its_norm_and_accuracy_with_the_interval_of_its_change():
    result = make_ablation("lower vector")

    [axes] = panels(result.plot())

    rows = [row for row in result.rows if row.method != "none" and row.concept_of != "readout"]
    for row, bar in zip(rows, axes.containers, strict=True):
        [mark], [stem] = bar.lines[0].get_xydata(), bar.lines[2][0].get_segments()
        assert mark[0] == pytest.approx(row.removed_norm, rel=0.13)
        assert mark[1] == row.accuracy
        lost = result.change(row)
        assert stem[:, 1].tolist() == pytest.approx([0.9 - lost.high, 0.9 - lost.low])
        low, high = axes.get_ylim()
        assert low < stem[0, 1] <= stem[1, 1] < high
        assert axes.get_xlim()[0] < mark[0] < axes.get_xlim()[1]


def test_methods_readers_and_retrained_probes_are_told_apart():
    axes = panels(make_ablation("all tokens").plot())[0]

    marks = marks_of(axes)
    probe, retrained, words = marks[:7], marks[7:9], marks[9:]
    assert len({mark.get_marker() for mark in probe}) == 7
    assert len({mark.get_color() for mark in probe}) == 4
    for other, same in ((retrained, (probe[0], probe[6])), (words, probe)):
        assert [m.get_marker() for m in other] == [m.get_marker() for m in same]
        assert [m.get_color() for m in other] == [m.get_color() for m in same]
    assert {m.get_markerfacecolor() for m in words} == {"white"}
    assert "white" not in {m.get_markerfacecolor() for m in marks[:9]}
    assert max(m.get_markersize() for m in retrained) < min(m.get_markersize() for m in probe)


def test_places_that_are_not_there_have_no_panel_and_nothing_removed_is_drawn(tmp_path):
    result = make_ablation("lower vector", *CAUSAL)
    nothing = replace(result.rows[1], removed_norm=0.0)

    figure = replace(result, rows=(result.rows[0], nothing, *result.rows[2:])).plot()
    figure.savefig(tmp_path / "ablation.png")

    axes = panels(figure)
    assert [a.get_title() for a in axes] == ["lower vector", *CAUSAL]
    assert [bool(a.get_xlabel()) for a in axes] == [False, True, True]
    assert marks_of(axes[0])[0].get_xdata()[0] == 0
    assert axes[0].get_xlim()[0] < 0


def test_where_only_the_readout_was_ablated_it_is_drawn():
    result = make_ablation("lower vector", salient="readout", concept_of="readout")

    [axes] = panels(result.plot())

    assert len(marks_of(axes)) == 10


# Scores of latents


def curves(axes: Any) -> dict[str, list[float]]:
    """What is drawn, by name."""
    return {str(line.get_label()): list(line.get_ydata()) for line in axes.lines}


def test_accuracies_are_drawn_in_order_beside_the_control():
    result = make_intruder(make_records(12), 4)
    figure = result.plot("A title")

    random, hard = panels(figure)
    assert figure.get_suptitle() == "A title"
    assert [axes.get_title() for axes in (random, hard)] == ["random intruder", "hard intruder"]
    assert random.get_ylabel() == "share of intruders found"
    assert random.get_xlabel() == hard.get_xlabel() == "latents, the best first"
    assert curves(random) == {
        "latents": [1.0, 0.9, 0.8, 0.7],
        "shuffled latents": [0.2] * 4,
        "chance": [0.2, 0.2],
        "threshold": [0.8, 0.8],
    }
    # Guessing is not what nothing comes to with hard ones.
    assert set(curves(hard)) == {"latents", "shuffled latents"}
    assert curves(hard)["latents"][0] == 0.5
    styles = {line.get_linestyle() for line in random.lines}
    assert len(styles) == 4
    [legend] = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(curves(random))


def test_without_hard_intruders_there_is_one_panel():
    result = make_intruder(make_records(12), 4)
    easy = [tuple(replace(t, hard=()) for t in own) for own in (result.latents, result.control)]
    [axes] = panels(replace(result, latents=easy[0], control=easy[1]).plot())
    assert axes.get_title() == "random intruder"


def test_an_intruder_test_without_answers_can_be_drawn():
    silent = (LatentTrials(0, 10, 0.5, (Tally(0, 0, 9),), ()),)
    result = make_intruder(make_records(12), 1, latents=silent, control=silent)
    [axes] = panels(result.plot())
    assert not axes.lines


def test_comsem_is_drawn_beside_positives_only():
    [axes] = panels(make_comsem(make_records(12), 3).plot("A title"))

    drawn = curves(axes)
    assert list(drawn) == [
        "balanced accuracy",
        "positives only, of those explained",
        "guessing, or no pattern",
        "threshold",
    ]
    # The one without a pattern is among the scores, and has no positives.
    assert drawn["balanced accuracy"] == [0.90625, 0.90625, 0.5]
    assert drawn["positives only, of those explained"] == [1.0, 1.0]
    assert drawn["guessing, or no pattern"] == [0.5, 0.5]
    assert axes.get_ylabel() == "score, mean over seeds"


def test_the_released_protocol_is_drawn_alone():
    [axes] = panels(make_comsem(make_records(12), 3, "released").plot())
    assert list(curves(axes)) == ["share of positives that fit", "no pattern", "threshold"]
    assert curves(axes)["share of positives that fit"] == [1.0, 1.0, 0.0]


def test_recovery_is_drawn_from_the_view_down():
    said = {"words and contexts": (0, 1, 1), "text": (0, 0, 1)}
    result = recoverability((3, 4, 5), predictions=(0, 0, 1), said=said)
    [axes] = panels(result.plot("A title"))

    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["words and contexts of the concept", "the whole text"]
    points = [tuple(bar.lines[0].get_xydata()[0]) for bar in axes.containers]
    assert points == [(result.score().mean, 0), (result.score("text").mean, 1)]
    [chance] = [line for line in axes.lines if line.get_linestyle() == ":"]
    assert chance.get_xdata() == [0.5, 0.5]
    assert texts_of(axes) == ["chance"]


def test_a_ranking_is_drawn_from_the_best_down():
    names, n = ("worse", "better"), 4
    won = tuple(Comparison(0, (0, 1), (j, j), (-1, -1)) for j in range(n))
    ranking = Ranking(names, (n, n), ("judge",), ("",), RankingSettings(), won)
    [axes] = panels(ranking.plot("A title"))

    assert [label.get_text() for label in axes.get_yticklabels()] == ["better", "worse"]
    points = [tuple(bar.lines[0].get_xydata()[0]) for bar in axes.containers]
    assert points == [(1, 0), (0, 1)]
    assert axes.figure.get_suptitle() == "A title"
    # Of one pair there is no interval, and no bar.
    [axes] = panels(replace(ranking, comparisons=won[:1]).plot())
    assert [tuple(bar.lines[0].get_xydata()[0]) for bar in axes.containers] == points
    assert not any(bar.has_xerr for bar in axes.containers)
    empty = replace(ranking, comparisons=())
    assert [label.get_text() for label in panels(empty.plot())[0].get_yticklabels()] == [*names]


# Without matplotlib


@pytest.mark.parametrize(
    "plot",
    [
        lambda: plot_densities({"BAE": code_of(COUNTS, 2_000)}),
        lambda: plot_training({}),
        lambda: make_ablation("lower vector").plot(),
        lambda: make_intruder(make_records(12), 2).plot(),
        lambda: make_comsem(make_records(12), 2).plot(),
        lambda: recoverability((1,), predictions=(0,), said={"text": (0,)}).plot(),
    ],
)
def test_without_matplotlib_the_error_is_the_command(monkeypatch, plot):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)

    with pytest.raises(ImportError, match=r"pip install .*\[demo\]"):
        plot()
