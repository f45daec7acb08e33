"""An activation that is changed within a running model, by what a dictionary reads there."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool
from sae_lens import SAE
from sae_lens.analysis.hooked_sae_transformer import get_deep_attr
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from bae_lens.activations.hook_points import put_heads, take_heads
from bae_lens.activations.outlier_tokens import OutlierTokens
from bae_lens.activations.padding import at_position, own_tokens
from bae_lens.activations.running_pass import PassTracker, RunningPass
from bae_lens.activations.special_tokens import special_token_mask
from bae_lens.attach.left_alone import LeftAlone
from bae_lens.attach.points import (
    Model,
    check_width,
    conversion_at,
    hook_path,
    note_reading,
    what_was_read,
)
from bae_lens.checks.fields import check, whole
from bae_lens.dictionaries import Dictionary

logger = logging.getLogger(__name__)


@contextmanager
def edited(
    model: Model,
    sae: SAE[Any],
    edit: Callable[[Tensor, Tensor | None], Tensor],
    exclude_special_tokens: bool | Sequence[int] = True,
    exclude_outlier_tokens: bool | float | OutlierTokens = False,
    reads: bool = True,
    position: int | None = None,
) -> Iterator[Model]:
    """A context in which what stands where ``sae`` writes is changed by a function, special tokens untouched.

    Nothing is put in the place of the hook point, so that contexts nest: the function is a forward hook
    among the others, in the order in which they were added. What is added within the context, a hook or
    ``run_with_cache``, sees the activation as it was changed. Where an SAE is attached at the hook point
    inside or outside, the function is given what it writes.

    Args:
        model: the model.
        sae: any SAE, for where it reads and writes, which heads, and how wide.
        edit: of what stands at the hook point that is written, ``[batch, pos, d_out]``, and of what was
            read, ``[batch, pos, d_in]`` (None without ``reads``), heads flattened, makes the former anew.
        exclude_special_tokens: as of ``attached``.
        exclude_outlier_tokens: as of ``attached``.
        reads: whether the function looks at what the SAE reads, for which the model has to have passed
            that hook point.
        position: the one position of each text that is changed, among the text's own tokens, padding left out,
            and from its end if negative; all if omitted. A pass that goes on from a key-value cache is left as it
            is: the position is in the text before it.

    Yields:
        ``model``.

    Raises:
        ValueError: as ``attached``, but that any decoder will do. Inside, when the model runs: if a text
            has no such position, or, counted from the beginning, a special token there, which would be left as it is
            (from the end that is a warning: it may have been generated).
    """
    position = check("position", position, whole(None, or_none=True))
    dictionary = Dictionary(sae)
    left_alone = LeftAlone.of(model, dictionary, exclude_special_tokens, exclude_outlier_tokens)
    at = None if position is None else _OnePosition(position, model, left_alone.special)
    path_in, path_out = (hook_path(model, name) for name in dictionary.hook_names)
    converting = [conversion_at(get_deep_attr(model, path)) for path in (path_in, path_out)]
    reads_elsewhere = path_in != path_out and (reads or left_alone.outliers is not None)
    head = None if path_in != path_out else dictionary.head_index
    hooked: dict[nn.Module, RemovableHandle] = {}
    capture: RemovableHandle | None = None

    def prepare() -> None:
        # An SAE that was attached inside stands there in the place of the hook point.
        nonlocal capture
        point = get_deep_attr(model, path_out)
        if point not in hooked:
            hooked[point] = point.register_forward_hook(write)
        if reads_elsewhere:
            if capture is not None:
                capture.remove()
            capture = note_reading(
                get_deep_attr(model, path_in), converting[0], dictionary, tracker
            )

    def write(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor | None:
        running = tracker.running
        if running is None or (at is not None and running.has_past):
            return None
        convert = converting[1]
        acts = output if convert is None else convert.convert(output)
        written = take_heads(acts, head)
        captured = what_was_read(running, dictionary) if reads_elsewhere else None
        check_width(captured, written, dictionary)
        mask = left_alone.mask(written, captured, running)
        read = captured if reads_elsewhere else written
        if at is not None:
            elsewhere = ~at.mask(written, running)
            mask = elsewhere if mask is None else mask | elsewhere
        new = edit(written, read if reads else None)
        if mask is not None:
            new = torch.where(mask[..., None], written, new)
        new = put_heads(acts, new, head)
        return new if convert is None else convert.revert(new)

    tracker = PassTracker(model, prepare, path_out)
    prepare()
    try:
        with tracker.following():
            yield model
    finally:
        for handle in (*hooked.values(), *([capture] if capture is not None else [])):
            handle.remove()


class _OnePosition:
    """One position of each text, counted in its own tokens.

    Args:
        position: from the end if negative.
        model: whose tokenizer says what is padding.
        special: token ids that are left as they are.
    """

    def __init__(self, position: int, model: Model, special: Sequence[int]) -> None:
        self._position, self._model, self._special = position, model, special
        self._is_told = False

    def mask(self, activations: Tensor, running: RunningPass) -> Bool[Tensor, "batch pos"]:
        """True at it.

        Raises:
            ValueError: if a text has no such position, or from the beginning on a special token there.
        """
        tokens = running.tokens
        if tokens is None or tokens.shape != activations.shape[:2]:
            # All that is known is how many there are.
            is_own = torch.ones(activations.shape[:2], dtype=torch.bool, device=activations.device)
            return at_position(is_own, self._position)
        chosen = at_position(
            own_tokens(self._model, tokens, running.attention_mask), self._position
        )
        is_special = chosen & special_token_mask(tokens, self._special)
        if is_special.any():
            self._tell(tokens, is_special)
        return chosen.to(activations.device)

    def _tell(self, tokens: Tensor, is_special: Tensor) -> None:
        """That there nothing is changed: an error where it is in the text that was given; from the end on it may be
        one that was just generated, of a text that is finished, and a warning is enough."""
        text, at = is_special.nonzero()[0].tolist()
        what = (
            f"Position {self._position} of text {text} is the special token {tokens[text, at].item()}, which is left as "
            "it is, so that nothing is changed there."
        )
        if self._position >= 0:
            raise ValueError(
                f"{what} Choose another position (BOS is at 0), or exclude_special_tokens=False."
            )
        if not self._is_told:
            logger.warning("%s (Said once.)", what)
        self._is_told = True
