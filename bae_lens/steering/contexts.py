"""A model that runs with some of its latents added, held at a value or taken out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from sae_lens import SAE
from torch import Tensor

from bae_lens.activations.outlier_tokens import OutlierTokens
from bae_lens.attach import edited
from bae_lens.attach.points import Model
from bae_lens.checks.fields import OneOf, check, shown
from bae_lens.dictionaries import Dictionary
from bae_lens.steering.rows import (
    NORMALIZED,
    check_has_rows,
    check_latents,
    code_vectors,
    encode_with_scale,
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
    values, its mean where it fires, which ``usual`` says. It means the same at every layer, and so do its
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
    with edited(model, sae, edit, exclude_special_tokens, exclude_outlier_tokens, edit.reads):
        yield model


@contextmanager
def ablate_latents(
    model: Model,
    sae: SAE[Any],
    latents: Iterable[int],
    exclude_special_tokens: bool | Sequence[int] = True,
    exclude_outlier_tokens: bool | float | OutlierTokens = False,
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

    Yields:
        ``model``.

    Raises:
        ValueError: as ``steer`` with ``mode="clamp"``.
    """
    dictionary = Dictionary(sae)
    check_has_rows(dictionary)
    of = check_latents(dictionary, latents)
    edit = _Ablated(dictionary, of, torch.zeros(len(of)))
    with edited(model, sae, edit, exclude_special_tokens, exclude_outlier_tokens):
        yield model


def _strength(latent: Any, given: Any) -> float:
    value = given.item() if hasattr(given, "item") else given
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"The strength of latent {latent} must be a number; got {shown(given)}.")
    return float(value)


class _Added:
    """Adds amounts × rows, the same at every token, but for SAEs that normalize each."""

    def __init__(self, dictionary: Dictionary, latents: Sequence[int], amounts: Tensor) -> None:
        self._sae: Any = dictionary.source
        rows = latent_rows(dictionary, latents)
        self.vector = amounts.to(rows) @ rows
        # What such an SAE divides a token by has to be read.
        self.reads = self._sae.cfg.normalize_activations in NORMALIZED

    def __call__(self, written: Tensor, read: Tensor | None) -> Tensor:
        added = self.vector
        if read is not None:
            added = added * encode_with_scale(self._sae, read)[1]
        return written + added.to(written)


class _Clamped:
    """Adds (amount − what the latent is) × row."""

    reads = True

    def __init__(self, dictionary: Dictionary, latents: Sequence[int], amounts: Tensor) -> None:
        _check_codes_alone(dictionary)
        self._sae: Any = dictionary.source
        self._latents = torch.tensor(latents, dtype=torch.long, device=dictionary.device)
        self._rows = latent_rows(dictionary, latents)
        self._amounts = amounts.to(self._rows)
        self._codes = code_vectors(self._sae) if dictionary.kind.is_one_hot else None

    def __call__(self, written: Tensor, read: Tensor | None) -> Tensor:
        assert read is not None
        acts, scale = encode_with_scale(self._sae, read)
        if self._codes is not None:
            return written + self._of_codes(acts).to(written)
        change = self._amounts - acts[..., self._latents]
        return written + (change @ self._rows * scale).to(written)

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


def _check_codes_alone(dictionary: Dictionary) -> None:
    """Refuse a code of which a token's depends on other tokens."""
    if dictionary.depends_on_batch:
        raise ValueError(
            f"What a {dictionary.name} in training fires at a token depends on the other tokens of the "
            "batch. Save it for inference and load that, or steer with mode='add'."
        )
    if hasattr(dictionary.source, "encode_with_predictions"):
        raise ValueError(
            f"What a {dictionary.name} SAE fires at a token depends on the tokens before it, which a "
            "key-value cache hides. Steer with mode='add'."
        )
