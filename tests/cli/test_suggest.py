"""``bae-lens suggest CONFIG`` on a tiny model: what is printed and written, and what is refused."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from bae_lens import budgets
from bae_lens.budgets import BudgetSweep, Recommendation
from bae_lens.cli import main, suggest
from bae_lens.cli.fields import overrides_of
from bae_lens.offline import names
from bae_lens.scoring import ModelEncoder
from bae_lens.training.config_file import load_config
from tests.budgets.test_result import make_sweep, point
from tests.cli.helpers import resolve_to_tiny
from tests.helpers import D_SAE, runner_cfg

SMALL = ("--tokens", "600", "--steps", "3", "--n_judged", "0", "--budgets", "6,8,11")


@pytest.fixture(autouse=True)
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    monkeypatch.chdir(tmp_path)
    return resolve_to_tiny(monkeypatch)


@pytest.fixture
def config(tmp_path: Path) -> str:
    content: dict[str, Any] = runner_cfg(
        tmp_path, model_name=names.MODEL_NAME, dataset_path=names.DATASET_NAME
    ).to_dict()
    content |= {"output_path": "out/mine", "checkpoint_path": None, "seqpos_slice": [None]}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(content))
    return "run.yaml"


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(["suggest", *argv]) == 2
    out, err = capsys.readouterr()
    assert "bae-lens: error: " in err
    assert "Written" not in out
    return err


def test_the_table_the_curve_and_a_command_for_each_purpose(config, capsys):
    # Steps enough for something to be explained.
    options = ("--explained_variance", "0.3", "--architecture", "topk", "--lr=2e-3", "--steps=60")
    assert main(["suggest", config, *SMALL, *options]) == 0

    out = capsys.readouterr().out
    written = json.loads(Path("out/mine-budgets.json").read_text())
    sweep = BudgetSweep.load("out/mine-budgets.json")
    assert [point.budget for point in sweep.points] == [6, 8, 11]
    assert (sweep.field, sweep.d_sae, sweep.n_steps, sweep.judge) == ("k", D_SAE, 60, None)
    assert sweep.to_table().text() in out
    assert Path("out/mine-budgets.png").read_bytes().startswith(b"\x89PNG")
    assert "Written to out/mine-budgets.json\nPlot in out/mine-budgets.png\n" in out
    found = written["recommendations"]
    assert [one["purpose"] for one in found] == ["read", "reconstruct", "explained_variance"]
    for one, same in zip(found, sweep.recommendations(0.3), strict=True):
        assert f"k {same.budget:g} ({same.reason}).\n    {one['command']}\n" in out
    command = (
        f"bae-lens train run.yaml --architecture topk --lr=2e-3 --sae.k {found[0]['budget']:g}"
    )
    assert found[0]["command"] == command
    # It is one that runs.
    assert main([*shlex.split(command)[1:], "--training_tokens", "128"]) == 0
    assert (Path("out/mine") / "sae_weights.safetensors").is_file()


def test_the_command_of_a_config_that_names_a_fidelity_is_one_that_loads():
    found = Recommendation("read", 36.0, "so")
    sweep = argparse.Namespace(field="target_entropy")
    for fields in ([], ["--sae.target_unexplained_variance", "0.1"]):
        args = argparse.Namespace(CONFIG="smollm2-entropy", fields=fields, trust_remote_code=False)
        command = suggest._command(args, load_config("smollm2-entropy"), sweep, found)  # pyright: ignore[reportArgumentType]
        options = shlex.split(command)[3:]
        cfg: Any = load_config("smollm2-entropy", overrides_of(options)).runner.sae
        assert (cfg.target_entropy, cfg.target_unexplained_variance) == (36.0, None)


def test_where_all_come_to_the_same_bits_nothing_is_recommended(config, capsys):
    # Three steps do not tell them apart.
    argv = ["suggest", config, *SMALL[:-1], "1,2", "--plot", "none"]
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert out.endswith(
        "\nNothing can be recommended: all came to about the same bits. Try --steps 9.\n"
    )
    assert json.loads(Path("out/mine-budgets.json").read_text())["recommendations"] == []


def test_where_each_came_to_what_it_was_asked_for_more_steps_are_no_advice(
    config, capsys, monkeypatch
):
    def near(*_: Any, **__: Any) -> BudgetSweep:
        return make_sweep(point(20, 0.5, bits=22), point(30, 0.5, bits=29))

    monkeypatch.setattr(budgets, "sweep_budgets", near)
    assert main(["suggest", config, *SMALL, "--plot", "none"]) == 0
    assert capsys.readouterr().out.endswith("Try --budgets that are further apart.\n")


def test_what_collapsed_is_said_where_nothing_else_is_left(config, capsys, monkeypatch):
    def collapsed(*_: Any, **__: Any) -> BudgetSweep:
        return make_sweep(point(10, -0.02, bits=0.08, dead_share=0.98), point(40, 0.3, bits=50))

    monkeypatch.setattr(budgets, "sweep_budgets", collapsed)
    assert main(["suggest", config, *SMALL, "--plot", "none"]) == 0
    out = capsys.readouterr().out
    assert (
        "\nLeft out of what is recommended: bits asked 10 (98.0% of its latents are dead, " in out
    )
    assert out.endswith(
        "\nNothing can be recommended: without what is left out there are no two budgets to compare. Try --steps 180.\n"
    )
    assert json.loads(Path("out/mine-budgets.json").read_text())["recommendations"] == []


def test_without_minilm_nothing_is_judged(config, monkeypatch, capsys):
    def missing(*_: Any) -> None:
        raise ImportError("MiniLM is missing. Install it.")

    monkeypatch.setattr(ModelEncoder, "minilm", missing)
    argv = ["suggest", config, *SMALL, "--n_judged", "5", "--plot", "none", "--output", "own.json"]
    assert main(argv) == 0
    assert "bae-lens: no intruder test: MiniLM is missing." in capsys.readouterr().err
    assert BudgetSweep.load("own.json").judge is None
    assert not list(Path().rglob("*.png"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--budgets", "4"), "--budgets must be two different positive numbers"),
        (("--budgets", "4,5"), "--budgets must be apart, the largest 1.5 times the smallest"),
        (("--budgets", "4,-8"), "--budgets must be two different positive numbers"),
        (("--explained_variance", "1.2"), "--explained_variance must be"),
        (("--minutes", "0"), "--minutes must be"),
        (("--minutes", "nan"), "--minutes must be"),
        (("--steps", "0"), "--steps must be"),
        (("--training_tokens", "20"), "training_tokens is 20, less than one step takes"),
        (("--tokens", "20"), "--tokens is 20, of which one in 5"),
        (("--n_judged", "-1"), "--n_judged must be"),
        (("--judged_tokens", "0"), "--judged_tokens must be"),
        (("--architecture", "standard"), "'standard' has no budget that could be swept"),
        (("--architecture", "topk", "--budgets", "4,9999"), "--budgets of k must be whole numbers"),
        (("--no_such_field", "3"), "Unknown field 'no_such_field'"),
        (("extra",), "Expected --FIELD VALUE after the config; got 'extra'"),
        (("--output", "run.yaml"), "--output run.yaml is a file that is read"),
        (("--plot", "run.yaml"), "--plot run.yaml must end in .png"),
    ],
)
def test_bad_options_are_told_before_anything_is_loaded(config, asked, capsys, options, said):
    assert said in refused(capsys, config, *options)
    assert not asked
    assert not Path("out").exists()


def test_budgets_that_are_no_numbers(config, capsys):
    with pytest.raises(SystemExit) as end:
        main(["suggest", config, "--budgets", "4,x"])
    assert end.value.code == 2
    assert "must be numbers with commas between them" in capsys.readouterr().err


def test_a_config_that_is_not_there(capsys):
    assert "There is no file 'nowhere'" in refused(capsys, "nowhere")
