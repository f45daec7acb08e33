"""Which tokens pass by a dictionary that is attached to a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from bae_lens.activations.outlier_tokens import (
    METADATA_FIELD,
    OutlierTokens,
    multiple_of,
    saved_outlier_tokens,
)
from bae_lens.activations.running_pass import RunningPass
from bae_lens.activations.special_tokens import special_token_ids, special_token_mask
from bae_lens.attach.points import Model
from bae_lens.dictionaries import Dictionary


@dataclass(frozen=True)
class LeftAlone:
    """Which tokens pass by a dictionary.

    Attributes:
        dictionary: for the names of its hook points.
        special: token ids.
        outliers: which activations are outliers; None where they are treated as all are.
    """

    dictionary: Dictionary
    special: Sequence[int]
    outliers: OutlierTokens | None

    @classmethod
    def of(
        cls,
        model: Model,
        dictionary: Dictionary,
        exclude_special_tokens: bool | Sequence[int],
        exclude_outlier_tokens: bool | float | OutlierTokens,
    ) -> LeftAlone:
        """By the arguments of ``attached``, checked."""
        return cls(
            dictionary,
            special_token_ids(model, exclude_special_tokens),
            _outliers_to_leave_alone(dictionary, exclude_outlier_tokens),
        )

    def mask(
        self, written: Tensor, captured: Tensor | None, running: RunningPass | None
    ) -> Tensor | None:
        """True where a token passes by; None where none does, whatever the tokens.

        Args:
            written: what stands at the hook point that is written, ``[batch, pos, …]``.
            captured: what was read at another hook point, if it is another.
            running: the pass that is running, which knows the tokens.
        """
        mask = self._special(written, running)
        if self.outliers is None:
            return mask
        outliers = self._outliers(self.outliers, written, captured)
        return outliers if mask is None else mask | outliers

    def _outliers(
        self, outliers: OutlierTokens, written: Tensor, captured: Tensor | None
    ) -> Tensor:
        """True where a token is an outlier at the hook point that is read or at the one written."""
        hook_in, hook_out = self.dictionary.hook_names
        mask = outliers.mask(written.flatten(2), hook_out)
        return mask if captured is None else mask | outliers.mask(captured, hook_in).to(mask.device)

    def _special(self, activations: Tensor, running: RunningPass | None) -> Tensor | None:
        """True where a token is special; None where none is, whatever the tokens."""
        if not self.special:
            return None
        tokens = None if running is None else running.tokens
        hook = self.dictionary.hook_names[1]
        if tokens is None:
            raise ValueError(
                f"The model came to {hook!r}, where an SAE is attached, without token ids, and which "
                "of its tokens are special is not known. Run it on text or token ids, give the "
                "tokens beside start_at_layer (tokens=…), or attach with exclude_special_tokens=False."
            )
        if tokens.shape != activations.shape[:2]:
            raise ValueError(
                f"Activations at {hook!r} have shape {tuple(activations.shape)}, and the model's "
                f"tokens have shape {tuple(tokens.shape)}: an SAE is attached to hook points with one "
                "vector per token."
            )
        return special_token_mask(tokens, self.special).to(activations.device)


def _outliers_to_leave_alone(
    dictionary: Dictionary, exclude: bool | float | OutlierTokens
) -> OutlierTokens | None:
    """Which tokens are outliers, where they are to be left alone."""
    multiple = multiple_of(exclude)
    if multiple is None:
        return None
    names = dict.fromkeys(dictionary.hook_names)
    if isinstance(exclude, OutlierTokens):
        missing = [name for name in names if name not in exclude.reference_norms]
        if missing:
            raise ValueError(
                f"exclude_outlier_tokens has no reference norm for {missing[0]!r}, where the SAE reads "
                "or writes."
            )
        return exclude
    saved = saved_outlier_tokens(dictionary.source, names, multiple)
    if saved is None:
        raise ValueError(
            f"The SAE was saved without reference norms (metadata.{METADATA_FIELD}), so outliers "
            "cannot be told. Give exclude_outlier_tokens=OutlierTokens({hook point: norm}), the norm "
            "being reference_norm(activations of ordinary tokens)."
        )
    return saved
