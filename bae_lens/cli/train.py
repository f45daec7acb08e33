"""``bae-lens train``: a run from a config file, a shipped config or SAELens' own flags."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from bae_lens.cli.fields import TRUST, add_config_argument, overrides_of

if TYPE_CHECKING:
    from bae_lens.training.config_file import RunConfig

_HELP = {"-h", "--help"}


def run_train(argv: list[str], parser: argparse.ArgumentParser) -> int:
    """Train as the arguments say, save, and print where. Under torchrun all processes train one autoencoder.

    Raises:
        ValueError: if a field is unknown, missing or wrong.
        FileNotFoundError: if there is no such config.
        KeyboardInterrupt: if the run was interrupted; a checkpoint was written if there is a
            folder for it.
    """
    _describe(parser)
    has_config = bool(argv) and not argv[0].startswith("-")
    options = argv[1:] if has_config else argv
    # No field, and for nobody but who types it.
    trusts = TRUST in options
    options = [option for option in options if option != TRUST]
    if _HELP.intersection(options if has_config else options[:1]) or not (has_config or options):
        parser.print_help()
        return 0
    from sae_lens.training._interruption import InterruptedException

    from bae_lens.distributed import rank, start_process_group
    from bae_lens.training.config_file import load_config

    start_process_group()
    if has_config:
        config = load_config(argv[0], overrides_of(options), trust_remote_code=trusts)
    else:
        config = _from_flags(options)
    try:
        config.run(trust_remote_code=trusts)
    except InterruptedException:
        raise KeyboardInterrupt from None
    if rank() == 0:
        _print_outcome(config.runner.output_path)
    return 0


def _describe(parser: argparse.ArgumentParser) -> None:
    parser.usage = "%(prog)s CONFIG [--FIELD VALUE ...]\n       %(prog)s --architecture NAME [...]"
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add_config_argument(parser)
    parser.epilog = (
        "Any field of the config can be changed: --lr 1e-3, --sae.d_sae 4096,\n"
        "--logger.log_to_wandb false. A name without a section is looked up in the runner's\n"
        "fields, then the autoencoder's, then the logger's. replay_tokens is ours: the language\n"
        "model reads so many tokens once, and training makes epochs over them. With replay_path,\n"
        "a folder, their activations are kept on disk for later runs.\n"
        "--trust_remote_code takes whatever CONFIG asks for when the model is loaded, and runs code of\n"
        "the model's own folder or repository: only if you trust who made both.\n\n"
        "Without CONFIG the flags are --replay_tokens and --replay_path, for architectures of two\n"
        "hook points --hook_name_out, --text_unit and --initialization_tokens, and SAELens' own:\n"
        "bae-lens train --architecture bae --help lists these."
    )


def _from_flags(argv: list[str]) -> RunConfig:
    from sae_lens.llm_sae_training_runner import _parse_cfg_args

    from bae_lens.training.config_file import RunConfig
    from bae_lens.training.cross_layer_runner import CrossLayerRunnerConfig, is_cross_layer

    ours = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    ours.add_argument("--replay_tokens", type=int)
    ours.add_argument("--replay_path")
    second_hook = {"hook_name_out": str, "text_unit": str, "initialization_tokens": int}
    for name, kind in second_hook.items():
        ours.add_argument(f"--{name}", type=kind)
    args, rest = ours.parse_known_args(argv)
    try:
        runner = _parse_cfg_args(rest)
    except ArithmeticError as error:
        # SAELens divides by some of them before anybody can look.
        raise ValueError(
            "--train_batch_size_tokens, --feature_sampling_window and --wandb_log_frequency must be whole "
            f"numbers of at least 1, and --lr and --training_tokens finite ones; SAELens says: {error}."
        ) from error
    given = {name: value for name in second_hook if (value := getattr(args, name)) is not None}
    if given or is_cross_layer(runner.sae.architecture()):
        content = runner.to_dict() | given
        runner = CrossLayerRunnerConfig.from_dict(content)
    return RunConfig(runner, args.replay_tokens, args.replay_path)


def _print_outcome(path: str | None) -> None:
    if path is None:
        print("\nTrained; nothing is saved, since output_path is null.")
        return
    print(
        f"\nSaved to {path}. Load it with:\n\n"
        "    import bae_lens\n"
        "    from sae_lens import SAE\n\n"
        f'    sae = SAE.load_from_disk("{path}")'
    )
