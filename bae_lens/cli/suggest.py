"""``bae-lens suggest CONFIG``: which budget to train with, from short trainings at several on one reading of the text."""

from __future__ import annotations

import argparse
import shlex
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from bae_lens.cli.fields import TRUST, add_config_argument, overrides_of
from bae_lens.cli.plots import add_plot_argument, plot_path, write_plot
from bae_lens.cli.saved import check_output

if TYPE_CHECKING:
    from bae_lens.budgets import BudgetSweep, Recommendation
    from bae_lens.scoring import EmbeddingJudge
    from bae_lens.training.config_file import RunConfig

_PURPOSES = {
    "read": "to read latents",
    "reconstruct": "to reconstruct",
    "explained_variance": "for the stated explained variance",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    # Any other option is a field of the config, and no abbreviation of these.
    parser.allow_abbrev = False
    add_config_argument(parser)
    parser.add_argument(
        "--budgets",
        type=_numbers,
        help="values to try, as 20,40,80: bits per token (target_entropy) or latents on per token (k); default: bits from "
        "1/32 to 1 per input dimension, or k from 4 to 128",
    )
    parser.add_argument(
        "--explained_variance", type=float, help="also the budget that reaches so much, from 0 to 1"
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=5,
        help="how long all may take, once the model is loaded: by it the steps are chosen; default: %(default)s",
    )
    parser.add_argument(
        "--steps", type=int, help="of each training, whatever time they take; default: by --minutes"
    )
    parser.add_argument(
        "--tokens",
        type=int,
        default=50_000,
        help="that the language model reads; one in five is held out; default: %(default)s",
    )
    parser.add_argument(
        "--n_judged",
        type=int,
        default=50,
        help="latents of each that take an intruder test, where MiniLM is installed; 0: none; default: %(default)s",
    )
    parser.add_argument(
        "--judged_tokens",
        type=int,
        default=12_000,
        help="of held-out text that their examples are from; default: %(default)s",
    )
    parser.add_argument(TRUST, action="store_true", help="as of bae-lens train")
    parser.add_argument("--output", help="JSON file to write; default: OUTPUT_PATH-budgets.json")
    add_plot_argument(parser, "the curve")
    parser.usage = "%(prog)s CONFIG [OPTION ...] [--FIELD VALUE ...]"
    parser.epilog = "Any other option is a field of the config, as of bae-lens train: --lr 1e-3, --sae.d_sae 4096."


def run_suggest(args: argparse.Namespace) -> int:
    """Sweep, print, write; ``args.fields`` has the options that are none of the command's own."""
    from bae_lens.budgets import SweepSettings, sweep_budgets
    from bae_lens.budgets.sweep import check_sweep
    from bae_lens.checks.fields import Number, check
    from bae_lens.training.config_file import load_config

    target = args.explained_variance
    if target is not None:
        target = check("--explained_variance", target, Number(above=0, below=1))
    try:
        settings = SweepSettings(
            budgets=args.budgets,
            n_tokens=args.tokens,
            minutes=args.minutes,
            n_steps=args.steps,
            n_judged=args.n_judged,
            n_judged_tokens=args.judged_tokens,
        )
        config = load_config(
            args.CONFIG, overrides_of(args.fields), trust_remote_code=args.trust_remote_code
        )
        check_sweep(config, settings)
    except ValueError as error:
        raise ValueError(_in_options(str(error))) from error
    output = _output(args, config)
    check_output(output, args.CONFIG)
    plot = plot_path(args, output, args.CONFIG)
    # Advice on training runs of a user's own, which these are not.
    warnings.filterwarnings("ignore", category=UserWarning, module="sae_lens")
    sweep = sweep_budgets(
        config,
        settings,
        _judge(args),
        trust_remote_code=args.trust_remote_code,
        say=lambda text: print(text, flush=True),
    )
    _write(sweep, args, config, target, output, plot)
    return 0


def _write(
    sweep: BudgetSweep,
    args: argparse.Namespace,
    config: RunConfig,
    target: float | None,
    output: Path,
    plot: Path | None,
) -> None:
    from bae_lens.budgets.result import is_near
    from bae_lens.files.json_file import write_json

    found = sweep.recommendations(target)
    of_all = [one._asdict() | {"command": _command(args, config, sweep, one)} for one in found]
    print(f"\n{sweep.to_table().text()}\n")
    write_json(output, sweep.to_dict() | {"recommendations": of_all})
    print(f"Written to {output}")
    title = f"{sweep.model_name}, {sweep.hook_name}, {sweep.architecture}, {sweep.n_steps:,} steps"
    write_plot(plot, lambda: sweep.plot(title))
    if not found:
        # Trainings that came to what they were asked for would come to the same with more steps.
        wanting = bool(sweep.left_out) or not all(is_near(point) for point in sweep.points)
        advice = f"--steps {3 * sweep.n_steps}" if wanting else "--budgets that are further apart"
        why = "all came to about the same bits"
        if sweep.left_out:
            why = "without what is left out there are no two budgets to compare"
        print(f"\nNothing can be recommended: {why}. Try {advice}.")
    for one, command in zip(found, of_all, strict=True):
        words = _PURPOSES[one.purpose]
        print(f"\n{words[0].upper()}{words[1:]}: {sweep.field} {one.budget:g} ({one.reason}).")
        print(f"    {command['command']}")


def _command(
    args: argparse.Namespace, config: RunConfig, sweep: BudgetSweep, found: Recommendation
) -> str:
    budget = [f"--sae.{sweep.field}", f"{found.budget:g}"]
    trust = [TRUST] if args.trust_remote_code else []
    # The coefficient follows one target.
    fidelity = "target_unexplained_variance"
    if sweep.field == "target_entropy" and getattr(config.runner.sae, fidelity, None) is not None:
        budget += [f"--sae.{fidelity}", "null"]
    return shlex.join(["bae-lens", "train", args.CONFIG, *args.fields, *trust, *budget])


def _output(args: argparse.Namespace, config: RunConfig) -> Path:
    if args.output:
        return Path(args.output)
    path = config.runner.output_path
    return Path("budgets.json") if path is None else Path(f"{path}-budgets.json")


def _judge(args: argparse.Namespace) -> EmbeddingJudge | None:
    """The offline judge; None where none is asked for, or MiniLM is missing, which is said."""
    if args.n_judged == 0:
        return None
    from bae_lens.scoring import EmbeddingJudge, ModelEncoder

    try:
        return EmbeddingJudge(ModelEncoder.minilm())
    except ImportError as error:
        print(f"bae-lens: no intruder test: {' '.join(str(error).split())}", file=sys.stderr)
        return None


def _in_options(message: str) -> str:
    """A message of the library in the names of the options."""
    names = {"n_judged_tokens": "--judged_tokens", "n_tokens": "--tokens", "n_steps": "--steps"}
    names |= {"n_judged": "--n_judged", "minutes": "--minutes", "budgets": "--budgets"}
    name, space, rest = message.partition(" ")
    return f"{names.get(name, name)}{space}{rest}"


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be numbers with commas between them, as 20,40,80; got {text!r}"
        ) from None
