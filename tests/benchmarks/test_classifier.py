"""The benchmark of classifiers: its parts of texts, its cells on activations with known answers, its targets."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

# Benchmarks are scripts: they import each other as their own folder lets them.
sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
trials: Any = importlib.import_module("classifier_trials")
tables: Any = importlib.import_module("classifier_report")
benchmark: Any = importlib.import_module("classifier")

D, N_CLASSES, LENGTH = 8, 4, 6


def plan_of(folder: Path, **options: Any) -> Any:
    sizes = {"n_finetune": 8, "n_dictionary": 6, "n_study": 4} | options
    return trials.Plan(str(folder), **sizes)


def write_rows(path: Path, texts: list[str]) -> None:
    rows = [{"text": text, "label": i % 2} for i, text in enumerate(texts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_no_text_is_in_two_parts_whatever_its_case_and_space(tmp_path: Path) -> None:
    dev = [f"Text {i}" for i in range(4)]
    write_rows(tmp_path / "jigsaw_dev.jsonl", dev)
    others = [f"other {i}" for i in range(14)]
    copies = ["TEXT 0", " text  1 ", "other 3", "Other  3"]
    write_rows(tmp_path / "jigsaw_train.jsonl", others + copies)

    parts = trials.read_parts(plan_of(tmp_path), "jigsaw")

    assert sorted(parts.study.texts) == dev
    shown, learned = parts.dictionary, parts.finetuning.texts
    assert (len(shown), len(learned)) == (6, 8)
    keys = [" ".join(text.lower().split()) for text in (*shown, *learned)]
    assert sorted(keys) == sorted(others)


def test_one_file_is_cut_in_three(tmp_path: Path) -> None:
    write_rows(tmp_path / "ag_news_test.jsonl", [f"text {i}" for i in range(3000)])

    parts = trials.read_parts(plan_of(tmp_path), "ag_news")

    every = [*parts.study.texts, *parts.dictionary, *parts.finetuning.texts]
    assert len(set(every)) == len(every) == 18


def part_of(n: int, seed: int) -> tuple[dict[str, Any], Tensor]:
    """Texts of one class each. Every token has the class's place in the first four dimensions of the
    higher block; at the lower one it is in the last four, where noise outweighs it elsewhere."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.arange(n) % N_CLASSES
    text = torch.arange(n).repeat_interleave(LENGTH)
    of_token = torch.eye(N_CLASSES)[classes[text]]
    noise = torch.randn(len(text), D - N_CLASSES, generator=generator)
    lower = torch.cat([5 * noise, of_token], 1)
    upper = torch.cat([5 * of_token, torch.zeros(len(text), D - N_CLASSES)], 1)
    acts = {1: lower, 4: upper}
    return {
        "acts": acts,
        "text": text,
        "position": torch.arange(LENGTH).repeat(n),
        "is_word": torch.ones(len(text), dtype=torch.bool),
        "predicted": classes,
    }, classes


@pytest.fixture
def cell(tmp_path: Path) -> Any:
    found = {"dictionary": part_of(120, 0)[0], "study": part_of(40, 1)[0]}
    torch.save(found, trials.activations_path("jigsaw", 0, tmp_path))
    return trials.Cell("jigsaw", (1, 4), n_codes=N_CLASSES)


def test_codes_of_a_prediction_tell_what_clusters_of_the_lower_block_do_not(
    tmp_path: Path, cell: Any
) -> None:
    names = [trials.RIDGE, trials.KMEANS, trials.RANDOM, trials.CEILING]
    plan = plan_of(tmp_path, n_resamples=50, n_ward=200)

    found = trials.run_cell(plan, cell, names, tmp_path)

    [column] = tables.columns({f"cell/{cell.key}": found}, [cell])
    # The higher block is a linear map of the lower one, of as many places as there are codes.
    assert tables.ev(column, trials.RIDGE) == pytest.approx(1, abs=1e-4)
    assert tables.ev(column, trials.CEILING) == pytest.approx(1, abs=1e-4)
    assert tables.ev(column, trials.KMEANS) < 0.2
    assert (
        tables.nmi(column, trials.RIDGE).mean > 0.9 > 0.2 > tables.nmi(column, trials.KMEANS).mean
    )
    # What was fitted is read again.
    assert trials.run_cell(plan, cell, names, tmp_path) == found

    salient = {"texts": torch.arange(40), "positions": torch.full((40,), 2)}
    torch.save(salient, trials.salient_path(cell, tmp_path))
    told = trials.recover(cell, tmp_path)
    assert tables.told([told], trials.RIDGE) == (1, 1, 1)
    assert tables.told([told], trials.RIDGE, trials.KMEANS).low > 0.2


@pytest.mark.parametrize(
    "name",
    [name for name in trials.METHODS if name not in ("k-means", "random tokens")],
)
def test_every_dictionary_is_fitted_saved_and_read_again(
    tmp_path: Path, cell: Any, name: str
) -> None:
    plan = plan_of(tmp_path, steps=3, batch_size=128, n_ward=200, d_sae=16, k=2, bits=4.0)
    tokens = trials.Tokens(cell, tmp_path)

    first, again = (trials.fitted(name, cell, tokens, plan, tmp_path) for _ in range(2))

    codes, once_more = (trials.codes_of(d, tokens, False) for d in (first, again))
    assert len(codes[1]) == 40 * LENGTH
    assert all(torch.equal(a, b) for a, b in zip(codes, once_more, strict=True))
    if name == trials.PREDICTIVE:
        assert first.cfg.metadata.hook_name_out == "blocks.4.hook_out"


def row_of(errors: list[float], lead: float) -> dict[str, Any]:
    others = {name: [lead, lead - 0.01, lead + 0.01] for name in trials.METHODS}
    return {
        "errors": errors,
        "nmi": [0.3, 0.2, 0.4],
        "n_in_use": 4,
        "seconds": 1.0,
        "nmi_over": others,
    }


def measured(gain: float, lead: float) -> dict[str, Any]:
    """Ours leave ``gain`` less of each text than the others, and lead by as much NMI as is said."""
    rows = {name: row_of([1.0 - gain] * 10, lead) for name in trials.OURS}
    rows |= {name: row_of([1.0] * 10, 0.0) for name in trials.METHODS if name not in trials.OURS}
    return {"rows": rows, "spread": [2.0] * 10, "n_tokens": 100}


def test_targets_are_reached_where_intervals_are_off_zero() -> None:
    cells = [trials.Cell(dataset, pair) for pair in trials.PAIRS for dataset in trials.DATASETS]
    found = {f"cell/{cell.key}": measured(0.2, 0.05) for cell in cells}
    # In one of six the others tell as much of the prediction.
    found[f"cell/{cells[4].key}"] = measured(0.2, 0.0)
    columns = tables.columns(found, cells)

    made = {target.name: target for target in tables.targets(found, columns, {})}

    assert [c.title for c in columns][:2] == ["AG News 1 → 4", "Jigsaw 1 → 4"]
    assert tables.ev(columns[0], trials.PREDICTIVE) == pytest.approx(0.6)
    assert tables.ev_over(columns[0], trials.PREDICTIVE, trials.KMEANS).mean == pytest.approx(0.1)
    ev, nmi = (
        made[f"{trials.PREDICTIVE}: {what} over k-means, VQ-VAE, Ward, random tokens in 6 of 6"]
        for what in ("EV", "NMI")
    )
    assert ev.is_reached
    assert not nmi.is_reached
    assert nmi.found == "5 of 6"
    assert [title for title, is_so in nmi.by_cell.items() if not is_so] == ["Jigsaw 3 → 5"]


def test_accuracy_lost_is_compared_text_by_text() -> None:
    right = {"correct": [True] * 10, "removed_norm": 0.1}
    wrong = {"correct": [False] * 5 + [True] * 5, "removed_norm": 0.1}
    cell = {"chance": 0.25, "equal norm": {trials.KMEANS: right, trials.PREDICTIVE: wrong}}

    lost = tables.lost_over(cell, "equal norm", trials.PREDICTIVE, trials.KMEANS)

    assert lost.mean == pytest.approx(0.5)
    assert lost.low > 0


def test_the_most_important_is_done_first_and_nothing_twice(tmp_path: Path) -> None:
    args = benchmark.parse(["--data", "x", "--json", str(tmp_path / "a.json"), "--no_prompts"])
    args.work = tmp_path
    cells = benchmark.Cells(args.json, {})
    done: list[str] = []

    class Said:
        def run(self, jobs: dict[str, Any], failed: Any) -> Any:
            done.extend(jobs)
            yield from ((key, {"has": key}) for key in jobs)

    benchmark.Run(plan_of(tmp_path), args, cells, Said()).everything()

    kinds = [key.split("/")[0] for key in done]
    assert kinds[:21] == ["classifier"] * 3 + ["cell"] * 6 + ["ablation"] * 6 + ["recover"] * 6
    assert kinds[21:] == ["cell"] * 12 + ["recover"] * 12
    done.clear()
    benchmark.Run(plan_of(tmp_path), args, benchmark.Cells(args.json, {}), Said()).everything()
    assert done == []
