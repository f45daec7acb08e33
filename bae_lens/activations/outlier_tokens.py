"""Tokens whose activation is many times longer than others': attention sinks other than BOS.

Models turn some first words into attention sinks as they do BOS, and the tokenizer does not say which.
Their activations are told by their norm, against one that is fixed once for a hook point: the median
norm over tokens that are not special, kept in an SAE's metadata by the run that trained it.

Measured on SmolLM2-135M, 300 news texts of 128 tokens at most, BOS left out: after blocks 10, 15, 20 and 25
ordinary tokens are at most 1.6 times as long as the median, and sinks up to 120, 88 and 42 times after
blocks 15, 20 and 25 (18, 18 and 15 of them above ten times). After block 5, where nothing is a sink yet,
punctuation is up to ten times as long as the median (4 % of tokens above three times, 2 % above
seven, one token above ten). Hence ``DEFAULT_MULTIPLE``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jaxtyping import Bool, Float

from bae_lens.checks.fields import check, is_valid, positive, shown

if TYPE_CHECKING:
    from torch import Tensor

DEFAULT_MULTIPLE = 10.0
# Of which the median norm is taken, where none was fixed before.
N_REFERENCE_TOKENS = 4096
# Above such a share of tokens something else than a sink is left out.
MANY = 0.01
# Of an SAE's metadata: norm by hook point.
METADATA_FIELD = "outlier_reference_norms"


@dataclass(frozen=True)
class OutlierTokens:
    """Which tokens are outliers at which hook point.

    Args:
        reference_norms: by name of a hook point, the norm that an ordinary token's activation has.
        multiple: a token is an outlier if its activation is so many times as long, or longer still.

    Raises:
        ValueError: if a norm or the multiple is not a positive number.
    """

    reference_norms: Mapping[str, float]
    multiple: float = DEFAULT_MULTIPLE

    def __post_init__(self) -> None:
        check("multiple", self.multiple, positive())
        for name, norm in self.reference_norms.items():
            check(f"The reference norm at {name!r}", norm, positive())

    def mask(
        self, activations: Float[Tensor, "*shape d"], hook_name: str
    ) -> Bool[Tensor, "*shape"]:
        """True where a token is an outlier, from the activations that an SAE reads at a hook point.

        Norms are taken in float32 whatever the activations are in. An activation with NaN or infinity
        in it is a fault and no outlier: it is left for others to complain about.

        Args:
            activations: heads side by side, or of one head, as the SAE reads them.
            hook_name: where they are from.

        Raises:
            ValueError: if there is no reference norm for the hook point.
        """
        if hook_name not in self.reference_norms:
            known = ", ".join(map(repr, self.reference_norms)) or "none"
            raise ValueError(
                f"There is no reference norm for {hook_name!r} (there is one for {known}), so what "
                "is an outlier there cannot be told."
            )
        norms = token_norms(activations)
        return (norms > self.multiple * self.reference_norms[hook_name]) & norms.isfinite()

    def any_mask(self, *at: tuple[str, Tensor]) -> Bool[Tensor, "*shape"]:
        """True where a token is an outlier at one of several hook points, each with its activations."""
        (name, activations), *others = at
        mask = self.mask(activations, name)
        for name, activations in others:
            mask = mask | self.mask(activations, name).to(mask.device)
        return mask

    def mask_between(
        self, hook_names: tuple[str, str], inputs: Tensor, targets: Tensor
    ) -> Bool[Tensor, "*shape"]:
        """True where a token is an outlier where a dictionary reads or where it writes, which may be one place."""
        lower, upper = hook_names
        at = [(lower, inputs)] if lower == upper else [(lower, inputs), (upper, targets)]
        return self.any_mask(*at)

    def with_multiple(self, multiple: float) -> OutlierTokens:
        """The same reference, another multiple of it."""
        return OutlierTokens(self.reference_norms, multiple)


def token_norms(activations: Float[Tensor, "*shape d"]) -> Float[Tensor, "*shape"]:
    """Lengths in float32: in float16 the square of an outlier is infinite."""
    return activations.detach().float().norm(dim=-1)


def reference_norm(activations: Float[Tensor, "n d"]) -> float:
    """The median norm of activations, special tokens left out.

    A median, which does not move with a few sinks among them, of rows that are all there and finite.

    Raises:
        ValueError: if there is no finite activation, or half of them are zero.
    """
    norms = token_norms(activations)
    norms = norms[norms.isfinite()]
    norm = norms.median().item() if len(norms) else math.nan
    if not is_valid(norm, positive()):
        raise ValueError(
            "A reference norm is the median length of activations, and there are none that are "
            f"finite and not zero; got {len(norms)} finite ones with a median of {norm}."
        )
    return norm


def saved_outlier_tokens(
    sae: Any, hook_names: Iterable[str], multiple: float = DEFAULT_MULTIPLE
) -> OutlierTokens | None:
    """Outliers by the reference norms in an SAE's metadata; None where it has not one for each hook.

    Args:
        sae: any SAE; those saved by other packages, or before there were any, have none, nor has a
            dictionary that is no SAE.
        hook_names: the hook points that are needed.
        multiple: see ``OutlierTokens``.

    Raises:
        ValueError: if the metadata has something else than norms there.
    """
    cfg = getattr(sae, "cfg", None)
    saved = None if cfg is None else cfg.metadata.get(METADATA_FIELD)
    if saved is None:
        return None
    if not isinstance(saved, Mapping) or not all(
        is_valid(norm, positive()) for norm in saved.values()
    ):
        raise ValueError(
            f"metadata.{METADATA_FIELD} must have a positive number for each hook point; got {shown(saved)}."
        )
    names = list(dict.fromkeys(hook_names))
    if any(name not in saved for name in names):
        return None
    return OutlierTokens({name: float(saved[name]) for name in names}, multiple)


def multiple_of(exclude: bool | float | OutlierTokens) -> float | None:
    """What an option ``exclude_outlier_tokens`` says: the multiple; None where no token is left out.

    Args:
        exclude: True for the default multiple, a multiple, or False.

    Raises:
        ValueError: if it is neither of these, or no positive number.
    """
    if isinstance(exclude, OutlierTokens):
        return exclude.multiple
    if exclude is True or exclude is False:
        return DEFAULT_MULTIPLE if exclude else None
    return float(
        check(
            "exclude_outlier_tokens",
            exclude,
            positive(hint="a multiple of the reference norm; or True or False"),
        )
    )
