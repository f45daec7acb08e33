"""``bae-lens sae-lens COMMAND …``: SAELens' own commands, with this package's architectures registered.

SAELens runs them by ``python -m`` and looks for no plug-ins, so that there nobody would have registered ``bae``.
"""

from __future__ import annotations

import argparse
import runpy
import sys
import warnings

# By the names that the command line has for the same here, where there is one.
MODULES = {
    "train": "sae_lens.llm_sae_training_runner",
    "evals": "sae_lens.evals",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    ran = "; ".join(f"{name} is python -m {module}" for name, module in MODULES.items())
    parser.add_argument("sae_lens_command", choices=MODULES, help=f"SAELens' command: {ran}")
    parser.add_argument(
        "arguments", nargs=argparse.REMAINDER, help="its own arguments; --help lists them"
    )


def run_sae_lens(args: argparse.Namespace) -> None:
    module, before = MODULES[args.sae_lens_command], sys.argv
    sys.argv = [f"bae-lens sae-lens {args.sae_lens_command}", *args.arguments]
    try:
        with warnings.catch_warnings():
            # It is imported with its package and run once more, as python -m does it.
            warnings.filterwarnings("ignore", ".*found in sys.modules.*", RuntimeWarning)
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        sys.argv = before
