"""The benchmark of interpretation scores: each piece on results whose answer is known."""

from __future__ import annotations

import importlib
import sys
from argparse import Namespace
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bae_lens.examples.records import CorpusToken
from bae_lens.scoring.recoverability_result import Recoverability, RecoverabilitySettings
from tests.helpers import CONTEXT_SIZE, D_IN, HOOK, make_activations, make_model, make_text
from tests.report.helpers import make_intruder, make_records

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
trials: Any = importlib.import_module("interpretability_trials")
benchmark: Any = importlib.import_module("interpretability")

TASK = benchmark.lm_task(15, d_sae=32, n_train=64, n_validation=8, n_test=8, l0s=(2, 4, 8))
PLACE = {"hook_name": HOOK, "context_size": CONTEXT_SIZE, "prepend_bos": True}
ARGS = Namespace(seeds=[3, 4], levels=[0, 2], learning_rates=[1e-3, 2e-3])


def validated(**better: float) -> dict[str, Any]:
    """Cells of the candidates, of which those of an architecture's better learning rate explain more."""
    cells: dict[str, Any] = {}
    # The middle level, and then the others.
    for _ in range(2):
        for t in benchmark.candidates(TASK, ARGS, cells):
            ev = 0.1 * (better.get(t.arch, 1e-3) == t.lr) - 5
            recipe = trials.recipe_of(t, TASK)
            cells[f"validation/{t.key}"] = {"validation_ev": ev, "recipe": recipe}
    return cells


def listened(n_passed: int, n_enough: int = 100, purity: float = 0.2) -> dict[str, Any]:
    """A cell in which so many of ten latents are heard, and of the controls one less."""
    result = make_intruder(make_records(12), 10)
    passed, failed = result.latents[0], result.control[0]

    def of(n: int) -> tuple[Any, ...]:
        own = [passed] * n + [failed] * (10 - n)
        return tuple(replace(t, latent=j, purity=purity) for j, t in enumerate(own))

    result = replace(
        result, latents=of(n_passed), control=of(max(n_passed - 1, 0)), n_enough=n_enough
    )
    numbers = {"explained_variance": 0.5, "l0": 4.0, "bits": 20.0}
    return {**numbers, "result": result.to_dict(), "rates": [0.001 * (j + 1) for j in range(10)]}


def told(view: list[int], n_concepts: int = 3) -> dict[str, Any]:
    n = len(view)
    said = dict.fromkeys(
        ("words and contexts", "words", "contexts", "class shares", "word", "text"), view
    )
    return Recoverability(
        dictionary="any",
        hook_names=("lower", "upper"),
        class_names=("no", "yes"),
        predictions=tuple(i % 2 for i in range(n)),
        concepts=tuple(i % n_concepts for i in range(n)),
        said={k: tuple(v) for k, v in said.items()},  # pyright: ignore[reportArgumentType]
        n_learned=50,
        n_shown=50,
        settings=RecoverabilitySettings(),
    ).to_dict()


# Latents


def test_each_has_the_learning_rate_that_explains_the_most_with_the_first_seed():
    cells = validated(bae=2e-3, topk=2e-3)
    found = benchmark.trials(TASK, ARGS, cells)
    assert len(found) == len(set(found))
    archs = [*trials.ARCHITECTURES, trials.RANDOM]
    assert Counter(t.arch for t in found) == dict.fromkeys(archs, 4)
    for trial in found:
        assert (trial.level, trial.seed) in {(0, 3), (0, 4), (2, 3), (2, 4)}
        # The BAE without its cap has that of the one with it.
        is_better = trial.arch in ("bae", "bae_no_cap", "topk")
        assert trial.lr == (0 if trial.arch == trials.RANDOM else 2e-3 if is_better else 1e-3)
    # One that failed is not the best.
    [key] = (f"validation/{t.key}" for t in found if t.arch == "topk" and t.level + t.seed == 3)
    cells[key]["validation_ev"] = float("nan")
    again = [t for t in benchmark.trials(TASK, ARGS, cells) if t.arch == "topk"]
    assert {(t.level, t.lr) for t in again} == {(0, 1e-3), (2, 2e-3)}


def test_all_rates_are_tried_at_the_middle_level_and_the_best_and_its_neighbors_at_the_others():
    args = Namespace(seeds=[3, 4], levels=[2, 0, 1], learning_rates=[8e-3, 1e-3, 2e-3, 4e-3])
    n_archs = sum(not arch.endswith("_no_cap") for arch in trials.ARCHITECTURES)
    first = benchmark.candidates(TASK, args, {})
    assert len(first) == len(set(first)) == 4 * n_archs
    assert {(t.level, t.seed) for t in first} == {(1, 3)}
    cells = {
        f"validation/{t.key}": {"validation_ev": t.lr if t.arch == "bae" else -t.lr} for t in first
    }
    found = benchmark.candidates(TASK, args, cells)
    assert len(found) == len(set(found)) == (4 + 2 * 3) * n_archs
    others = {(t.arch, t.lr) for t in found if t.level != 1}
    assert {lr for arch, lr in others if arch == "bae"} == {2e-3, 4e-3, 8e-3}
    assert {lr for arch, lr in others if arch == "topk"} == {1e-3, 2e-3, 4e-3}


def test_what_was_measured_of_another_recipe_is_forgotten():
    cells = validated()
    asked = benchmark.trials(TASK, ARGS, cells)
    bae, topk = (next(t for t in asked if t.arch == arch) for arch in ("bae", "topk"))
    for trial in (bae, topk):
        cells[f"latents/{trial.key}"] = listened(5) | {"recipe": trials.recipe_of(trial, TASK)}
    cells["codes/movies"] = {}
    kept = dict(cells)
    benchmark.drop_others(cells, TASK)
    assert cells == kept
    # Before firing rates were kept; before recipes were; of another one; of what is there no more.
    del cells[f"latents/{topk.key}"]["rates"]
    del cells[f"validation/{topk.key}"]["recipe"]
    other = replace(TASK, entropies=(9, 9, 9))
    cells[f"validation/{bae.key}"]["recipe"] = trials.recipe_of(bae, other)
    cells[f"validation/{replace(bae, arch='gone').key}"] = {"validation_ev": 1.0, "recipe": ""}
    benchmark.drop_others(cells, TASK)
    gone = {f"latents/{topk.key}", f"validation/{topk.key}", f"validation/{bae.key}"}
    assert set(cells) == set(kept) - gone
    assert trials.recipe_of(topk, TASK) == trials.recipe_of(topk, other)


def test_latents_in_all_are_the_share_heard_of_those_with_enough_texts():
    result = benchmark.IntruderResult.from_dict(listened(3, n_enough=50)["result"])
    assert (benchmark.passed(result), benchmark.passed(result, control=True)) == (3, 2)
    assert benchmark.in_all(result) == pytest.approx(15)
    pure = benchmark.IntruderResult.from_dict(listened(3, purity=0.9)["result"])
    assert benchmark.in_all(pure) == pytest.approx(30)
    assert benchmark.in_all(pure, 0.5) == 0


def test_the_report_compares_with_the_best_peer_of_the_same_seed(capsys):
    asked = benchmark.trials(TASK, ARGS, validated())
    passed = {"bae": 6, "bae_no_cap": 2, "topk": 4, "batchtopk": 3, "jumprelu": 1, trials.BINARY: 2}
    cells = {f"latents/{t.key}": listened(passed.get(t.arch, 9)) for t in asked}

    benchmark.report_latents(cells, TASK, asked)

    out = capsys.readouterr().out
    # Of each level its numbers, and shares by firing rate.
    for level in (0, 2):
        own, shares = rows_of(out, "BAE", f"## Level {level}:")
        ends = [share.partition("[")[0] + share.partition("] ")[2] for share in shares[1:]]
        assert ends == ["1.00 of 6", "0.50 of 12", "0.00 of 2"]
        assert own[6:10] == ["0.60 ± 0.00", "0.50 ± 0.00", "60 ± 0", "60 ± 0"]
    assert rows_of(out, "BAE", "## All levels: latents that are heard") == [
        ["BAE", *["60 ± 0"] * 2]
    ]
    # Neither control is a peer.
    best = "## Of them not one token: over the best peer's"
    assert rows_of(out, "BAE", best) == [["BAE", *["1.50 ± 0.00 (TopK)"] * 2]]
    assert rows_of(out, "BAE, no cap", best) == [["BAE, no cap", *["0.50 ± 0.00 (TopK)"] * 2]]
    assert "nothing yet to compare with" not in out
    assert "Not measured" not in out
    # Both have the same rates: of 20 latents 12 and 8 pass.
    equal = "## Of them not one token: difference of shares at equal firing rates"
    [[_, *differences]] = rows_of(out, "BAE less TopK", equal)
    assert all(cell.startswith("+0.20 [") and cell.endswith(", 20") for cell in differences[:2])
    assert all(cell.startswith("+0.20 [") and cell.endswith(", 40") for cell in differences[2:])
    assert rows_of(out, "BAE less BatchTopK, feedback", equal)
    assert not rows_of(out, f"BAE less {trials.RANDOM}", equal)


def rows_of(out: str, name: str, within: str) -> list[list[str]]:
    """Cells of the lines of a table that begin with a name, up to the next heading after some text."""
    part = out[out.index(within) + len(within) :].split("\n#")[0]
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in part.splitlines()]
    return [cells for cells in lines if cells and cells[0] == name]


def test_a_report_of_what_there_is_names_what_is_missing(capsys):
    asked = benchmark.trials(TASK, ARGS, validated())
    cells = {f"latents/{t.key}": listened(6 if t.arch == "bae" else 4) for t in asked}
    gone = [t for t in asked if (t.arch, t.level, t.seed) == ("topk", 2, 4)]
    del cells[f"latents/{gone[0].key}"]
    benchmark.report_latents(cells, TASK, asked)

    out = capsys.readouterr().out
    assert f"Not measured: 1 of {len(asked)} (TopK, level 2, seed 4)." in out
    assert "nothing yet to compare with: TopK at level 2, seed 4." in out
    assert "BAE less TopK" in out
    # Where no learning rate is known yet, all but the control without one.
    begun = [t for t in asked if t.level == 0 or t.arch == trials.RANDOM]
    benchmark.report_latents({k: cells[k] for k in [f"latents/{begun[0].key}"]}, TASK, begun)
    n = len(asked) - 1
    out = capsys.readouterr().out
    assert f"Not measured: {n} of {len(asked)} (" in out
    assert f"; and {n - 12} others)." in out


def test_a_dictionary_of_which_nobody_can_be_asked_has_no_latents_that_are_heard(capsys):
    records = make_records(12)
    records = replace(records, latents=tuple(replace(r, random=()) for r in records.latents))
    token = CorpusToken(make_records(2).latents[0].strongest[0], ())
    records = replace(records, corpus_tokens=(token,))
    nothing = trials.told_apart(records, benchmark.Listening().test(), "cpu")
    assert (nothing.n_enough, nothing.latents) == (0, ())
    assert benchmark.in_all(nothing) == 0
    assert benchmark.share_passed(nothing) is None
    asked = benchmark.trials(TASK, ARGS, validated())
    cells = {f"latents/{t.key}": listened(6) for t in asked}
    for trial in asked:
        if trial.arch != "bae":
            cells[f"latents/{trial.key}"] |= {"result": nothing.to_dict(), "rates": []}

    benchmark.report_latents(cells, TASK, asked)

    out = capsys.readouterr().out
    assert rows_of(out, "TopK", "## All levels: latents that are heard") == [
        ["TopK", "0 ± 0", "0 ± 0"]
    ]
    # Nothing can be told over nothing.
    best = "## Of them not one token: over the best peer's"
    assert rows_of(out, "BAE", best)[0][1].startswith("– (")


def test_levels_of_the_target_come_first():
    assert benchmark.by_interest(range(5)) == [1, 2, 3, 0, 4]
    found = benchmark.trials(TASK, ARGS, validated())
    assert [(t.seed, t.level) for t in found if t.arch == "bae"] == [(3, 2), (3, 0), (4, 2), (4, 0)]


class InPlace:
    """Workers that do their work here, and all of it."""

    n_left_out = 0
    is_time_out = False

    def __init__(self, *args: Any) -> None:
        self.asked: list[str] = []

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *args: Any) -> None:
        pass

    def run(self, jobs: dict[str, Any], failed: Any = None) -> Any:
        for name, (function, arguments) in jobs.items():
            self.asked.append(name)
            yield name, function(*arguments)


def test_only_what_is_missing_is_measured(monkeypatch, tmp_path):
    workers = InPlace()
    monkeypatch.setattr(benchmark, "Workers", lambda *args: workers)
    monkeypatch.setattr(benchmark, "prepare", lambda *args: None)
    monkeypatch.setattr(benchmark, "read_corpus", lambda *args: None)
    monkeypatch.setattr(benchmark, "validate", lambda *args: {"validation_ev": 0.5})
    monkeypatch.setattr(benchmark, "listen", lambda *args: listened(5))
    parts = {"parts": ["latents"], "workers": 1, "minutes": 1, "device": "cpu"}
    args = Namespace(**vars(ARGS), **parts, listening={})
    cells = benchmark.Cells(tmp_path / "cells.json", {})
    assert benchmark.run(TASK, None, args, cells, tmp_path) == []
    n_candidates = len(benchmark.candidates(TASK, args, cells.cells))
    asked = benchmark.trials(TASK, args, cells.cells)
    assert len(workers.asked) == 1 + n_candidates + len(asked)
    # The middle level first, and nobody is listened to before its rate is chosen.
    assert workers.asked.index(f"latents/{asked[0].key}") == 1 + n_candidates // 2
    # All of it is in the file.
    cells = benchmark.Cells(tmp_path / "cells.json", {})
    for i in (3, 5):
        del cells.cells[f"latents/{asked[i].key}"]
    workers.asked.clear()
    benchmark.run(TASK, None, args, cells, tmp_path)
    again = [f"latents/{asked[i].key}" for i in (3, 5)]
    assert sorted(workers.asked[1:]) == sorted(again)


def test_random_directions_are_k_of_them_from_the_mean(tmp_path):
    trial = benchmark.Trial(TASK.name, trials.RANDOM, 1, 0.0, 0)
    acts = torch.randn(64, TASK.d_in, generator=torch.Generator().manual_seed(0)) + 5
    torch.save({"train": acts}, tmp_path / TASK.filename)
    sae = trials.random_directions(trial, TASK, tmp_path, "cpu")
    assert (sae.encode(acts) != 0).sum(1).tolist() == [4] * 64
    assert sae.cfg.metadata.hook_name == "blocks.15.hook_resid_post"
    # Centered: no direction is on for most of the tokens.
    assert (sae.encode(acts) != 0).float().mean(0).max() < 0.5
    same = trials.random_directions(trial, TASK, tmp_path, "cpu")
    assert torch.equal(same.W_dec, sae.W_dec)


@pytest.mark.parametrize("arch", ["bae", "topk", trials.RANDOM])
@pytest.mark.parametrize("device", ["cpu", *["cuda"] * torch.cuda.is_available()])
def test_a_cell_has_its_latents_with_their_firing_rates(monkeypatch, tmp_path, arch, device):
    model, n_read = make_model().to(device), Counter[str]()

    def load_model(*args: Any) -> Any:
        n_read["loaded"] += 1
        read = model.run_with_cache
        n_read["read"] = 0

        def run_with_cache(*args: Any, **options: Any) -> Any:
            n_read["read"] += 1
            return read(*args, **options)

        monkeypatch.setattr(model, "run_with_cache", run_with_cache)
        return model

    seen: list[Any] = []

    def collect_examples(model: Any, sae: Any, source: None, *args: Any, **options: Any) -> Any:
        seen.append(trials_collect(model, sae, make_text(60), *args, **options))
        return seen[-1]

    def lengths(texts: Any) -> Any:
        return np.array([[len(t.text), t.span[0] + 1, 1] for t in texts], dtype=float)

    trials_collect = trials.collect_examples
    monkeypatch.setattr(trials, "load_model", load_model)
    monkeypatch.setattr(trials, "collect_examples", collect_examples)
    monkeypatch.setattr(trials, "encoder", lambda device: lengths)
    for module in (trials, sys.modules["untangling_trials"]):
        monkeypatch.setattr(module, "metadata", lambda task: PLACE)
    trials.remembering_model.cache_clear()
    task = replace(TASK, d_in=D_IN, entropies=(4, 6, 8), n_train=512, n_test=256, steps=5)
    acts = make_activations(512 + 8 + 256)
    splits = dict(zip(("train", "validation", "test"), acts.split([512, 8, 256]), strict=True))
    torch.save({name: part.clone() for name, part in splits.items()}, tmp_path / task.filename)
    trial = benchmark.Trial(task.name, arch, 2, 1e-3, 0)
    listening = benchmark.Listening(6, 400, 2)
    trials.read_corpus(trial, task, tmp_path, listening, device)
    n_batches = n_read["read"]

    cell = trials.listen(trial, task, tmp_path, listening, device)

    # The text was read once, for all dictionaries.
    assert n_batches > 0
    assert n_read == {"loaded": 1, "read": n_batches}
    tested = [latent["latent"] for latent in cell["result"]["latents"]]
    assert 0 < len(tested) <= 6
    assert cell["rates"] == [seen[-1][j].n_firings / seen[-1].n_tokens for j in tested]
    assert (cell["explained_variance"] is None) == (arch == trials.RANDOM)
    assert cell["bits"] > 0
    trials.remembering_model.cache_clear()


# Codes


def test_random_tokens_are_tokens_that_count(tmp_path):
    plan = trials.Plan(None, ("movies",), n_codes=8)
    d_in = plan.hooks(trials.MODEL).d_in
    rows = torch.randn(40, 2 * d_in + 1)
    rows[:, -1] = torch.arange(40) % 2
    torch.save({"rows": rows}, tmp_path / f"{trials.MODEL}.pt")
    clusters = trials.random_tokens(plan, tmp_path, 0)
    lower = rows[1::2, :d_in]
    assert all((lower == own).all(1).any() for own in clusters.centroids)
    assert len(clusters.centroids.unique(dim=0)) == 8


def test_seeds_are_pooled_by_their_bounds():
    own = [benchmark.Interval(0.5, 0.4, 0.7), benchmark.Interval(0.7, 0.6, 0.8)]
    assert benchmark.pooled(own) == pytest.approx((0.6, 0.5, 0.75))


def test_the_report_of_codes_has_each_method_and_its_controls(capsys):
    right, wrong = [0, 1] * 10, [0] * 20
    methods = ["CLVQ-VAE", "k-means"]
    recoverabilities = {
        "CLVQ-VAE/0": told(right),
        "CLVQ-VAE/1": told(right),
        "k-means/0": told(wrong),
    }
    intruders = {key: listened(4)["result"] for key in recoverabilities}

    benchmark.report_codes(
        {"codes/ag_news": {"recoverabilities": recoverabilities, "intruders": intruders}}, methods
    )

    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if line.startswith(("| CLVQ-VAE", "| k-means"))]
    told_of = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert told_of[0][:3] == ["CLVQ-VAE", "3 ± 0", "1.000 ± 0.000"]
    assert told_of[1][2] == "0.500"
    # One seed of it is compared with the same seed.
    assert told_of[2] == ["k-means", "+0.500 [+0.500, +0.500]"]
    assert "The same reader given the word: 1.000, the text: 1.000." in out
    assert told_of[-2][2] == "0.40"
