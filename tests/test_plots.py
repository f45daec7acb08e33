"""Figures: everything that was measured is in them, and nothing is drawn twice or lost."""

from __future__ import annotations

import itertools
import json
import math
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch

from bae_lens.evals import CodeStatistics, CodeSummary
from bae_lens.plots import plot_densities, plot_training, read_metric_log

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
    # A bin is a factor of 2000^(1/40) wide, and the centre is its middle.
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


# Metric logs


def test_a_metric_log_as_columns(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0, "losses/mse_loss": 2.5}\n{"step": 10, "losses/mse_loss": 1.5}\n')

    assert read_metric_log(path) == {"step": [0, 10], "losses/mse_loss": [2.5, 1.5]}


def test_missing_values_of_a_metric_log_are_nan(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [{"a": 1.0}, {"a": None, "b": 2.0}, {"b": 0.0}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))

    log = read_metric_log(str(path))

    assert list(log) == ["a", "b"]
    assert log["a"][0] == 1.0
    assert math.isnan(log["a"][1])
    assert math.isnan(log["a"][2])
    assert math.isnan(log["b"][0])
    assert log["b"][1:] == [2.0, 0.0]


def test_an_empty_metric_log(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")

    assert read_metric_log(tmp_path / "metrics.jsonl") == {}


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
    assert right.get_ylabel().startswith("marginal entropy")
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


# Without matplotlib


@pytest.mark.parametrize(
    "plot", [lambda: plot_densities({"BAE": code_of(COUNTS, 2_000)}), lambda: plot_training({})]
)
def test_without_matplotlib_the_error_is_the_command(monkeypatch, plot):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)

    with pytest.raises(ImportError, match=r"pip install 'bae-lens\[demo\]'"):
        plot()


def test_a_last_line_that_was_cut_short_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 9, "losses/mse_loss": 2.0}\n{"step": 19, "losses/mse')

    assert read_metric_log(path) == {"step": [9], "losses/mse_loss": [2.0]}
