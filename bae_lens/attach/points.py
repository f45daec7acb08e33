"""The hook points of a model that a dictionary is attached to, and what was read there in a pass."""

from __future__ import annotations

from typing import Any

from sae_lens.analysis.hooked_sae_transformer import _SAEWrapper, get_deep_attr
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformer_lens import HookedTransformer
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import TransformerBridge

from bae_lens.activations.hook_points import take_heads
from bae_lens.activations.running_pass import PassTracker, RunningPass
from bae_lens.checks.suggest import did_you_mean
from bae_lens.dictionaries import Dictionary

Model = HookedTransformer | TransformerBridge


def conversion_at(point: Any) -> Any:
    """From the form of the model to that of hooks, where a hook point of a Bridge has two."""
    return getattr(point, "hook_conversion", None)


def note_reading(
    point: nn.Module, convert: Any, dictionary: Dictionary, tracker: PassTracker
) -> RemovableHandle:
    """Note what a dictionary reads at another hook point than it writes, until the handle is removed."""

    def note_input(*args: Any) -> None:  # module, inputs, output
        if tracker.running is not None:
            acts = args[-1] if convert is None else convert.convert(args[-1])
            tracker.running.captured = take_heads(acts, dictionary.head_index)

    return point.register_forward_hook(note_input)


def what_was_read(running: RunningPass | None, dictionary: Dictionary) -> Tensor:
    """What was noted in this pass."""
    captured = None if running is None else running.captured
    if captured is None:
        hook_in, hook_out = dictionary.hook_names
        raise ValueError(
            f"The model came to {hook_out!r}, where the SAE writes, without having passed "
            f"{hook_in!r}, which it reads."
        )
    return captured


def hook_path(model: Model, name: str) -> str:
    """The path in the model of a hook point, of which a Bridge knows aliases."""
    resolve = getattr(model, "_resolve_hook_name", None)
    path = name if resolve is None else resolve(name)
    try:
        point = get_deep_attr(model, path)
    except (AttributeError, IndexError, KeyError, TypeError):
        point = None
    if isinstance(point, (HookPoint, _SAEWrapper)):
        return path
    raise ValueError(
        f"{type(model).__name__} has no hook point {name!r}, which the SAE's metadata names. "
        f"{did_you_mean(name, model.hook_dict)}"
    )


def check_width(captured: Tensor | None, written: Tensor, dictionary: Dictionary) -> None:
    """Refuse activations that are not as wide as what the SAE reads and writes."""
    read = written if captured is None else captured
    if written.ndim == 4:
        return  # Its heads are for the SAE itself to take.
    sides = ((read, dictionary.d_in, "reads"), (written, dictionary.d_out, "writes"))
    for (acts, width, verb), hook in zip(sides, dictionary.hook_names, strict=True):
        if acts.shape[-1] != width:
            raise ValueError(
                f"Activations at {hook!r} have width {acts.shape[-1]}, and the SAE {verb} width "
                f"{width}. Check metadata.hook_name, hook_name_out and hook_head_index."
            )
