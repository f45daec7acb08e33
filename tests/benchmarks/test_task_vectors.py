"""The benchmark of task vectors: its prompts, its shortcut and its report, on a tiny model and known answers."""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bae_lens import add_direction
from tests.helpers import D_IN, between, make_bae, make_model, make_text

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
benchmark: Any = importlib.import_module("task_vectors")

PLAN = benchmark.Plan(
    layers=(0, 1),
    tasks=("one", "two"),
    n_shots=2,
    n_prompts=6,
    counts=(2, None),
    control=2,
    strengths=(0.5, 2.0),
    seeds=(0, 1),
    n_texts=3,
    n_tokens=8,
)
WORDS = [f"word{i}" for i in range(40)]
PAIRS = {
    "one": list(zip(WORDS[:18], WORDS[20:38], strict=True)),
    "two": list(zip(WORDS[18:36], WORDS[:18], strict=True)),
}


def test_tasks_have_enough_pairs_of_different_queries() -> None:
    for pairs in benchmark.TASKS.values():
        assert len(dict(pairs)) == len(pairs) >= 80
    assert len(benchmark.TASKS) == 7


def test_prompts_with_demonstrations_have_the_queries_of_those_without() -> None:
    with_, without = benchmark.draw(PAIRS["one"][:4], PLAN)
    assert len(with_) == len(without) == PLAN.n_prompts
    assert without[0] == "\nQ: word0\nA:"
    for shown, alone in zip(with_, without, strict=True):
        assert shown.endswith(alone)
        assert shown.count("\nQ:") == 3
        # Its own answer is never told.
        assert shown.count(alone) == 1
    assert with_[0].count("\nA: word2") == 2

    parts = benchmark.split(make_model(), [*PAIRS["one"], ("word1 word2", "word3")])
    assert sorted(pair for part in parts for pair in part) == sorted(PAIRS["one"])
    assert [len(part) for part in parts] == [6, 6, 6]


def test_the_shortcut_is_what_add_direction_does() -> None:
    model, pairs = make_model(), PAIRS["one"]
    queries = benchmark.Queries(model, pairs, [0, 1])
    vector = torch.randn(D_IN, generator=torch.Generator().manual_seed(0))
    tokens = torch.cat([model.to_tokens(benchmark.prompt(query)) for query, _ in pairs])
    answers = torch.cat([model.to_tokens(answer)[:, 1] for _, answer in pairs])
    for layer in (0, 1, 0):
        sae = between(make_bae(), f"blocks.{layer}.hook_resid_post", None)
        with add_direction(model, sae, vector, position=-1), torch.no_grad():
            logits = model(tokens)[:, -1]
        alone, (answered, log_probs) = queries.scores(layer, 0.0, vector)
        assert answered == (logits.argmax(-1) == answers).tolist()
        expected = logits.log_softmax(-1)[range(len(pairs)), answers]
        torch.testing.assert_close(torch.tensor(log_probs), expected, atol=1e-4, rtol=1e-4)
        assert queries.scores(layer, vector)[0][0] == answered
        assert alone[1] != log_probs


def a_cell(answers: dict[str, list[list[bool]]], layers: tuple[int, ...] = (18,)) -> dict[str, Any]:
    rows = {
        title: {
            "answered": answered,
            "layers": list(layers),
            "strengths": [1.0],
            "validation": [0.5],
            "cosine": 0.5,
            "n_latents": 20,
        }
        for title, answered in answers.items()
        if title not in (benchmark.NOTHING, benchmark.SHOTS)
    }
    ends = {title: answers[title] for title in (benchmark.NOTHING, benchmark.SHOTS)}
    return {"n": 20, **ends, "rows": rows}


def first(n: int) -> list[bool]:
    return [i < n for i in range(20)]


def test_the_report_leaves_out_tasks_without_signal_and_pairs_differences(
    capsys: pytest.CaptureFixture[str],
) -> None:
    own, means = benchmark.latents_name("BAE", 20), benchmark.MEANS
    good = {
        benchmark.NOTHING: [first(0)],
        benchmark.SHOTS: [first(18)],
        own: [first(10)],
        means: [first(16)],
        benchmark.RANDOM: [first(0), first(4)],
    }
    cells = {
        "one": a_cell(good),
        "two": a_cell(good | {benchmark.SHOTS: [first(3)], own: [first(20)]}),
    }
    plan = replace(PLAN, control=20)
    benchmark.report_vectors(cells, plan)
    printed = capsys.readouterr().out
    assert "Tasks without signal: two." in printed
    lines = [[c.strip() for c in line.split("|")[1:-1]] for line in printed.splitlines()]
    table = {line[0]: line[1:] for line in lines if len(line) == 7}
    assert table[own][0] == "0.50"
    assert table[own][2:] == ["20", "0.50", "18", "1"]
    assert table[benchmark.RANDOM][0] == "0.10"
    assert table[benchmark.SHOTS][0] == "0.90"
    less = {tuple(line[:2]): line[2] for line in lines if len(line) == 3}
    assert less[own, means].startswith("-0.30 [-0.50, -0.1")
    assert less[own, benchmark.RANDOM].startswith("+0.40")

    benchmark.report_vectors({task: cells["two"] for task in PLAN.tasks}, plan)
    assert "No task has a signal" in capsys.readouterr().out


class InOrder:
    """Workers in this process, so that it has the tiny model."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __enter__(self) -> InOrder:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def run(self, jobs: dict[str, Any]) -> Any:
        for key, (call, args) in jobs.items():
            yield key, call(*args)


def test_all_of_it_runs_and_goes_on_from_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmark, "TASKS", PAIRS)
    monkeypatch.setattr(benchmark, "Workers", InOrder)
    monkeypatch.setattr(benchmark, "language_model", lambda device: make_model())
    monkeypatch.setattr(benchmark.demo, "load_dataset", lambda *_, **__: make_text(8))
    monkeypatch.setattr(benchmark, "has_signal", lambda cell: True)
    trained = {"ev": 0.6, "bits": 40.0, "l0": 4.0, "dense": 0.0, "dead": 0.1}
    path = tmp_path / "cells.json"
    cells = benchmark.Cells(path, {})
    for layer in PLAN.layers:
        for i, name in enumerate(benchmark.DICTIONARIES):
            hook = f"blocks.{layer}.hook_resid_post"
            sae = between(make_bae(i, n_levels=1 if i == 1 else 3), hook, None)
            sae.save_model(tmp_path / f"{name}-{layer}")
            cells.add(f"trained/{name}/{layer}", trained)

    benchmark.run(PLAN, cells, tmp_path, 1)

    printed, written = capsys.readouterr().out, path.read_text()
    for title in (
        "four demonstrations",
        "BAE: 2 latents by rate",
        "BatchTopK: all latents by mean",
    ):
        assert f"| {title} " in printed
    assert "BAE less BatchTopK" in printed
    task = cells.cells["task/one"]["rows"]
    assert len(task[benchmark.RANDOM]["answered"]) == 2
    assert set(task[benchmark.MEANS]["layers"]) <= {0, 1}
    assert task[benchmark.latents_name("BAE", None, "mean")]["n_latents"] > 2
    assert task[benchmark.MEANS]["cosine"] == 1.0

    def fail(*args: Any, **kwargs: Any) -> None:
        pytest.fail("it was measured again")

    for name in ("Workers", "prepare"):
        monkeypatch.setattr(benchmark, name, fail)
    benchmark.run(PLAN, benchmark.Cells(path, {}), tmp_path, 1)
    assert path.read_text() == written
    assert capsys.readouterr().out == printed
