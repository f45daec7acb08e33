"""``bae-lens demo``: the table and the headline, and a whole run on the real model at a reduced setting."""

import json
import math
from typing import Any

import pytest
import torch
from sae_lens import TopKSAE

from bae_lens.cli import main
from bae_lens.cli.demo import random_directions
from bae_lens.cli.demo_table import Column, Measured, headline, table
from bae_lens.evals import CodeSummary
from bae_lens.scoring import IntruderResult, IntruderSettings
from bae_lens.scoring.intruder_result import LatentTrials, Tally
from tests.helpers import make_activations

BAE, PEER, RANDOM = "BAE", "SAELens BatchTopK", "random directions"


def result_of(
    n_passed: int, n_of_one_token: int = 0, n: int = 10, n_enough: int = 40
) -> IntruderResult:
    """Of n latents so many pass, the first of them for a single token; of the shuffled ones none."""

    def trials(latent: int, passes: bool) -> LatentTrials:
        tallies = (Tally(9, 1, 0) if passes else Tally(2, 8, 0),)
        purity = 1.0 if latent < n_of_one_token else 0.2
        return LatentTrials(latent, 10, purity, tallies, tallies)

    return IntruderResult(
        dictionary="bae",
        hook_name="blocks.0.hook_resid_post",
        judge="nobody",
        caveat="",
        settings=IntruderSettings(n_latents=n, n_seeds=1),
        n_latents=50,
        n_firing=45,
        n_enough=n_enough,
        latents=tuple(trials(i, i < n_passed) for i in range(n)),
        control=tuple(trials(i, passes=False) for i in range(n)),
    )


def measured(quantized: float | None = None, **changes: float) -> Measured:
    values: dict[str, Any] = dict.fromkeys(CodeSummary.__dataclass_fields__, 0.5) | changes
    return Measured(CodeSummary(**values), 0.8321, quantized, 0.9, 0.8, 12_345.6)


def columns(peers_bits: float = 36.5) -> dict[str, Column]:
    return {
        BAE: Column(result_of(8, 2), measured(description_length=36.0, dense_share_10=0.25)),
        PEER: Column(result_of(4, 2), measured(0.83, description_length=peers_bits, l0=4.19)),
        RANDOM: Column(result_of(0)),
    }


def test_the_table_leads_with_what_can_be_read_and_has_a_column_each():
    lines = table(columns()).splitlines()

    assert lines[0] == f"| | {BAE} | {PEER} | {RANDOM} |"
    # Of ten tested, 8, 4 and 0 pass, of 40 that have enough texts.
    assert lines[2] == "| told apart, of 50 latents | 32 [20, 38] | 16 [7, 27] | 0 [0, 11] |"
    assert lines[3] == "| of them not for a single token | 24 [13, 33] | 8 [2, 20] | 0 [0, 11] |"
    shuffled = "0 [0, 11]"
    assert lines[4] == (
        f"| told apart where examples are shuffled | {shuffled} | {shuffled} | {shuffled} |"
    )
    assert lines[5].endswith("| 10 of 40 | 10 of 40 | 10 of 40 |")
    assert lines[6] == "| denser than 10 %, raw / folded | 25.0% / 50.0% | 50.0% / 50.0% | – |"
    assert "| latents on per token | 0.5 | 4.2 | – |" in lines
    assert "| bits per token | 36.0 | 36.5 | – |" in lines
    assert "| explained variance | 0.832 | 0.832 | – |" in lines
    # A code of levels loses nothing when it is written down.
    assert "| explained variance at these bits | 0.832 | 0.830 | – |" in lines
    assert "| training, tokens per second | 12,346 | 12,346 | – |" in lines
    assert all(line.count("|") == 5 for line in lines)


def test_a_dictionary_whose_latents_nobody_could_be_asked_about_has_no_numbers():
    text = table({BAE: Column(None, measured()), PEER: Column(result_of(1), measured())})

    assert "| told apart, of 50 latents | – | 4 [1, 16] |" in text
    assert "| tested, of those that fire in enough texts | – | 10 of 40 |" in text


def said(of: dict[str, Column]) -> str:
    return headline((BAE, of[BAE]), (PEER, of[PEER]))


def test_the_headline_says_how_many_times_as_many_and_at_which_bits():
    assert said(columns()) == (
        "BAE has 2.00 times as many latents that are told apart and 3.00 times as many of those that are not "
        "for a single token as SAELens BatchTopK. Both are at equal bits, 36.0 and 36.5 per token."
    )


@pytest.mark.parametrize(("bits", "words"), [(45.0, "25% more"), (27.0, "25% fewer")])
def test_the_headline_says_so_where_bits_are_not_equal(bits, words):
    text = said(columns(bits))

    assert "They are not at equal bits" in text
    assert f"SAELens BatchTopK has {words}, {bits} per token and not 36.0." in text


def test_the_headline_of_nothing_told_apart_is_no_ratio():
    none = columns() | {PEER: Column(result_of(0), measured(description_length=36.0))}

    assert said(none).startswith("There is no ratio of what is told apart")


def test_the_headline_says_whose_latents_were_not_tested():
    none = columns() | {BAE: Column(None, measured())}
    assert said(none).startswith(
        f"There is no ratio of what is told apart, for no latents of {BAE} were tested."
    )
    none = columns() | {PEER: Column(None, measured())}
    assert f"no latents of {PEER} were tested" in said(none)


def test_the_headline_of_a_code_of_no_bits():
    none = columns() | {BAE: Column(result_of(0), measured(description_length=0.0))}
    assert "They are not at equal bits" in said(none)


def test_random_directions_are_k_of_them_from_the_mean():
    x = make_activations(50) + 3
    of = TopKSAE.from_dict(
        {"d_in": x.shape[1], "d_sae": 24, "k": 3, "architecture": "topk", "metadata": {}}
    )
    of.cfg.metadata.hook_name = "blocks.1.hook_resid_post"

    sae = random_directions(of, x.mean(0), 5)

    assert sae.cfg.metadata.hook_name == "blocks.1.hook_resid_post"
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(24))
    acts = sae.encode(x)
    assert acts.shape == (50, 24)
    assert ((acts != 0).sum(1) <= 5).all()
    torch.testing.assert_close(sae.decode(torch.zeros(1, 24))[0], x.mean(0))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tokens", "0"], "--tokens must be a whole number of at least 1; got 0"),
        (["--n_tested", "-3"], "--n_tested must be a whole number of at least 1; got -3"),
        (["--seed", "-1"], "--seed must be a whole number from 0 to 4294967295 or None; got -1"),
    ],
)
def test_a_number_that_makes_no_sense_is_refused(flags, message, capsys, tmp_path):
    assert main(["demo", *flags, "--output", str(tmp_path / "out")]) == 2

    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.real_model
def test_the_demo_runs_and_keeps_its_promises(tmp_path, capsys):
    output = tmp_path / "demo"
    sizes = {
        "tokens": 6144,
        "training_tokens": 20_480,
        "held_out_tokens": 4096,
        "ce_batches": 1,
        "n_tested": 20,
        "seed": 7,
    }
    options = [word for name, n in sizes.items() for word in (f"--{name}", str(n))]

    assert main(["demo", "--output", str(output), *options]) == 0

    printed = capsys.readouterr().out
    scores = json.loads((output / "scores.json").read_text())
    assert list(scores) == [BAE, PEER, RANDOM]
    bae, peer = scores[BAE], scores[PEER]
    assert {name for name, value in peer.items() if value is None} == set()
    assert {name for name, value in bae.items() if value is None} == {
        "magnitude_bits",
        "quantized_explained_variance",
    }
    for column in (bae, peer):
        numbers = [value for value in column.values() if isinstance(value, (int, float))]
        assert len(numbers) > 20
        assert all(map(math.isfinite, numbers))
        mean, low, high = column["told_apart"]
        assert 0 <= low <= mean <= high
        assert column["told_apart_not_one_token"][0] <= mean
        assert column["ce_score_mean_ablation"] < column["ce_score_zero_ablation"]
    # After 40 steps far from done, and far from nothing.
    assert bae["explained_variance"] > 0.3
    assert bae["ce_score_zero_ablation"] > 0.5
    assert bae["dense_share_10"] == 0
    assert f"| explained variance | {bae['explained_variance']:.3f} |" in printed
    assert "with its error term added" in printed
    assert "; seed 7\n" in printed
    for name in ("densities.png", "training.png"):
        assert (output / name).stat().st_size > 10_000
    for name in ("smollm2-read", "smollm2-batchtopk"):
        assert (output / name / "sae_weights.safetensors").exists()
        assert len((output / name / "metrics.jsonl").read_text().splitlines()) == 4
    # What is to be opened comes last.
    paths = printed.splitlines()[-3:]
    assert paths == [
        str(output / name)
        for name in ("comparison.html", "smollm2-read/report.html", "smollm2-batchtopk/report.html")
    ]
    page = (output / "comparison.html").read_text()
    assert "smollm2-read/report.html" in page
    assert "intruder" in (output / "smollm2-read" / "report.html").read_text()
