"""``bae-lens demo``: the table, and a whole run on the real model at a reduced setting."""

import json
import math
from typing import Any

import pytest

from bae_lens.cli import main
from bae_lens.cli.demo import Score, table
from bae_lens.evals import CodeSummary


def score(
    tokens_per_second: float = 1.0, quantized: float | None = None, **changes: float
) -> Score:
    values: dict[str, Any] = dict.fromkeys(CodeSummary.__dataclass_fields__, 0.5) | changes
    return Score(CodeSummary(**values), 0.8321, quantized, 0.9, 0.8, tokens_per_second)


def test_the_table_has_a_column_each_and_says_raw_and_folded():
    text = table(
        {
            "BAE": score(dense_share_10=0.25, dense_share_10_folded=0.0),
            "BAE, 7 levels": score(marginal_entropy=400.0, description_length=480.4),
            "SAELens TopK": score(l0=99.6, tokens_per_second=12_345.6, quantized=0.83),
        }
    )

    lines = text.splitlines()
    assert lines[0] == "| | BAE | BAE, 7 levels | SAELens TopK |"
    assert "| explained variance | 0.832 | 0.832 | 0.832 |" in lines
    assert "| CE loss recovered, against mean-ablation | 0.800 | 0.800 | 0.800 |" in lines
    assert (
        "| denser than 10 %, raw / folded | 25.0% / 0.0% | 50.0% / 50.0% | 50.0% / 50.0% |" in lines
    )
    assert "| latents on per token | 0 | 0 | 100 |" in lines
    assert "| marginal entropy, bits per token | 0 | 400 | 0 |" in lines
    assert "| whole description, bits per token | 0 | 480 | 0 |" in lines
    # A code of bits or levels loses nothing when it is written down.
    assert "| explained variance at that | 0.832 | 0.832 | 0.830 |" in lines
    assert "| training, tokens per second | 1 | 1 | 12,346 |" in lines
    assert all(line.count("|") == 5 for line in lines)


def test_a_number_that_makes_no_sense_is_refused(capsys, tmp_path):
    assert main(["demo", "--tokens", "0", "--output", str(tmp_path / "out")]) == 2

    assert "--tokens must be at least 1; got 0" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.real_model
def test_the_demo_runs_and_keeps_its_promises(tmp_path, capsys):
    output = tmp_path / "demo"
    sizes = {
        "tokens": 6144,
        "training_tokens": 40_960,
        "held_out_tokens": 4096,
        "ce_batches": 1,
    }
    options = [word for name, n in sizes.items() for word in (f"--{name}", str(n))]

    assert main(["demo", "--output", str(output), *options]) == 0

    printed = capsys.readouterr().out
    scores = json.loads((output / "scores.json").read_text())
    assert list(scores) == ["BAE", "BAE, 7 levels", "SAELens TopK"]
    bae, levels = scores["BAE"], scores["BAE, 7 levels"]
    unknown = {name for name, value in scores["SAELens TopK"].items() if value is None}
    assert unknown == set()
    for column in (bae, levels):
        assert {name for name, value in column.items() if value is None} == {
            "magnitude_bits",
            "quantized_explained_variance",
        }
    numbers = [value for column in scores.values() for value in column.values()]
    assert all(value is None or math.isfinite(value) for value in numbers)
    assert bae["description_length"] <= bae["marginal_entropy"]
    # Which level it is is counted beside which latents are on, exactly.
    assert bae["magnitude_entropy"] == 0 < levels["magnitude_entropy"]
    assert (bae["is_one_bit"], levels["is_one_bit"]) == (True, False)
    assert levels["description_length"] > levels["magnitude_entropy"]
    # After 40 steps far from done, and far from nothing.
    assert bae["explained_variance"] > 0.5
    assert levels["explained_variance"] > 0.5
    assert bae["ce_score_zero_ablation"] > 0.8
    assert bae["dense_share_10"] == 0
    # The mean is given back by any reconstruction: against it the score is lower.
    assert bae["ce_score_mean_ablation"] < bae["ce_score_zero_ablation"]
    assert f"| explained variance | {bae['explained_variance']:.3f} |" in printed
    assert "with its error term added" in printed
    assert "TopK's magnitudes and BAE's levels" in printed
    for name in ("densities.png", "training.png"):
        assert (output / name).stat().st_size > 10_000
    for name in ("smollm2-bae", "smollm2-bae-levels", "smollm2-topk"):
        assert (output / name / "sae_weights.safetensors").exists()
        assert len((output / name / "metrics.jsonl").read_text().splitlines()) == 4
