"""The benchmark of steering: each piece on a tiny model, and its report on counts whose answer is known."""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import HookedSAETransformer

from bae_lens import BAE
from tests.helpers import between, make_bae, make_model, make_text
from tests.report.helpers import make_intruder, make_records

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
benchmark: Any = importlib.import_module("steering")

PLAN = benchmark.Plan(n_prompts=6, n_prompt=4, n_new=5, n_latents=3, strengths=(1, 4, 16))
WORD = 12


def talkative() -> tuple[HookedSAETransformer, BAE]:
    """A model of whose bits the third adds to one word's logit, and an autoencoder with that bit."""
    model, sae = make_model(), between(make_bae(), "blocks.1.hook_resid_post", None)
    with torch.no_grad():
        direction = model.W_U[:, WORD] - model.W_U.mean(1)
        sae.scale[3] = 1
        sae.W_dec[3] = 0.3 * direction / direction.norm()
    return model, sae


def test_a_latent_that_says_a_word_is_found_to_and_its_controls_are_not() -> None:
    model, sae = talkative()
    plan = replace(PLAN, n_prompts=40, n_new=10, fluency=20.0)
    prompts = benchmark.read_prompts(model, make_text()["text"], plan)
    assert prompts.shape == (40, 5)
    assert (prompts[:, 0] == 0).all()
    new = benchmark.goes_on(model, prompts, plan, benchmark.nullcontext())
    assert torch.equal(new, benchmark.goes_on(model, prompts, plan, benchmark.nullcontext()))
    clean = {"written": new, "perplexity": benchmark.perplexity(model, prompts, new)}

    cell = benchmark.measure(model, sae, 3, [WORD], [3, 5, 9], None, prompts, clean, plan)

    assert cell["strength"] == 16
    assert list(cell["tried"]) == ["1", "4", "16"]
    assert cell["norm"] == pytest.approx(16 * 0.3, rel=1e-4)
    assert cell["another"] in (5, 9)
    assert cell["latent"]["count"] > 3 * cell[benchmark.RANDOM]["count"]
    # The rate is what the count is on average.
    assert cell["latent"]["rate"] == pytest.approx(cell["latent"]["count"] / 400, rel=0.25)
    logits = model(torch.cat([prompts, new], 1))
    by_hand = logits[:, 4:-1].softmax(-1)[..., WORD].mean().item()
    assert cell["clean"]["rate"] == pytest.approx(by_hand, rel=1e-4)
    assert benchmark.ratio(cell, benchmark.RANDOM) > 3
    assert cell["clean"]["count"] == int((new == WORD).sum())

    strict = replace(plan, fluency=-0.9)
    cell = benchmark.measure(model, sae, 3, [WORD], [3, 5, 9], None, prompts, clean, strict)
    assert cell["strength"] is None
    assert list(cell["tried"]) == ["1"]
    assert benchmark.ratio(cell, benchmark.RANDOM) == 0


def test_perplexity_is_of_what_was_written_alone() -> None:
    model, _ = talkative()
    prompts = benchmark.read_prompts(model, make_text()["text"], PLAN)
    new = torch.full((6, 5), WORD)
    tokens = torch.cat([prompts, new], 1)
    loss = model(tokens, return_type="loss", loss_per_token=True)[:, -5:]
    assert benchmark.perplexity(model, prompts, new) == pytest.approx(
        loss.mean().exp().item(), rel=1e-4
    )


def test_which_latents_and_which_tokens() -> None:
    records = make_records(12)
    result = make_intruder(records, 10)
    scores = {t.latent: t.accuracy() for t in result.latents}
    heard = [latent for latent, score in scores.items() if score and score.mean >= 0.8]
    assert heard
    assert benchmark.passing(result, 1.0) == heard
    own = {t.latent: t.purity for t in result.latents}
    assert benchmark.passing(result, min(own.values()) - 0.01) == []

    counts = (("rare", 3, 9.0, 5), ("often", 90, 1.5, 7))
    count = type(records[0].top_tokens[0])
    lifted = replace(records[0], lift_tokens=tuple(count(*c) for c in counts))
    records = replace(records, latents=(lifted, *records.latents[1:]))
    assert benchmark.top_tokens(records, 0, 10) == [5, 7]
    assert benchmark.top_tokens(records, 0, 1) == [5]

    first = benchmark.drawn(range(50), PLAN)
    assert len(set(first)) == 3
    assert benchmark.drawn(range(50), PLAN) == first
    assert benchmark.drawn(range(50), replace(PLAN, seed=1)) != first
    assert benchmark.drawn([4, 8], PLAN) == [4, 8]


def cell(count: int, random: int, strength: float | None = 4) -> dict[str, Any]:
    def of(n: int) -> dict[str, Any]:
        return {"rate": (n + 0.5) / 1000, "count": n, "perplexity": 20.0}

    found = {"top": [5, 6], "strength": strength, "clean": of(2)}
    if strength is not None:
        found |= {"latent": of(count), benchmark.RANDOM: of(random), benchmark.OTHER: of(1)}
    return found


def test_the_report_counts_latents_without_a_fluent_strength(
    capsys: pytest.CaptureFixture[str],
) -> None:
    cells = {
        "clean": {"perplexity": 18.0, "n_passing": 30, "n_tested": 100, "tokens": {}},
        "latent/1": cell(31, 4),
        "latent/2": cell(8, 4),
        "latent/3": cell(0, 0, None),
    }
    strings = {5: " film", 6: " "}
    benchmark.report(cells, [1, 2, 3], PLAN, strings)
    printed = capsys.readouterr().out
    assert "1 of 3." in printed
    assert "is missed" in printed
    assert " 7.0 |" in printed
    assert "31.5 (31)" in printed
    lines = [[c.strip() for c in line.split("|")[1:-1]] for line in printed.splitlines()]
    table = {line[0]: line[1:3] for line in lines if len(line) == 4}
    # Rates of 31.5, 8.5 and none, over 4.5; the other latent's is 1.5.
    assert table["rate over the random direction's, the latent"] == ["1.9", "1 of 3"]
    assert table["rate over the random direction's, control: another latent"] == ["0.3", "0 of 3"]
    # 29 and 6 are added, where the random direction adds 2.
    added = "what is added to the rate, over the random direction's change"
    assert table[f"{added}, the latent"] == ["3.0", "2 of 3"]
    assert table[f"{added}, control: another latent"] == ["-0.5", "0 of 3"]
    assert "`film`" in printed

    benchmark.report(cells, [1, 2], PLAN, strings)
    assert "is reached: 1 of 2" in capsys.readouterr().out


def test_the_same_command_goes_on_from_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, sae = talkative()
    texts = make_text()["text"]
    plan = replace(PLAN, n_read=1500, n_tested=8, n_trials=2)
    monkeypatch.setattr(benchmark, "intruder_test", lambda records, settings: settings)
    monkeypatch.setattr(benchmark, "passing", lambda result, purity: [3, 5, 9, 11])
    monkeypatch.setattr(benchmark.IntruderSettings, "latents", [], raising=False)
    path = tmp_path / "steering.json"

    benchmark.run(model, sae, texts, plan, benchmark.Cells(path, {}))

    first, printed = path.read_text(), capsys.readouterr().out
    assert "The target" in printed

    def fail(*args: Any, **kwargs: Any) -> None:
        pytest.fail("it was measured again")

    monkeypatch.setattr(benchmark, "measure", fail)
    monkeypatch.setattr(benchmark, "collect_examples", fail)
    benchmark.run(model, sae, texts, plan, benchmark.Cells(path, {}))
    assert path.read_text() == first
    assert capsys.readouterr().out == printed
