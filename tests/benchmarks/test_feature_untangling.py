"""The comparison of architectures: its arithmetic, its file, and one small training of each kind."""

from __future__ import annotations

import importlib
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

# Benchmarks are scripts: they import each other as their own folder lets them.
sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
trials: Any = importlib.import_module("untangling_trials")
tables: Any = importlib.import_module("untangling_report")
benchmark: Any = importlib.import_module("feature_untangling")
SHARES = (
    "dense_share_10",
    "dense_share_10_folded",
    "dense_share_1",
    "dense_share_1_folded",
    "dead_share",
)

TASK = trials.synthetic_task(
    heavy=False,
    d_in=24,
    d_sae=48,
    steps=40,
    l0s=(2, 4, 8),
    entropies=(8, 16, 24),
    n_train=4096,
    n_validation=2048,
    n_test=2048,
    n_quantized=2048,
)


def row_of(
    points: list[tuple[float | None, float, float]],
    seed: int = 0,
    level: int = 1,
    arch: str = "topk",
    lr: float = 1e-3,
    **fields: Any,
) -> Any:
    trial = trials.Trial(TASK.name, arch, level, lr, seed)
    code = dict.fromkeys(SHARES, 0.0) | {"l0": 4.0, "support_entropy": points[0][1]}
    truth = {"f1_score": 0.5, "mcc": 0.5, "true_l0": 4.0}
    return trials.Row(trial, 0.5, points[-1][2], code, points, **({"truth": truth} | fields))


def test_a_pareto_front_keeps_what_no_point_beats():
    rows = [row_of([(0, 10.0, 0.5), (4, 30.0, 0.8)]), row_of([(0, 20.0, 0.4), (4, 25.0, 0.7)])]

    assert [p[:2] for p in tables.pareto(rows)] == [(10.0, 0.5), (25.0, 0.7), (30.0, 0.8)]


def test_an_envelope_is_concave():
    rows = [row_of([(0, 10.0, 0.5), (4, 20.0, 0.52), (6, 29.0, 0.69)]), row_of([(0, 30.0, 0.7)])]

    assert [p[:2] for p in tables.envelope(rows)] == [(10.0, 0.5), (30.0, 0.7)]
    bent = tables.envelope([row_of([(0, 10.0, 0.5), (1, 20.0, 0.7), (2, 30.0, 0.8)])])
    assert [p[:2] for p in bent] == [(10.0, 0.5), (20.0, 0.7), (30.0, 0.8)]


def test_interpolation_is_linear_between_constant_after_and_unknown_before():
    points = [(10.0, 0.5), (20.0, 0.7)]

    assert tables.interpolate(points, 15.0) == pytest.approx(0.6)
    assert tables.interpolate(points, 10.0) == 0.5
    assert tables.interpolate(points, 99.0) == 0.7
    assert math.isnan(tables.interpolate(points, 9.0))
    assert math.isnan(tables.interpolate([], 9.0))


def test_a_hull_is_reached_with_its_blocks():
    hull = [tables.Point(10.0, 0.5, (0.4, 0.6)), tables.Point(20.0, 0.7, (0.2, 0.4))]

    middle = tables.reached(hull, 15.0)

    assert middle.ev == pytest.approx(0.6)
    assert middle.unexplained == pytest.approx((0.3, 0.5))
    assert tables.reached(hull, 99.0).ev == 0.7
    assert tables.reached(hull, 9.0) is None
    assert tables.reached([], 9.0) is None


def rows_of(arch: str, points: Any, levels: tuple[int, ...] = (0, 1, 2), **fields: Any) -> Any:
    """The same points at all levels, at the middle one of three seeds."""
    return [
        row_of(points, seed=seed, level=level, arch=arch, **fields)
        for level in levels
        for seed in ((0, 1, 2) if level == 1 else (0,))
    ]


def test_a_comparison_is_with_the_peer_that_is_the_hardest_to_beat():
    ours = [row_of([(None, 15.0, 0.62)], seed=s, arch="bae") for s in (0, 1, 2)]
    tried = {
        "topk": rows_of("topk", [(0, 10.0, 0.5), (4, 20.0, 0.7)]),
        # Beyond its bits its last point counts.
        "batchtopk": rows_of("batchtopk", [(0, 10.0, 0.65)]),
        # Nobody knows its envelope: two of its levels are not trained yet.
        "jumprelu": rows_of("jumprelu", [(0, 10.0, 0.66)], levels=(1,)),
    }
    peers = ["topk", "batchtopk", "jumprelu", "gated"]

    compared = tables.compare(ours, tried, peers, [0, 1, 2])

    assert compared.differences["topk"] == pytest.approx([0.02] * 3)
    assert compared.best(peers) == "batchtopk"
    assert compared.mean("batchtopk") == pytest.approx(-0.03)
    assert compared.interval("batchtopk") == pytest.approx((-0.03, -0.03))
    assert compared.mean("gated") is compared.mean("jumprelu") is None


def test_the_interval_of_one_seed_is_over_blocks_of_tokens():
    mine, theirs = [0.30, 0.40, 0.35, 0.35], [0.34, 0.44, 0.35, 0.35]
    ours = [row_of([(None, 15.0, 0.65)], arch="bae", unexplained=[mine])]
    tried = {"topk": rows_of("topk", [(0, 15.0, 0.63)], unexplained=[theirs])}

    compared = tables.compare(ours, tried, ["topk"], [0])
    low, high = compared.interval("topk")

    assert compared.mean("topk") == pytest.approx(0.02)
    # Resamples of differences 0.04, 0.04, 0 and 0.
    assert -1e-9 < low < 0.02 < high < 0.04 + 1e-9


def test_the_best_point_is_the_cheapest_within_the_tolerance():
    points: list[tuple[float | None, float, float]] = [
        (0, 10.0, 0.5),
        (3, 20.0, 0.795),
        (8, 90.0, 0.8),
    ]

    assert tables.best_point(row_of(points)) == (3, 20.0, 0.795)


def test_results_are_resumed_from_their_file(tmp_path):
    path = tmp_path / "results.json"
    row = row_of([(None, 10.0, 0.5)])
    row.recipe = trials.recipe_of(row.trial, TASK)
    benchmark.Results(path, [TASK]).add(row)

    resumed = benchmark.Results(path, [TASK])

    assert list(resumed.rows) == [row.trial.key]
    assert resumed.rows[row.trial.key].trial == row.trial
    assert len(json.loads(path.read_text())["rows"]) == 1


def test_a_file_of_other_settings_is_refused(tmp_path):
    path = tmp_path / "results.json"
    benchmark.Results(path, [TASK]).add(row_of([(None, 10.0, 0.5)]))

    with pytest.raises(SystemExit, match="other settings"):
        benchmark.Results(path, [trials.synthetic_task(heavy=False)])


def test_what_was_of_another_recipe_is_forgotten_and_nothing_else(tmp_path, monkeypatch, capsys):
    path = tmp_path / "results.json"
    results = benchmark.Results(path, [TASK])
    for arch in ("bae_levels", "bae", "topk"):
        row = row_of([(None, 10.0, 0.5)], arch=arch)
        row.recipe = trials.recipe_of(row.trial, TASK)
        results.add(row)
    assert len(benchmark.Results(path, [TASK]).rows) == 3
    monkeypatch.setitem(trials.RECIPES, "bae_levels", {"n_levels": 3})

    left = benchmark.Results(path, [TASK]).rows.values()

    assert {row.trial.arch for row in left} == {"bae", "topk"}
    assert "forgotten: BAE, levels 1." in capsys.readouterr().out
    # Rows of tasks that are not asked for stay in the file as they are.
    assert len(benchmark.Results(path, []).rows) == 3


def test_everyone_has_as_many_learning_rates():
    assert set(benchmark.LEARNING_RATES) == set(trials.NAMES)
    assert {len(rates) for rates in benchmark.LEARNING_RATES.values()} == {len(benchmark.RATES)}
    grid = (1e-3, 2e-3, 4e-3, 8e-3)
    assert benchmark.neighbors(grid, 2e-3) == [1e-3, 2e-3, 4e-3]
    assert benchmark.neighbors(grid, 8e-3) == [2e-3, 4e-3, 8e-3]
    assert benchmark.neighbors(grid, 1e-3) == [1e-3, 2e-3, 4e-3]
    assert benchmark.neighbors([2e-3], 2e-3) == [2e-3]


class InPlace:
    """Stands in for the processes: gives rows whose rate of 4e-3 is the best, as long as there is time."""

    def __init__(self, n_in_time: float = math.inf) -> None:
        self.n_in_time, self.n_left_out = n_in_time, 0
        self.asked: list[Any] = []

    @property
    def is_time_out(self) -> bool:
        return len(self.asked) >= self.n_in_time

    def run(self, jobs: Any, failed: Any, n_after: int) -> Any:
        for name, (_, (trial, *_)) in jobs.items():
            if self.is_time_out:
                self.n_left_out += 1
                continue
            self.asked.append(trial)
            row = row_of([(0, 10.0, 0.5), (1, 20.0, 0.6)])
            row.trial, row.validation_ev = trial, -abs(math.log(trial.lr / 4e-3))
            yield name, row


def run_of(argv: list[str], workers: InPlace, monkeypatch: pytest.MonkeyPatch) -> Any:
    args = benchmark.parse(argv)
    args.work = Path()
    monkeypatch.setattr(benchmark, "prepare", lambda *_: None)
    parts = benchmark.make_parts(args)
    results = benchmark.Results(None, [part.task for part in parts])
    run = benchmark.Run(parts, results, workers, args)
    n_to_come = run.n_to_come
    run.everything()
    if workers.n_in_time == math.inf:
        assert len(workers.asked) == n_to_come
        assert run.n_to_come == 0
    return run


ARCHS = ["--archs", "bae", "topk"]


def test_rates_are_searched_at_one_layer_and_tried_again_elsewhere(monkeypatch):
    workers = InPlace()
    run = run_of(ARCHS, workers, monkeypatch)

    def rates(task: str, arch: str = "bae") -> list[float]:
        return sorted({t.lr for t in workers.asked if (t.task, t.arch) == (task, arch)})

    for searched in ("lm-15", "synth", "synth-heavy"):
        assert rates(searched) == list(benchmark.RATES)
    for other in ("lm-8", "lm-22", "lm-15-x8"):
        assert rates(other) == rates(other, "topk") == [2e-3, 4e-3, 8e-3]
    # A task is finished before the next but one is begun, those that need the rates of others last.
    order = [t.task for t in workers.asked]
    begun = list(dict.fromkeys(order))
    assert begun == ["lm-15", "synth-heavy", "synth", "lm-8", "lm-22", "lm-15-x8"]
    for name, next_but_one in zip(begun, begun[2:], strict=False):
        assert len(order) - order[::-1].index(name) <= order.index(next_but_one)
    counted = {
        pair: [(r.trial.level, r.trial.seed) for r in own] for pair, own in run.rows().items()
    }
    levels_and_seeds = [(0, 0), (1, 0), (1, 1), (1, 2), (2, 0)]
    assert counted["lm-8", "bae"] == counted["synth", "topk"] == levels_and_seeds
    # Wide: one seed, and only of peers what their curve needs.
    assert counted["lm-15-x8", "bae"] == [(1, 0)]
    assert counted["lm-15-x8", "topk"] == [(0, 0), (1, 0), (2, 0)]
    assert {r.trial.lr for own in run.rows().values() for r in own} == {4e-3}


def test_full_searches_and_trains_everything_everywhere(monkeypatch):
    workers = InPlace()
    run_of([*ARCHS, "--full", "--sets", "lm"], workers, monkeypatch)

    tasks = {t.task for t in workers.asked}
    assert tasks == {f"lm-{layer}{width}" for layer in (8, 15, 22) for width in ("", "-x8")}
    # All rates at the middle level, and nine of level and seed, one of which is among them.
    assert len(workers.asked) == len(tasks) * 2 * (len(benchmark.RATES) + 8)


@pytest.mark.parametrize("n_in_time", [0, 1, 8, 14, 40, 100])
def test_tables_and_plot_are_of_what_there_was_time_for(n_in_time, monkeypatch, capsys, tmp_path):
    run = run_of(ARCHS, InPlace(n_in_time), monkeypatch)
    tables.report(run.tasks, run.rows(), list(run.results.rows.values()), [0, 1, 2])
    tables.plot(run.tasks, run.rows(), [0, 1, 2], tmp_path / "plot.png")

    printed = capsys.readouterr().out
    assert ("Nothing was measured." in printed) == (n_in_time < 100)
    assert ("## Targets" in printed) == (n_in_time > 0)
    assert (tmp_path / "plot.png").exists() == (n_in_time > 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("activations")
    trials.prepare([TASK], folder, "cpu")
    return folder


def test_a_whole_run_is_trained_reported_and_not_repeated(folder, monkeypatch, capsys, tmp_path):
    class InThisProcess(InPlace):
        def __enter__(self) -> Any:
            return self

        def __exit__(self, *exception: object) -> None: ...

        def run(self, jobs: Any, failed: Any, n_after: int) -> Any:
            for name, (function, arguments) in jobs.items():
                self.asked.append(arguments[0])
                yield name, function(*arguments)

    workers = InThisProcess()
    monkeypatch.setattr(benchmark, "Workers", lambda *_: workers)
    parts = [benchmark.Part(TASK, None, (0, 1))]
    monkeypatch.setattr(benchmark, "make_parts", lambda _: parts)
    argv = [
        "--archs",
        "bae_levels_feedback",
        "topk",
        "batchtopk_feedback",
        "--seeds",
        "0",
        "1",
    ]
    argv += ["--learning_rates", "1e-3", "4e-3", "--work", str(folder)]
    argv += ["--json", str(tmp_path / "rows.json")]
    n_threads = torch.get_num_threads()

    benchmark.measure_and_report(benchmark.parse(argv))
    first = capsys.readouterr().out
    n_trained = len(workers.asked)
    benchmark.measure_and_report(benchmark.parse(argv))
    torch.set_num_threads(n_threads)

    # Two rates, the other seed, the other two levels.
    assert n_trained == len(workers.asked) == 3 * 5
    second = capsys.readouterr().out
    printed = first[first.index("## ") :]
    assert printed == second[second.index("## ") :]
    targets = printed[printed.index("## Targets") :].splitlines()
    assert len([line for line in targets if "| BAE, levels and feedback |" in line]) == 3
    # Against the only peer; a level of one seed has its interval over blocks.
    last = [line for line in targets if "| 24 bits |" in line]
    assert len(last) == 1
    assert "| TopK | " in last[0]
    assert " [" in last[0]


@pytest.mark.parametrize("arch", list(trials.NAMES))
def test_every_architecture_is_trained_and_scored(arch, folder):
    n_threads = torch.get_num_threads()
    row = trials.run_trial(
        trials.Trial("synth", arch, 1, 2e-3, 0), TASK, folder, "cpu", score_ce=False
    )
    torch.set_num_threads(n_threads)

    is_exact = arch in (*trials.OURS, trials.BINARY)
    assert len(row.points) == (1 if is_exact else len(trials.RESOLUTIONS))
    bits = [bits for _, bits, _ in row.points]
    assert bits == sorted(bits)
    assert min(bits) >= row.code["chow_liu_entropy"] - 1e-6
    # Fine quantization costs next to nothing, and what was saved is what was trained.
    assert row.points[-1][2] == pytest.approx(row.explained_variance, abs=0.05)
    assert row.explained_variance > 0.05
    assert 0 <= row.truth["f1_score"] <= 1
    assert row.truth["true_l0"] > 0
    for (_, _, ev), blocks in zip(row.points, row.unexplained, strict=True):
        assert len(blocks) == TASK.n_quantized / trials.BLOCK
        assert sum(blocks) / len(blocks) == pytest.approx(1 - ev, abs=1e-4)


def test_every_architecture_has_a_line_of_its_own():
    styles = tables._STYLES

    assert set(styles) == set(trials.NAMES)
    assert len(set(styles.values())) == len(styles)
