"""``bae-lens check MODEL [HOOK]``: whether a language model keeps what this package asks of it."""

from __future__ import annotations

import argparse
from pathlib import Path

_FAILED = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="name of a language model, or its folder")
    parser.add_argument(
        "hook", nargs="?", help="hook point; default: the residual stream in the middle"
    )
    parser.add_argument(
        "--model_class_name",
        help="HookedTransformer, TransformerBridge, …; default: TransformerBridge for a folder and an encoder, "
        "else HookedTransformer",
    )
    parser.add_argument(
        "--trust_remote_code",
        action="store_true",
        help="run code of the model's own folder or repository; only if you trust who made it",
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", help="JSON file to write; default: none")


def run_check(args: argparse.Namespace) -> int:
    """Exit status 1 where something is not kept."""
    from bae_lens import offline as demo
    from bae_lens.cli.saved import check_output
    from bae_lens.compatibility import check_model
    from bae_lens.files.json_file import write_json
    from bae_lens.loading.devices import check_device
    from bae_lens.loading.language_models import is_folder, load_model

    if args.output is not None:
        check_output(Path(args.output))
    bridged = is_folder(args.model) or args.model == demo.ENCODER_NAME
    model = load_model(
        args.model,
        args.model_class_name or ("TransformerBridge" if bridged else "HookedTransformer"),
        device=check_device("--device", args.device),
        source="The command line",
        trust_remote_code=args.trust_remote_code,
    )
    result = check_model(model, args.hook, args.model)
    print(result.table().text())
    print(f"\n{result.verdict()}".rstrip())
    if args.output is not None:
        write_json(args.output, result.to_dict())
        print(f"\nWritten to {args.output}")
    return 0 if result.holds else _FAILED
