"""The console script ``bae-lens``."""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from typing import Any

from bae_lens.checks.origin import is_in_words, origin_of

logger = logging.getLogger(__name__)

_COMMANDS = {
    "demo": "train a BAE to be read beside a peer, on a real language model, and write reports of both",
    "train": "train an autoencoder from a config file, a shipped config or SAELens' flags",
    "suggest": "try budgets on a little text, and say which to train with for what",
    "finetune": "make a classifier of an encoder, to be studied as any language model",
    "eval": "evaluate a saved autoencoder",
    "ablate": "remove a saved autoencoder's concepts and measure what a probe loses, beside controls",
    "probe": "tell the classes of texts by a few latents of a saved autoencoder, beside controls",
    "report": "write what the latents of saved autoencoders stand for as HTML files",
    "serve": "show a saved autoencoder's report in the browser, with a field in which to type text of your own",
    "export": "write a saved autoencoder and its examples in the formats of other tools",
    "quiz": "write a page on which people tell a model's predictions from concepts alone",
    "score-quiz": "score what people answered there",
    "upload": "send saved autoencoders to the Hugging Face Hub, in one commit",
    "check": "try whether a language model keeps what is asked of it",
    "sae-lens": "run a command of SAELens' own with the architectures of this package",
}
# Under torchrun; any other would be run by each process for itself.
_ON_RANKS = ("train", "eval")
# Whose versions a report of a fault needs.
_VERSIONS = ("bae-lens", "sae-lens", "transformer-lens", "transformers", "torch")
_FAILED, _USER_ERROR, _INTERRUPTED = 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: arguments after the program's name; the process's own if omitted.

    Returns:
        The exit status: 0, 1 where another process of the same run has failed, 2 where the input is at
        fault (the reason goes to stderr), 130 where the run was interrupted. Any other exception is let
        through.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="bae-lens", description="Binary Autoencoders for SAELens."
    )
    parser.add_argument("--version", action=_Versions, nargs=0, help="print versions, and exit")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in _COMMANDS.items():
        commands.add_parser(name, help=summary, add_help=False)
    command, rest = parser.parse_args(argv[:1]).command, argv[1:]
    try:
        with _models_are_named():
            return _run(command, rest)
    except (ValueError, OSError, ImportError, argparse.ArgumentError) as error:
        reason = _what_is_wrong(error)
        if reason is None:
            raise
        logger.debug("Where it was raised", exc_info=error)
        print(f"bae-lens: error: {_printable(reason)}", file=sys.stderr)
        return _USER_ERROR
    except RuntimeError as error:
        if not _is_of_another_rank(error):
            raise
        print(f"bae-lens: error: {_printable(str(error))}", file=sys.stderr)
        return _FAILED
    except KeyboardInterrupt:
        print("bae-lens: interrupted", file=sys.stderr)
        return _INTERRUPTED


class _Versions(argparse.Action):
    """``--version``, which reads what pip noted and imports nothing."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        found = {}
        for name in _VERSIONS:
            try:
                found[name] = metadata.version(name)
            except metadata.PackageNotFoundError:  # A copy of the source that was never installed.
                found[name] = "unknown"
        found["python"] = sys.version.split()[0]
        print("\n".join(f"{name} {version}" for name, version in found.items()))
        parser.exit()


def _run(command: str, argv: list[str]) -> int:
    # Imported by name, and only the one. No module of a command imports a heavy library before its arguments
    # have been read: help and mistakes are answered at once.
    name = command.replace("-", "_")
    module = importlib.import_module(f"bae_lens.cli.{name}")
    parser = argparse.ArgumentParser(prog=f"bae-lens {command}", description=_COMMANDS[command])
    if command == "train":
        # Any field of the config is an option, which argparse cannot know beforehand.
        return module.run_train(argv, parser)
    module.add_arguments(parser)
    if command == "suggest":
        # What is none of its own options is a field.
        args, args.fields = parser.parse_known_args(argv)
    else:
        args = parser.parse_args(argv)
    _refuse_empty(parser, args)
    _check_processes(command)
    return getattr(module, f"run_{name}")(args) or 0


def _check_processes(command: str) -> None:
    from bae_lens.distributed import n_launched

    if command not in _ON_RANKS and n_launched() > 1:
        raise ValueError(
            f"bae-lens {command} is run by one process, and there are {n_launched()} (WORLD_SIZE); those that "
            f"several run together are {' and '.join(_ON_RANKS)}. Start it without torchrun."
        )


def _is_of_another_rank(error: RuntimeError) -> bool:
    from bae_lens.distributed import RankFailedError

    return isinstance(error, RankFailedError)


def _refuse_empty(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """An empty string is nothing that could be asked for, and stands for no default."""
    for action in parser._actions:
        value = getattr(args, action.dest, None)
        if "" in (value if isinstance(value, list) else [value]):
            name = action.option_strings[0] if action.option_strings else action.metavar
            raise ValueError(
                f"{name or action.dest} is empty. Give it a value"
                + (", or leave the option out." if action.option_strings else ".")
            )


@contextmanager
def _models_are_named() -> Iterator[None]:
    """What is loaded is shown before it is: its name may come from a file of somebody else."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("bae-lens: %(message)s"))
    loading = logging.getLogger("bae_lens.loading.language_models")
    level = loading.level
    loading.addHandler(handler)
    loading.setLevel(logging.INFO)
    try:
        yield
    finally:
        loading.removeHandler(handler)
        loading.setLevel(level)


def _what_is_wrong(error: BaseException) -> str | None:
    """In words, if it is the user's to change; None if it is a fault of ours or of a library."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}."
    is_told = isinstance(
        error, (ValueError, FileNotFoundError, ImportError, argparse.ArgumentError)
    )
    return str(error) if is_told and _is_about_the_input(error) else None


def _is_about_the_input(error: BaseException) -> bool:
    """Whether we or SAELens raised it to say what is wrong, and no library below failed."""
    origin = origin_of(error)
    if origin == "sae_lens" and isinstance(error, ValueError):
        return is_in_words(error)
    return origin in ("bae_lens", "sae_lens") or isinstance(error, argparse.ArgumentError)


def _printable(text: str) -> str:
    """Text in which names of somebody else's cannot steer a terminal."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)
