"""``bae-lens eval PATH`` on a tiny model, resolved from the saved metadata."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from sae_lens import SAE
from sae_lens.constants import ACTIVATION_SCALER_CFG_FILENAME
from sae_lens.training.activation_scaler import ActivationScaler

from bae_lens import offline as demo
from bae_lens.cli import main
from bae_lens.cli.eval import add_arguments, print_metrics, run_eval
from bae_lens.fingerprint import weights_sha256
from tests.cli.helpers import resolve_to_tiny
from tests.helpers import (
    CONTEXT_SIZE,
    D_IN,
    D_SAE,
    HOOK,
    HOOK_OUT,
    make_bae,
    make_clvq,
    make_headless_encoder,
    make_training_bae,
)

GROUPS = {
    "sae",
    "model_behavior_preservation",
    "model_performance_preservation",
    "reconstruction_quality",
    "shrinkage",
    "sparsity",
    "token_stats",
    "code",
    "outlier_tokens",
    "verdict",
}


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    return resolve_to_tiny(monkeypatch)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(tmp_path / "sae")


KNOWN = {
    "model_name": "bae-lens/tiny",
    "model_class_name": "HookedTransformer",
    "dataset_path": "bae-lens/tiny-text",
    "hook_name": HOOK,
    "context_size": CONTEXT_SIZE,
    "prepend_bos": True,
    "exclude_special_tokens": True,
}


def save(folder: Path, is_non_activating: bool = False, n_levels: int = 1, **metadata: Any) -> Path:
    """A saved SAE; a silent one has no bit that fires and gives back zeros."""
    sae = make_bae(n_levels=n_levels)
    if is_non_activating:
        with torch.no_grad():
            sae.b_enc.fill_(-1e4)
            sae.b_dec.zero_()
    for name, value in {**KNOWN, **metadata}.items():
        sae.cfg.metadata[name] = value
    sae.save_model(folder)
    return folder


def run(folder: Path, *options: str) -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    small = ("--n_eval_batches", "1", "--batch_size_prompts", "4", "--n_code_tokens", "100")
    return run_eval(parser.parse_args([str(folder), *small, *options]))


def strict_json(path: Path) -> dict[str, Any]:
    """Whatever a parser reads that takes no NaN and no Infinity."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def test_everything_comes_from_the_metadata(folder, asked):
    assert run(folder) == 0

    assert asked == [("bae-lens/tiny", "HookedTransformer"), ("bae-lens/tiny-text", "test")]


def test_metrics_are_written_into_the_folder_and_printed(folder, capsys):
    run(folder)

    metrics = strict_json(folder / "eval_metrics.json")
    assert set(metrics) == GROUPS
    assert metrics["code"]["n_tokens"] == 100
    assert 0 < metrics["model_performance_preservation"]["ce_loss_with_mean_ablation"] < 20
    out = capsys.readouterr().out
    del metrics["sae"]
    verdict = metrics.pop("verdict")
    for group, values in metrics.items():
        assert f"\n{group}\n" in out
        assert all(f"  {name} " in out for name in values)
    assert f"{metrics['code']['l0']:.4f}" in out
    assert (
        f"Written to {folder / 'eval_metrics.json'}\nPlot in {folder / 'eval_metrics.png'}\n" in out
    )
    assert out.endswith(f"\n\n{verdict['finding']} {verdict['advice']}\n")
    assert verdict["finding"].startswith("On 100 tokens ")
    assert (folder / "eval_metrics.png").read_bytes().startswith(b"\x89PNG")


def test_a_text_that_is_too_short_counts_whole(folder, caplog):
    # However much of it the groups before have read.
    assert run(folder, "--n_eval_batches", "5", "--n_code_tokens", "1000000") == 0

    metrics = strict_json(folder / "eval_metrics.json")
    assert set(metrics) == GROUPS
    n_tokens = metrics["code"]["n_tokens"]
    assert f"The text ended after {n_tokens} of 1000000 tokens." in caplog.text
    assert run(folder, "--n_eval_batches", "1", "--n_code_tokens", "1000000") == 0
    assert strict_json(folder / "eval_metrics.json")["code"]["n_tokens"] == n_tokens


def test_the_metrics_name_the_weights_that_they_are_of(folder):
    assert run(folder) == 0
    own = weights_sha256(SAE.load_from_disk(folder))
    about = strict_json(folder / "eval_metrics.json")["sae"]
    assert about.pop("weights_sha256") == own
    assert about.pop("model_name") == "bae-lens/tiny"
    assert about.pop("text") == "bae-lens/tiny-text"
    config = about.pop("config")
    assert (config["architecture"], config["d_sae"], config["hook_name"]) == ("bae", D_SAE, HOOK)
    assert not {"dtype", "device", "metadata"} & set(config)
    numbers = {"n_eval_batches", "batch_size_prompts", "n_code_tokens", "outlier_multiple"}
    assert set(about) == numbers


def test_an_output_that_cannot_be_written_is_told_before_anything_is_loaded(folder, asked, capsys):
    for output in (folder, folder / "cfg.json" / "x", Path("/proc/x.json")):
        assert main(["eval", str(folder), "--output", str(output)]) == 2
        assert f"bae-lens: error: --output {output} " in capsys.readouterr().err
    assert not asked


@pytest.mark.parametrize("name", ["sae_weights.safetensors", "cfg.json", "texts.txt", "link"])
def test_an_output_is_nothing_that_is_read(folder, tmp_path, asked, capsys, name):
    (tmp_path / "texts.txt").write_text("word1 word2\n")
    (tmp_path / "link").symlink_to(folder / "cfg.json")
    output = (folder if (folder / name).exists() else tmp_path) / name
    before = output.read_bytes()
    argv = ["eval", str(folder), "--data", str(tmp_path / "texts.txt"), "--output", str(output)]
    assert main(argv) == 2
    assert f"--output {output} is a file that is read" in capsys.readouterr().err
    assert output.read_bytes() == before
    assert not asked


def test_the_plot_is_where_it_is_asked_for_or_nowhere(folder, tmp_path, capsys):
    assert run(folder, "--plot", str(tmp_path / "new" / "rates.svg")) == 0
    assert "<svg" in (tmp_path / "new" / "rates.svg").read_text()
    assert run(folder, "--plot", "none", "--output", str(tmp_path / "own.json")) == 0
    # What a device takes has no folder to put a plot beside it.
    assert run(folder, "--output", "/dev/null") == 0
    assert not list(folder.glob("*.png")) + list(tmp_path.glob("*.png"))
    assert capsys.readouterr().out.count("Plot in") == 1


@pytest.mark.parametrize(
    ("plot", "said"),
    [
        ("plot.txt", "must end in .png, .svg or .pdf"),
        ("sae/cfg.json", "must end in .png, .svg or .pdf"),
        ("link.png", "is a file that is read"),
        ("same.png", "is another file that is written"),
        ("/proc/x.png", "cannot be written as a file"),
    ],
)
def test_a_plot_that_cannot_be_written_is_told_before_anything_is_loaded(
    folder, tmp_path, asked, capsys, plot, said
):
    (tmp_path / "link.png").symlink_to(folder / "cfg.json")
    output = str(tmp_path / ("same.png" if plot == "same.png" else "own.json"))
    argv = ["eval", str(folder), "--output", output, "--plot", str(tmp_path / plot)]
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert f"bae-lens: error: --plot {tmp_path / plot} " in err
    assert said in err
    assert not asked


def test_without_matplotlib_there_is_no_plot(folder, tmp_path, monkeypatch, asked, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)

    assert main(["eval", str(folder), "--plot", str(tmp_path / "asked.png")]) == 2
    assert "Plots need matplotlib. Install it with:" in capsys.readouterr().err
    assert not asked
    assert run(folder) == 0
    out, err = capsys.readouterr()
    assert "bae-lens: no plot is written. Plots need matplotlib." in err
    assert "Plot in" not in out
    assert set(strict_json(folder / "eval_metrics.json")) == GROUPS


def test_a_second_time_gives_the_same(folder):
    run(folder)
    first = (folder / "eval_metrics.json").read_text()
    run(folder)

    assert (folder / "eval_metrics.json").read_text() == first


def test_the_output_may_be_another_file_in_a_new_folder(folder, tmp_path):
    output = tmp_path / "new" / "scores.json"

    run(folder, "--output", str(output))

    assert set(strict_json(output)) == GROUPS
    assert not (folder / "eval_metrics.json").exists()


def test_what_is_not_a_number_is_null(tmp_path, capsys):
    # A reconstruction of zeros has no direction, and so no cosine similarity.
    folder = save(tmp_path / "sae", is_non_activating=True)

    run(folder)

    metrics = strict_json(folder / "eval_metrics.json")
    assert metrics["reconstruction_quality"]["cossim"] is None
    assert metrics["code"]["dead_share"] == 1.0
    assert "nan" in capsys.readouterr().out


def test_another_dataset_by_name(folder, asked):
    run(folder, "--dataset", "bae-lens/other-text")

    assert ("bae-lens/other-text", "test") in asked
    assert ("bae-lens/tiny-text", "test") not in asked


def test_the_options_reach_the_evals(folder):
    run(folder, "--n_eval_batches", "2", "--batch_size_prompts", "3", "--n_code_tokens", "0")

    metrics = strict_json(folder / "eval_metrics.json")
    assert set(metrics) == GROUPS - {"code", "outlier_tokens"}
    # There are no rates to draw.
    assert not (folder / "eval_metrics.png").exists()
    assert set(metrics["token_stats"].values()) == {2 * 3 * CONTEXT_SIZE}


def test_pairs_and_magnitudes_are_counted_as_asked(folder):
    run(folder, "--pair_counts")
    paired = strict_json(folder / "eval_metrics.json")["code"]
    run(folder, "--no-pair_counts")
    without = strict_json(folder / "eval_metrics.json")["code"]

    assert paired["plug_in_entropy"] <= paired["chow_liu_entropy"] <= paired["marginal_entropy"]
    assert without["chow_liu_entropy"] is None
    assert without["description_length"] == without["marginal_entropy"]


def test_levels_are_counted_with_nothing_asked(tmp_path, capsys):
    run(folder := save(tmp_path / "sae", n_levels=3))

    code = strict_json(folder / "eval_metrics.json")["code"]
    assert (code["is_one_bit"], code["magnitude_bits"]) == (False, None)
    assert code["description_length"] == pytest.approx(
        code["support_entropy"] + code["magnitude_entropy"]
    )
    assert f"{code['magnitude_entropy']:.4f}" in capsys.readouterr().out


@pytest.mark.parametrize("excluded", [True, False, [0]])
def test_special_tokens_are_as_in_training(tmp_path, excluded):
    folder = save(tmp_path / "sae", exclude_special_tokens=excluded)
    everywhere = save(tmp_path / "everywhere", exclude_special_tokens=False)

    run(folder)
    run(everywhere)

    scores = [
        strict_json(path / "eval_metrics.json")["model_performance_preservation"]
        for path in (folder, everywhere)
    ]
    assert (scores[0] == scores[1]) == (excluded is False)


def test_a_checkpoint_whose_scale_is_not_folded_in_yet_scores_as_it_would_folded(tmp_path):
    sae = make_training_bae(normalize_activations="expected_average_only_in")
    for name, value in KNOWN.items():
        sae.cfg.metadata[name] = value
    sae.save_model(tmp_path / "checkpoint")
    ActivationScaler(0.5).save(str(tmp_path / "checkpoint" / ACTIVATION_SCALER_CFG_FILENAME))
    sae.fold_activation_norm_scaling_factor(0.5)
    sae.save_inference_model(tmp_path / "folded")

    scores = []
    for name in ("checkpoint", "folded"):
        assert run(tmp_path / name) == 0
        metrics = strict_json(tmp_path / name / "eval_metrics.json")
        del metrics["sae"], metrics["verdict"]
        scores.append(
            {g: {k: v for k, v in m.items() if v is not None} for g, m in metrics.items()}
        )

    for group in scores[0]:
        assert scores[0][group] == pytest.approx(scores[1][group], rel=1e-4), group


def test_metadata_without_a_hook_is_an_error_that_says_so(tmp_path):
    with pytest.raises(ValueError, match="names no hook point"):
        run(save(tmp_path / "sae", hook_name=None))


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not the folder of a saved SAE") as error:
        run(tmp_path / "nowhere")

    assert str(tmp_path / "nowhere") in str(error.value)
    assert "output_path" in str(error.value)


def test_a_folder_without_an_sae_and_a_file(tmp_path):
    file = tmp_path / "cfg.json"
    file.write_text("{}")

    with pytest.raises(FileNotFoundError, match=r"there is no cfg\.json in it"):
        run(tmp_path / "..")
    with pytest.raises(FileNotFoundError, match="it is a file"):
        run(file)


def test_a_folder_without_weights(folder):
    (folder / "sae_weights.safetensors").unlink()

    with pytest.raises(FileNotFoundError, match=r"sae_weights\.safetensors"):
        run(folder)


def test_on_the_command_line_that_is_a_message_and_no_traceback(folder, tmp_path, capsys):
    (folder / "sae_weights.safetensors").unlink()

    for path in (tmp_path / "nowhere", folder):
        assert main(["eval", str(path)]) == 2
        assert str(path) in capsys.readouterr().err


def test_a_hook_that_the_model_does_not_have(tmp_path):
    folder = save(tmp_path / "sae", hook_name="blocks.0.hook_resid_pst")

    with pytest.raises(ValueError, match=r"no hook 'blocks\.0\.hook_resid_pst'.*hook_resid_post"):
        run(folder)


def test_a_width_that_is_not_the_hooks(tmp_path):
    folder = save(tmp_path / "sae", hook_name="blocks.0.mlp.hook_post")

    with pytest.raises(ValueError, match=f"{D_IN}.*{2 * D_IN}"):
        run(folder)


# Two hook points


def save_clvq(folder: Path, d_out: int = D_IN, **metadata: Any) -> Path:
    sae = make_clvq(d_out=d_out)
    for name, value in {**KNOWN, "hook_name_out": HOOK_OUT, **metadata}.items():
        sae.cfg.metadata[name] = value
    sae.save_model(folder)
    return folder


@pytest.mark.parametrize(
    ("hook_out", "d_out"), [(HOOK_OUT, D_IN), ("blocks.1.mlp.hook_post", 2 * D_IN)]
)
def test_a_clvq_vae_is_scored_where_it_writes(tmp_path, hook_out, d_out):
    folder = save_clvq(tmp_path / "sae", d_out, hook_name_out=hook_out)

    assert run(folder) == 0

    metrics = strict_json(folder / "eval_metrics.json")
    assert set(metrics) == GROUPS
    assert metrics["code"]["n_tokens"] == 100
    assert metrics["code"]["perplexity"] >= 1
    assert metrics["sparsity"]["l0"] == 1
    assert metrics["model_behavior_preservation"]["kl_div_with_mean_ablation"] > 0


def test_sentences_where_it_was_trained_on_sentences(tmp_path, monkeypatch):
    texts = Dataset.from_dict({"text": [f"word{i} word7 word{i + 1}" for i in range(30)]})
    monkeypatch.setattr(demo, "load_dataset", lambda name, split="train": texts)
    folder = save_clvq(tmp_path / "sae", text_unit="sentence")

    assert run(folder) == 0

    metrics = strict_json(folder / "eval_metrics.json")
    assert set(metrics) == GROUPS
    # Four texts of three words and BOS.
    assert set(metrics["token_stats"].values()) == {4 * 4}
    assert metrics["code"]["n_tokens"] == 3 * 30


def test_an_encoder_has_no_language_model_figures(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "load_model", lambda *args, **kwargs: make_headless_encoder())
    folder = save_clvq(
        tmp_path / "sae",
        text_unit="sentence",
        hook_name="blocks.0.hook_out",
        hook_name_out="blocks.1.hook_out",
        model_class_name="TransformerBridge",
    )

    assert run(folder) == 0

    metrics = strict_json(folder / "eval_metrics.json")
    assert set(metrics) == GROUPS - {
        "model_behavior_preservation",
        "model_performance_preservation",
    }
    assert None not in metrics["reconstruction_quality"].values()


@pytest.mark.parametrize(
    ("field", "name"),
    [("d_in", "hook_name"), ("d_out", "hook_name_out")],
)
def test_either_width_has_to_be_its_hooks(tmp_path, field, name):
    folder = save_clvq(tmp_path / "sae", D_IN, **{name: "blocks.0.mlp.hook_post"})

    with pytest.raises(ValueError, match=rf"{field} is {D_IN}.*width {2 * D_IN}"):
        run(folder)


@pytest.mark.parametrize("name", ["hook_name", "hook_name_out"])
def test_either_hook_has_to_be_there(tmp_path, name):
    folder = save_clvq(tmp_path / "sae", D_IN, **{name: "blocks.0.hook_resid_pst"})

    with pytest.raises(ValueError, match=r"no hook 'blocks\.0\.hook_resid_pst'"):
        run(folder)


@pytest.mark.parametrize("name", ["n_eval_batches", "batch_size_prompts"])
@pytest.mark.parametrize("value", ["0", "-1"])
def test_no_batches_are_refused_before_anything_is_loaded(folder, asked, name, value):
    with pytest.raises(
        ValueError, match=rf"--{name} must be a whole number of at least 1; got {value}"
    ):
        run(folder, f"--{name}", value)

    assert asked == []


def test_printed_numbers_line_up(capsys):
    numbers = {"tokens": 65_536, "share": 0.25, "missing": float("nan")}
    print_metrics({"group": numbers | {"one_bit": True, "unknown": None}})

    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "group"
    assert [line.split() for line in lines[2:]] == [
        ["tokens", "65,536"],
        ["share", "0.2500"],
        ["missing", "nan"],
        ["one_bit", "yes"],
        ["unknown", "–"],
    ]
    assert len({len(line) for line in lines[2:]}) == 1
