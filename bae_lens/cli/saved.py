"""What commands on a saved SAE begin with: its folder, weights and language model."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bae_lens.files.whole import check_output_file

# Files in a saved SAE's folder that no command may write over.
_OF_AN_SAE = (
    *("cfg.json", "sae_weights.safetensors", "runner_cfg.json", "sparsity.safetensors"),
    *("metrics.jsonl", "activation_scaler.json", "trainer_state.pt"),
)

if TYPE_CHECKING:
    from sae_lens import SAE
    from sae_lens.training.activation_scaler import ActivationScaler
    from transformer_lens.HookedRootModule import HookedRootModule


class Saved(NamedTuple):
    """A saved SAE.

    Attributes:
        sae: as its folder has it.
        model: that its metadata names.
        scaler: of its inputs, where it is a checkpoint from the middle of a run, whose scale is not
            folded in yet; otherwise it leaves them as they are.
    """

    sae: SAE[Any]
    model: HookedRootModule
    scaler: ActivationScaler

    def folded(self) -> SAE[Any]:
        """The SAE with the scale of its inputs in its weights, as SAELens folds it after training."""
        return folded(self.sae, self.scaler)


def folded(sae: SAE[Any], scaler: ActivationScaler) -> SAE[Any]:
    """The SAE, changed so that it takes unscaled inputs, as SAELens folds it after training."""
    if scaler.scaling_factor is not None:
        sae.fold_activation_norm_scaling_factor(scaler.scaling_factor)
    if (white := scaler.whitening) is not None:
        sae.fold_activation_whitening(white.mean, white.matrix, white.inverse_matrix)
    return sae


def add_saved_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of every command that runs a saved SAE on its language model."""
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="the language model, a name or a folder, in place of the one that the metadata names",
    )
    parser.add_argument(
        "--model_class_name",
        help="HookedTransformer, AutoModelForCausalLM, …; default: the metadata's",
    )
    parser.add_argument(
        "--trust_remote_code",
        action="store_true",
        help="take whatever the metadata asks for when the model is loaded, and run code of the model's "
        "own folder or repository; only if you trust who made both",
    )
    parser.add_argument("--device", default="cpu")


def saved_folder(path: str) -> Path:
    """
    Raises:
        FileNotFoundError: if the path is not the folder of a saved SAE.
        ValueError: if its config is not one, or of an SAE that cannot be read token by token.
    """
    from sae_lens.registry import SAE_CLASS_REGISTRY

    from bae_lens.dictionaries import check_reads_tokens
    from bae_lens.loading.saved_saes import read_sae_config

    folder = Path(path)
    # What is no architecture is told where it is loaded.
    name = str(read_sae_config(folder).get("architecture"))
    check_reads_tokens(SAE_CLASS_REGISTRY.get(name, (None,))[0], name)
    return folder


def names_of(folders: list[Path]) -> list[str]:
    """Of folders, or their paths where two are called the same."""
    names = [folder.resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


def load_saved(folder: Path, args: argparse.Namespace) -> Saved:
    """By ``add_saved_arguments``.

    Raises:
        ValueError: if the folder is no SAE that can be loaded, the metadata names no hook point or no
            model, the model cannot be loaded, or the activations at a hook point have another width than
            the SAE.
    """
    from bae_lens.activations.held_out import load_model_of
    from bae_lens.activations.hook_points import hook_names, hook_width
    from bae_lens.loading.saved_saes import load_sae, load_scaler

    sae = load_sae(folder, args.device)
    metadata = sae.cfg.metadata
    if metadata.hook_name is None:
        raise ValueError(f"The metadata in {folder / 'cfg.json'} names no hook point (hook_name).")
    scaler = load_scaler(folder)
    model = load_model_of(
        sae,
        args.device,
        model_name=args.model,
        model_class_name=args.model_class_name,
        trust_remote_code=args.trust_remote_code,
        source=str(folder / "cfg.json"),
    )
    hook_in, hook_out = hook_names(sae)
    for field, hook_name, head_index in (
        ("d_in", hook_in, metadata.hook_head_index),
        ("d_out", hook_out, None if hook_out != hook_in else metadata.hook_head_index),
    ):
        expected = getattr(sae.cfg, field, sae.cfg.d_in)
        width = hook_width(model, hook_name, head_index)
        if width != expected:
            raise ValueError(
                f"The SAE's {field} is {expected}, but the activations at {hook_name!r} have width "
                f"{width}."
            )
    return Saved(sae, model, scaler)


def check_output(
    output: Path, *inputs: str | Path | None, option: str = "--output", others: Sequence[Path] = ()
) -> None:
    """That a file can be written in the end, and takes the place of nothing that is read.

    Args:
        output: the file.
        inputs: files that the command reads, and folders of saved SAEs.
        option: by which it is named.
        others: files that the command writes beside it.

    Raises:
        ValueError: if it cannot, or would.
    """
    target = Path(os.path.realpath(output))
    for other in others:
        if target == Path(os.path.realpath(other)):
            raise ValueError(
                f"{option} {output} is another file that is written. Name another one."
            )
    for path in map(Path, filter(None, inputs)):
        files = [path / name for name in _OF_AN_SAE] if path.is_dir() else [path]
        if target in [Path(os.path.realpath(file)) for file in files]:
            raise ValueError(
                f"{option} {output} is a file that is read, and would be lost. Name another one."
            )
    try:
        check_output_file(output)
    except ValueError as error:
        raise ValueError(f"{option} {error}") from error
