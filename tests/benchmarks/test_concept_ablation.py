"""The comparison of dictionaries by ablation: each piece on results whose answer is known."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bae_lens.concept_ablation import AblationSettings, ConceptAblationResult, SalientTokens
from bae_lens.concept_ablation import result as names
from bae_lens.concept_ablation.concepts import Clusters
from bae_lens.concept_ablation.result import AblationRow
from tests.concept_ablation.helpers import LOWER_HOOK, Planted, noise, planted_task

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
trials: Any = importlib.import_module("concept_ablation_trials")
benchmark: Any = importlib.import_module("concept_ablation")

N = 40
LABELS = tuple(i % 2 for i in range(N))


def result(n_right: int, seed: int = 0, place: str = names.LOWER) -> ConceptAblationResult:
    """36 of 40 right untouched, and so many after the concept's ablation."""

    def row(method: str, n: int) -> AblationRow:
        right = tuple(i < n for i in range(N))
        concept_of = "" if method == "none" else "word"
        share = sum(right) / N
        return AblationRow(place, concept_of, method, names.PROBE, 1, 0.1, right, (share, share))

    return ConceptAblationResult(
        dictionary="any",
        hook_names=(LOWER_HOOK, LOWER_HOOK),
        label_names=("0", "1"),
        labels=LABELS,
        settings=AblationSettings(seed=seed).to_dict(),
        rows=(row("none", 36), row(names.CONCEPT, n_right), row(names.RANDOM_EQUAL, 35)),
        salient=SalientTokens(("word",) * N),
    )


def cell(**n_right: list[int]) -> dict[str, Any]:
    """Methods by how many are right after their ablation, seed by seed."""
    results = {
        f"{method}/{seed}": result(n).to_dict()
        for method, by_seed in n_right.items()
        for seed, n in enumerate(by_seed)
    }
    return {"results": results, "uncentered": {key: [0.25, None] for key in results}, "pairs": []}


def methods(own: list[int], other: list[int]) -> dict[str, Any]:
    return cell(**{method: own if method == benchmark.CLVQ else other for method in trials.METHODS})


# Differences


def test_a_difference_is_of_drops_and_a_drop_ends_at_chance():
    def pair(own: int, other: int) -> dict[str, Any]:
        return {
            "correct": [i < own for i in range(N)],
            "other_correct": [i < other for i in range(N)],
        }

    assert benchmark.difference([pair(20, 30)], 0.5).mean == pytest.approx(0.25)
    # Inversion earns nothing.
    assert benchmark.difference([pair(0, 30)], 0.5).mean == pytest.approx(0.25)
    assert benchmark.difference([pair(30, 20)], 0.5).mean == pytest.approx(-0.25)
    assert benchmark.difference([pair(20, 30), pair(30, 30)], 0.5).mean == pytest.approx(1 / 8)


def test_an_interval_has_the_difference_in_it_and_shrinks_to_nothing_without_one():
    own, other = [True] * 20 + [False] * 20, [True] * 32 + [False] * 8
    found = benchmark.difference([{"correct": own, "other_correct": other}], 0.25)
    assert 0 < found.low < found.mean < found.high
    same = benchmark.difference([{"correct": own, "other_correct": own}], 0.25)
    assert same == (0, 0, 0)


@pytest.mark.parametrize(("own", "other", "n"), [([20], [36], 1), ([36], [20], 0), ([36], [36], 0)])
def test_a_cell_is_won_where_every_other_dictionary_is_beaten(capsys, own, other, n):
    benchmark.compare({"minilm/eraser": methods(own, other)})

    assert (
        f"lower vector, equal rank: beats every other in {n} of 1 cells." in capsys.readouterr().out
    )


def test_a_cell_is_not_won_against_all_but_one(capsys):
    found = methods([20], [36])
    found["results"][f"{trials.METHODS[-1]}/0"] = result(20).to_dict()

    benchmark.compare({"minilm/eraser": found})

    assert "beats every other in 0 of 1 cells." in capsys.readouterr().out


# Tables


def test_a_table_has_a_line_a_dictionary_and_a_control():
    lines = list(benchmark.lines_of(methods([20, 24], [30, 30]), names.LOWER))

    assert [line[0] for line in lines] == [
        *trials.METHODS,
        *names.CONTROLS,
        names.LEACE,
    ]
    # Means over seeds; 36 of 40 less 20 and 24.
    assert lines[0][1:4] == ["0.100", "0.550", "+0.350±.071"]
    assert lines[1][1:4] == ["0.100", "0.750", "+0.150±.000"]
    assert [line[-1] for line in lines[:2]] == ["0.250", "0.250"]
    by_name = {line[0]: line for line in lines}
    assert by_name[names.RANDOM_EQUAL][2:4] == ["0.875", "+0.025±.000"]
    assert by_name[names.LEACE][1:4] == ["–", "–", "–"]


def test_the_report_prints_every_table(capsys):
    found = methods([20], [30])
    for values in found["results"].values():
        values["rows"] += [
            row | {"place": place} for row in values["rows"] for place in benchmark.PLACES[1:]
        ]

    benchmark.report("minilm/eraser", found)

    out = capsys.readouterr().out
    assert all(f"Ablated: {place}" in out for place in benchmark.PLACES)

    benchmark.summarize({"minilm/eraser": found})

    # 35 are right with the random direction, 20 or 30 without the concept.
    out += capsys.readouterr().out
    lines = [line for line in out.split("Lost beyond")[1].splitlines() if line.startswith("| ")]
    assert len(lines) == 2 + len(trials.METHODS)
    assert "+0.375 [" in lines[2]
    assert "+0.125 [" in lines[3]
    assert "chance 0.500; 40 texts" in out


def test_what_a_file_holds_is_not_repeated_and_other_settings_are_refused(tmp_path):
    path, plan = tmp_path / "x.json", {"n_examples": 200, "seeds": (0, 1)}
    benchmark.Cells(path, plan).add("minilm/movies", cell(a=[1]))

    again = benchmark.Cells(path, plan)

    assert list(again.cells["minilm/movies"]["results"]) == ["a/0"]
    with pytest.raises(SystemExit, match="other settings"):
        benchmark.Cells(path, plan | {"n_examples": 3})


# Cells


def test_the_released_projection_turns_round_what_the_centered_one_removes():
    labels = torch.tensor(LABELS)
    sign = 2.0 * labels[:, None] - 1
    u, mean = torch.eye(8)[0], 20 * torch.eye(8)[1]
    # Of different lengths, so that a probe does not mind the mean's being gone.
    vectors = mean * (1 + 0.3 * noise(N, 1, seed=1)) + sign * u + 0.1 * noise(N, 8)
    tokens = (mean + torch.stack([u, -u]) * 2).repeat(20, 1)
    task = planted_task(Planted(labels, vectors, mean + 2 * sign * u, tokens))
    codes = Clusters(torch.stack([mean + 2 * u, mean - 2 * u]), LOWER_HOOK)

    lower, upper = trials.released_accuracies(task, codes)

    assert lower == upper
    assert lower < 0.2
    assert trials.ablate(task, codes).row().accuracy > 0.2
    # The task is as it was.
    assert task.settings.center


def test_at_equal_norm_neither_dictionary_moves_a_vector_farther_than_the_other():
    labels = torch.tensor(LABELS)
    sign = 2.0 * labels[:, None] - 1
    u, v = torch.eye(8)[:2]
    vectors = sign * u + 0.1 * noise(N, 8)
    tokens = torch.cat([u, -u, u + v, -u - v]).reshape(4, 8).repeat(10, 1)
    task = planted_task(Planted(labels, vectors, 2 * sign * u, tokens))
    own = Clusters(torch.stack([u, -u]), LOWER_HOOK)
    other = Clusters(torch.stack([u + 2 * v, -u - 2 * v]), LOWER_HOOK)

    [pair] = trials.equal_norm_pairs(task, {trials.CLVQ: own, "k-means": other}, 0, [names.LOWER])

    assert pair["removed_norm"] == pytest.approx(pair["other_removed_norm"], rel=1e-4)
    assert len(pair["correct"]) == len(pair["other_correct"]) == N


def test_texts_that_are_scored_are_not_trained_on(tmp_path):
    rows = [{"text": f"text {i}", "label": i % 4} for i in range(trials.N_SCORED_FILE + 40)]
    (tmp_path / "ag_news_test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "jigsaw_dev.jsonl").write_text("\n".join(map(json.dumps, rows[:8])))
    (tmp_path / "jigsaw_train.jsonl").write_text("\n".join(map(json.dumps, rows[4:20])))
    plan = trials.Plan(str(tmp_path), ("ag_news", "jigsaw"))

    for name, n in (("ag_news", 40), ("jigsaw", 12)):
        data = trials.DATASETS[name]
        scored = trials.labeled_texts(plan, data).texts
        trained_on = trials.unlabeled_texts(plan, data)
        assert len(trained_on) == n
        assert not set(scored) & set(trained_on)


def test_an_encoder_is_not_asked_for_words():
    plan = trials.Plan(None, ("movies",))
    data = trials.DATASETS["movies"]
    assert plan.settings("minilm", data).label_words is None
    assert plan.settings("smollm2", data).label_words == data.label_words


@pytest.mark.parametrize("blocks", [None, (2, 5)])
def test_hook_points_may_be_of_other_blocks(blocks):
    hooks = trials.Plan(None, ("movies",), blocks=blocks).hooks("minilm")

    lower, upper = blocks or (1, 4)
    assert hooks.hook_name == f"blocks.{lower}.hook_out"
    assert hooks.hook_name_out == f"blocks.{upper}.hook_out"


@pytest.mark.parametrize("method", [trials.CLVQ, *trials.VARIANTS])
def test_every_variant_is_trained_as_its_name_says(monkeypatch, method):
    hooks = replace(
        trials.TASKS["minilm"], d_in=8, n_codes=4, steps=3, batch_size=16, length=4, decoder_width=8
    )
    split = trials.Split(torch.zeros(30, 4), torch.cat([noise(120, 16), torch.ones(120, 1)], 1), 8)
    trial = trials.Trial(hooks, 0, split, split, None)
    # As many codes as there is data for.
    options = {k: 6 if k == "d_sae" else v for k, v in trials.VARIANTS.get(method, {}).items()}
    monkeypatch.setitem(trials.VARIANTS, method, options)

    sae = trials._train(trials.Plan(None, ("movies",)), hooks, method, trial)

    for name, value in options.items():
        assert getattr(sae.cfg, name) == value
    is_uncentered = method == trials.UNCENTRED
    assert (sae.input_mean.norm() == 0) == is_uncentered
    mean_norm = (split.lower - (0 if is_uncentered else split.lower.mean(0))).norm(dim=1).mean()
    torch.testing.assert_close(sae.input_scale, 8**0.5 / mean_norm, rtol=1e-3, atol=0)
