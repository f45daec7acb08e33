"""A sweep on the tiny model: what is read, trained and scored."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from sae_lens import BatchTopKTrainingSAEConfig, StandardTrainingSAEConfig, TopKTrainingSAEConfig

from bae_lens.budgets import BudgetSweep, SweepSettings, sweep, sweep_budgets
from bae_lens.training import runner
from bae_lens.training.config_file import RunConfig, load_config
from tests.examples.planted import RuleJudge
from tests.helpers import (
    BATCH,
    CONTEXT_SIZE,
    D_IN,
    D_SAE,
    HOOK,
    cross_layer_cfg,
    make_model,
    make_text,
    runner_cfg,
)

SMALL: dict[str, Any] = {"n_tokens": 600, "n_judged": 6, "n_judged_tokens": 700}


def first(question: Any) -> str:
    return question.choices[0]


def run(cfg: Any, judge: Any = None, **settings: Any) -> BudgetSweep:
    return sweep_budgets(
        RunConfig(cfg),
        SweepSettings(**{**SMALL, **settings}),
        judge,
        override_dataset=make_text(),
        override_model=make_model(),
    )


def test_each_budget_is_trained_and_scored_on_what_is_held_out(tmp_path):
    found = run(runner_cfg(tmp_path), budgets=[1, 30], n_steps=40)
    assert (found.field, found.architecture, found.hook_name) == ("target_entropy", "bae", HOOK)
    assert (found.d_in, found.d_sae, found.n_steps, found.n_config_steps) == (D_IN, D_SAE, 40, 6)
    assert (found.n_tokens, found.n_held_out, found.judge) == (480, 120, None)
    low, high = found.points
    assert (low.budget, high.budget) == (1, 30)
    # More was asked for, and more bits are there, which explain more.
    assert low.bits < high.bits
    assert low.explained_variance < high.explained_variance
    assert low.n_enough is None
    # Nothing is left behind.
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize("kind", [TopKTrainingSAEConfig, BatchTopKTrainingSAEConfig])
def test_k_is_the_number_of_latents_that_are_on(tmp_path, kind):
    cfg = runner_cfg(tmp_path, sae=kind(d_in=D_IN, d_sae=D_SAE))
    found = run(cfg, budgets=[2, 8], n_steps=30)
    assert found.field == "k"
    low, high = found.points
    assert low.l0 == pytest.approx(2, rel=0.5)
    assert high.l0 == pytest.approx(8, rel=0.5)
    # Magnitudes are counted too.
    assert low.bits > 2


def test_the_steps_are_those_of_the_time_and_of_the_config(tmp_path, monkeypatch):
    asked: list[int] = []
    fit = sweep.fit_activations

    def counted(cfg: Any, rows: Any, steps: int, *rest: Any) -> Any:
        asked.append(steps)
        return fit(cfg, rows, min(steps, 2), *rest)

    monkeypatch.setattr(sweep, "fit_activations", counted)
    # Which budgets are near after two steps, and so trained once.
    assert run(runner_cfg(tmp_path), budgets=[11, 16.5]).n_steps == 6
    assert asked == [5, 6, 6]
    long = runner_cfg(tmp_path, n_steps=10**6)
    assert run(long, budgets=[4, 8], minutes=1e-6).n_steps == 50
    # Two seconds at steps of a second each, which is less than the least.
    assert 50 <= run(long, budgets=[4, 8], minutes=0.05).n_steps < 10**6


def test_a_budget_that_is_not_met_is_trained_again_from_where_its_coefficient_came(
    tmp_path, monkeypatch
):
    starts: list[tuple[float, float]] = []
    fit = sweep.fit_activations

    def counted(cfg: Any, *rest: Any) -> Any:
        starts.append((cfg.target_entropy, cfg.entropy_coefficient))
        return fit(cfg, *rest)

    monkeypatch.setattr(sweep, "fit_activations", counted)
    run(runner_cfg(tmp_path), budgets=[1, 14], n_steps=10)
    (low, first_start), (again, second_start), (high, third_start) = starts
    assert (low, again, high) == (1, 1, 14)
    assert first_start == pytest.approx(0.01 * D_IN**1.5)
    # By 2 % a step, and in the budget that follows as far from where it would have started.
    assert second_start == pytest.approx(first_start * math.exp(0.02 * 10), rel=1e-3)
    assert third_start == pytest.approx(second_start * math.exp(0.02 * 10) / 14**1.5, rel=1e-3)


def test_the_run_that_is_timed_moves_no_coefficient(tmp_path, monkeypatch):
    starts: list[float] = []
    fit = sweep.fit_activations

    def counted(cfg: Any, *rest: Any) -> Any:
        starts.append(cfg.entropy_coefficient)
        return fit(cfg, *rest)

    monkeypatch.setattr(sweep, "fit_activations", counted)
    run(runner_cfg(tmp_path), budgets=[1, 14])
    timed, first_start, *_ = starts
    usual = 0.01 * D_IN**1.5
    assert (timed, first_start) == pytest.approx((usual / 14**1.5, usual))


def test_judged_latents_and_a_model_that_reads_each_text_once(tmp_path, monkeypatch):
    model = make_model()
    read: Counter[str] = Counter()
    forward = model.forward

    def counted(tokens: Any, *args: Any, **options: Any) -> Any:
        for row in tokens.tolist():
            read[str(row)] += 1
        return forward(tokens, *args, **options)

    monkeypatch.setattr(model, "forward", counted)
    reads = []
    for budgets in ([4, 8], [4, 8, 16]):
        read.clear()
        found = sweep_budgets(
            RunConfig(runner_cfg(tmp_path)),
            SweepSettings(**SMALL, budgets=budgets, n_steps=4),
            RuleJudge(first),
            override_dataset=make_text(),
            override_model=model,
        )
        reads.append(sum(read.values()))
        assert found.judge == "rule"
        for point in found.points:
            assert (point.n_enough or 0) >= point.n_tested
            assert point.n_tested == 6
    # A third budget costs no reading.
    assert reads[0] == reads[1]


def test_the_judge_is_shown_text_that_no_training_read(tmp_path, monkeypatch):
    shown: list[Any] = []
    store = sweep.held_out_store

    def seen(sae: Any, model: Any, text: Any) -> Any:
        shown.append(text)
        return store(sae, model, make_text() if isinstance(text, str) else text)

    monkeypatch.setattr(sweep, "held_out_store", seen)
    settings: dict[str, Any] = {"budgets": [4, 8], "n_steps": 2}
    found = run(runner_cfg(tmp_path), RuleJudge(first), **settings)
    assert (found.n_tokens, found.judge, found.points[0].n_tested) == (480, "rule", 6)
    # 480 tokens are 20 rows of 24 words, and of the pass that reads the last of them 8 contexts at most.
    rows = make_text()["text"]
    for text in shown:
        first_row = len(rows) - len(text)
        assert text["text"] == rows[first_row:]
        assert 20 <= first_row <= 20 + math.ceil(8 * CONTEXT_SIZE / 24)

    # The reviews have a split that is held out.
    shown.clear()
    monkeypatch.setattr(runner, "open_text", lambda *_, **__: make_text())
    name = "bae-lens/movie-reviews"
    sweep_budgets(
        RunConfig(runner_cfg(tmp_path, dataset_path=name)),
        SweepSettings(**SMALL, **settings),
        RuleJudge(first),
        override_model=make_model(),
    )
    assert set(shown) == {name}


def test_without_text_that_is_not_trained_on_there_is_no_intruder_test(tmp_path):
    said: list[str] = []
    whole = Dataset.from_dict({"text": [" ".join(make_text()["text"])]})
    found = sweep_budgets(
        RunConfig(runner_cfg(tmp_path)),
        SweepSettings(**SMALL, budgets=[4, 8], n_steps=2),
        RuleJudge(first),
        override_dataset=whole,
        override_model=make_model(),
        say=said.append,
    )
    assert found.judge is None
    assert [text for text in said if text.startswith("No intruder test, since none could be on")]
    # A text that ends early has the rows of the last fifth.
    little = run_on(make_text(30), tmp_path, n_tokens=10_000)
    assert little.judge == "rule"
    assert little.n_tokens + little.n_held_out < 10_000


def run_on(dataset: Dataset, folder: Path, **settings: Any) -> BudgetSweep:
    return sweep_budgets(
        RunConfig(runner_cfg(folder)),
        SweepSettings(**{**SMALL, "budgets": [4, 8], "n_steps": 2, **settings}),
        RuleJudge(first),
        override_dataset=dataset,
        override_model=make_model(),
    )


def test_too_few_tokens_for_a_test_are_no_error(tmp_path):
    found = run(
        runner_cfg(tmp_path), RuleJudge(first), budgets=[4, 8], n_steps=2, n_judged_tokens=3
    )
    assert [(p.n_enough, p.n_tested) for p in found.points] == [(0, 0), (0, 0)]
    assert found.points[0].n_readable is None


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: cross_layer_cfg(folder), "of one hook point of a language model; got"),
        (
            lambda folder: runner_cfg(
                folder, sae=StandardTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE)
            ),
            "'standard' has no budget",
        ),
        (lambda _: load_config("synthetic-bae").runner, "of one hook point of a language model"),
        (lambda folder: runner_cfg(folder, hook_name="nowhere"), "no hook 'nowhere'"),
    ],
)
def test_configs_of_which_no_budget_is_swept(tmp_path: Path, make, said):
    with pytest.raises(ValueError, match=said):
        run(make(tmp_path))


def test_fewer_tokens_than_a_batch(tmp_path):
    with pytest.raises(
        ValueError, match=f"training_tokens is 63, less than one step takes.*= {BATCH}"
    ):
        run(runner_cfg(tmp_path, training_tokens=63))
    with pytest.raises(ValueError, match=f"n_tokens is 70, of which.*= {BATCH}"):
        run(runner_cfg(tmp_path), n_tokens=70)
