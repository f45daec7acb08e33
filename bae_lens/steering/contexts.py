"""A model that runs with latents added, held at a value or taken out, or with a vector added."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from jaxtyping import Float
from sae_lens import SAE
from torch import Tensor

from bae_lens.activations.outlier_tokens import OutlierTokens
from bae_lens.architectures.token_scales import scales_by_token
from bae_lens.attach import edited
from bae_lens.attach.points import Model
from bae_lens.checks.fields import OneOf, check, plain, shown
from bae_lens.dictionaries import Dictionary
from bae_lens.steering.rows import (
    check_codes_alone,
    check_has_rows,
    check_latents,
    code_vectors,
    encode_with_factor,
    latent_rows,
)
from bae_lens.steering.strengths import Usual, unit_of

Mode = Literal["add", "clamp"]


@contextmanager
def steer(
    model: Model,
    sae: SAE[Any],
    strengths: Mapping[int, float],
    mode: Mode = "add",
    usual: Usual | None = None,
    raw: bool = False,
    exclude_special_tokens: bool | Sequence[int] = True,
    exclude_outlier_tokens: bool | float | OutlierTokens = False,
    position: int | None = None,
) -> Iterator[Model]:
    """A context in which ``model`` runs with latents of ``sae`` at strengths of one's choice.

    The activation is kept, with all that the SAE does not explain of it, and changed along the latents' rows of
    the decoder only, at every token of the prompt and of what is generated; special tokens (BOS) are left as
    they are. With a key-value cache and without, the model generates the same.

    * ``mode="add"``, the field's usual form (SAELens' tutorials, Neuronpedia): strength × row is added, whatever
      the latent is at the token.
    * ``mode="clamp"``: the latent is held at the strength: (strength − what it is) × row is added, so that at
      0 it is taken out.

    **Units.** Strength 1 is "on as it usually is": of a bit, that it is on; of a latent that has levels or real
    values, its mean magnitude where it fires, which ``usual`` says. It means the same at every layer, and so do its
    multiples: SAELens' tutorials steer at several times the largest activation. With ``raw``, strengths are
    activations of the code.

    **Codes.** Each token of a one-hot code (CLVQ-VAE) has one code, and strength 1 is the code. Added, it is
    what the code decodes to less the mean of all codes'. Clamped, it takes the place of the token's
    own code: by strength 0.5 half of it.

    Contexts nest, also of the same hook point: each adds to what the one outside has made of the activation.

    Args:
        model: HookedTransformer or TransformerBridge. It is as it was when the context ends.
        sae: any SAE of SAELens or this package; it reads and writes where its metadata says.
        strengths: of latents by index; negative ones steer away.
        mode: ``"add"`` or ``"clamp"``.
        usual: what latents usually are: of ``usual_strengths``, the records of ``collect_examples``, or
            ``{latent: value}``. Bits and codes do not need it.
        raw: whether strengths are in the units of the code.
        exclude_special_tokens: as of ``attached``.
        exclude_outlier_tokens: as of ``attached``.
        position: the one position of each text at which latents are steered, as of ``add_direction``; all
            if omitted.

    Yields:
        ``model``.

    Raises:
        ValueError: if there is no such latent, a strength is not a number, what a latent usually is is not
            known, the model lacks the SAE's hook points, a code has no direction of its own (a CLVQ-VAE
            with ``decoder="transformer"``), or, clamped, what fires at a token depends on others.
    """
    dictionary = Dictionary(sae)
    mode = check("mode", mode, OneOf(("add", "clamp")))
    check_has_rows(dictionary)
    if not isinstance(strengths, Mapping):
        raise ValueError(f"Strengths are given as {{latent: strength}}; got {shown(strengths)}.")
    latents = check_latents(dictionary, strengths)
    values = [_strength(*item) for item in strengths.items()]
    units = [1.0] * len(latents) if raw else unit_of(dictionary, latents, usual)
    amounts = torch.tensor([v * u for v, u in zip(values, units, strict=True)])
    of = dictionary, latents, amounts
    edit = _Added(*of) if mode == "add" else _Clamped(*of)
    excluded = exclude_special_tokens, exclude_outlier_tokens
    with edited(model, sae, edit, *excluded, edit.reads, position):
        yield model


@contextmanager
def add_direction(
    model: Model,
    sae: SAE[Any],
    direction: Float[Tensor, " d_out"],
    position: int | None = None,
    exclude_special_tokens: bool | Sequence[int] = True,
    exclude_outlier_tokens: bool | float | OutlierTokens = False,
) -> Iterator[Model]:
    """A context in which a vector is added to the activation where ``sae`` writes.

    It is what ``steer`` does, of a vector that need not be a latent's: a task vector, or the control that a
    latent is compared with. Contexts nest with ``steer``.

    Args:
        model: HookedTransformer or TransformerBridge. It is as it was when the context ends.
        sae: any SAE, for where it writes.
        direction: what is added, in the units of the activation.
        position: the one position of each text to which it is added, among its own tokens, padding left out,
            and from its end if negative, so that −1 is the last token of the prompt; all if omitted. What is
            generated with a key-value cache goes on from there and gets none itself; without a cache −1 is the
            last token of each pass, so give the position from the beginning there (3 for a prompt of four tokens).
        exclude_special_tokens: as of ``attached``.
        exclude_outlier_tokens: as of ``attached``.

    Yields:
        ``model``.

    Raises:
        ValueError: if the vector is not as wide as what the SAE writes, or not finite, or the model lacks the
            SAE's hook points. Inside, when the model runs: if a text has no such position, or a special
            token there, as of ``edited``.
    """
    d_out = Dictionary(sae).d_out
    if not isinstance(direction, Tensor) or direction.shape != (d_out,):
        got = tuple(direction.shape) if isinstance(direction, Tensor) else shown(direction)
        raise ValueError(
            f"The SAE writes width {d_out}, so direction must have shape ({d_out},); got {got}."
        )
    if not direction.isfinite().all():
        raise ValueError("direction has entries that are NaN or infinite.")

    def add(written: Tensor, _read: Tensor | None) -> Tensor:
        return written + direction.to(written)

    excluded = exclude_special_tokens, exclude_outlier_tokens
    with edited(model, sae, add, *excluded, reads=False, position=position):
        yield model


@contextmanager
def ablate_latents(
    model: Model,
    sae: SAE[Any],
    latents: Iterable[int],
    exclude_special_tokens: bool | Sequence[int] = True,
    exclude_outlier_tokens: bool | float | OutlierTokens = False,
    position: int | None = None,
) -> Iterator[Model]:
    """A context in which ``model`` runs without some latents of ``sae``.

    Where one of them fires, its activation × its row of the decoder is taken from the activation of the model;
    everything else of it is kept, and tokens at which none fires are as they were. A bit whose polarity
    was inverted when the SAE was saved fires where it was off before, and is off afterwards. Where a token's
    code is one of these (CLVQ-VAE), what it decodes to becomes the mean of all codes'.

    Args:
        model: HookedTransformer or TransformerBridge. It is as it was when the context ends.
        sae: any SAE of SAELens or this package.
        latents: by index.
        exclude_special_tokens: as of ``attached``.
        exclude_outlier_tokens: as of ``attached``.
        position: the one position of each text at which they are taken out, as of ``add_direction``; all if
            omitted.

    Yields:
        ``model``.

    Raises:
        ValueError: as ``steer`` with ``mode="clamp"``.
    """
    dictionary = Dictionary(sae)
    check_has_rows(dictionary)
    of = check_latents(dictionary, latents)
    edit = _Ablated(dictionary, of, torch.zeros(len(of)))
    excluded = exclude_special_tokens, exclude_outlier_tokens
    with edited(model, sae, edit, *excluded, position=position):
        yield model


def _strength(latent: Any, given: Any) -> float:
    value = plain(given)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"The strength of latent {latent} must be a number; got {shown(given)}.")
    return float(value)


class _Added:
    """Adds amounts × rows, the same at every token, but for SAEs that normalize each."""

    def __init__(self, dictionary: Dictionary, latents: Sequence[int], amounts: Tensor) -> None:
        self._sae: Any = dictionary.source
        rows = latent_rows(dictionary, latents)
        self.vector = amounts.to(rows) @ rows
        # What such an SAE scales a token by has to be read.
        self.reads = scales_by_token(self._sae)

    def __call__(self, written: Tensor, read: Tensor | None) -> Tensor:
        added = self.vector
        if read is not None:
            added = added * encode_with_factor(self._sae, read)[1]
        return written + added.to(written)


class _Clamped:
    """Adds (amount − what the latent is) × row."""

    reads = True

    def __init__(self, dictionary: Dictionary, latents: Sequence[int], amounts: Tensor) -> None:
        check_codes_alone(dictionary, "steer with mode='add'")
        self._sae: Any = dictionary.source
        self._latents = torch.tensor(latents, dtype=torch.long, device=dictionary.device)
        self._rows = latent_rows(dictionary, latents)
        self._amounts = amounts.to(self._rows)
        self._codes = code_vectors(self._sae) if dictionary.kind.is_one_hot else None

    def __call__(self, written: Tensor, read: Tensor | None) -> Tensor:
        assert read is not None
        acts, factor = encode_with_factor(self._sae, read)
        if self._codes is not None:
            return written + self._of_codes(acts).to(written)
        change = self._amounts - acts[..., self._latents]
        return written + (change @ self._rows * factor).to(written)

    def _of_codes(self, acts: Tensor) -> Tensor:
        """Σ amount × (code − the token's own code): at strength 1 in its place."""
        codes = self._codes
        assert codes is not None
        own = codes[acts.argmax(-1)]
        return self._amounts @ codes[self._latents] - self._amounts.sum() * own


class _Ablated(_Clamped):
    """Adds −(what the latent is) × row; a code becomes the mean code."""

    def _of_codes(self, acts: Tensor) -> Tensor:
        codes = self._codes
        assert codes is not None
        own = acts.argmax(-1)
        is_ablated = torch.isin(own, self._latents)[..., None]
        return torch.where(is_ablated, codes.mean(0) - codes[own], 0)
