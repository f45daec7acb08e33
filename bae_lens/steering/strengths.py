"""What a latent usually is where it fires: the unit of a strength."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from sae_lens import SAE
from torch import Tensor
from transformer_lens.HookedRootModule import HookedRootModule

from bae_lens.activations.hook_points import take_heads
from bae_lens.activations.special_tokens import special_token_ids
from bae_lens.activations.text_batch import TextBatch, read_hooks
from bae_lens.activations.token_ids import sequence_of
from bae_lens.attach.points import Model
from bae_lens.checks.fields import plain, shown
from bae_lens.dictionaries import Dictionary
from bae_lens.examples.records import LatentRecords
from bae_lens.fingerprint import is_of_weights

Usual = Mapping[int, float] | Sequence[float] | Tensor | LatentRecords


@torch.no_grad()
def usual_strengths(
    model: Model,
    sae: SAE[Any],
    texts: Iterable[str] | Int[Tensor, "batch pos"],
    exclude_special_tokens: bool | Sequence[int] = True,
) -> Float[Tensor, " n_latents"]:
    """The mean magnitude of each latent's activation over the tokens at which it fires.

    Where activations have either sign (SAELens' AbsTopK), strength 1 is that much above 0, and −1 as much below.

    A few dozen texts tell it for latents that are not rare. ``collect_examples`` keeps as much in its records, of
    which ``steer`` takes the mean of the random examples.

    Args:
        model: the model that the SAE is of.
        sae: any SAE.
        texts: read one at a time, each up to the model's context, or token ids, a row a text.
        exclude_special_tokens: as of ``attached``: these tokens do not count.

    Returns:
        On the CPU; NaN for a latent that never fired.

    Raises:
        ValueError: if there is no text, one has no token or is no text, token ids are not the model's or more than its
            context, or the model lacks the hook point.
    """
    dictionary, reader = Dictionary(sae), cast("HookedRootModule", model)
    special = special_token_ids(model, exclude_special_tokens)
    total = torch.zeros(dictionary.n_latents, dtype=torch.float64)
    count = torch.zeros_like(total)
    is_tokens = isinstance(texts, Tensor)
    if isinstance(texts, Tensor) and texts.ndim != 2:
        raise ValueError(
            f"Token ids must have the shape [batch, pos], a row a text; got {list(texts.shape)}."
        )
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, Iterable):
        raise ValueError(f"texts must be a list of texts, or token ids; got {shown(texts)}.")
    n = 0
    for i, text in enumerate(texts):
        batch = TextBatch.of(sequence_of(model, text, f"Text {i}")[None], special)
        _, [acts] = read_hooks(reader, batch, [dictionary.hook_name])
        acts = take_heads(acts, dictionary.head_index)[batch.valid.to(acts.device)]
        code = dictionary.encode(acts.to(dictionary.dtype)).cpu().double()
        total += code.abs().sum(0)
        count += (code != 0).sum(0)
        n += len(code)
    if n == 0:
        what = "token ids" if is_tokens else "texts"
        raise ValueError(f"The {what} have no token but special ones: nothing was measured.")
    return (total / count).float()


def unit_of(dictionary: Dictionary, latents: Sequence[int], usual: Usual | None) -> list[float]:
    """What strength 1 stands for of each latent, in the units of the code.

    Args:
        dictionary: an SAE.
        latents: checked.
        usual: what latents usually are, where the architecture does not know it.

    Raises:
        ValueError: if that is not known of one of them.
    """
    if dictionary.kind.is_one_hot:
        return [1.0 for _ in latents]
    if dictionary.kind.is_one_bit:
        source: Any = dictionary.source
        return source.level_values.detach()[list(latents), 0].tolist()
    if usual is None:
        raise ValueError(
            f"The latents of a {dictionary.name} have no one value that they are on with. Say what they "
            "usually are: usual=usual_strengths(model, sae, texts), the records of collect_examples, or "
            "{latent: value}; or give strengths in the code's own units with raw=True."
        )
    if isinstance(usual, LatentRecords):
        usual = _of_records(dictionary, usual, latents)
    elif not isinstance(usual, Mapping):
        usual = _of_all(dictionary, usual)
    units = []
    for latent in latents:
        try:
            value = usual[latent]
        except KeyError:
            value = math.nan
        value = plain(value)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"usual of latent {latent} must be a number; got {shown(value)}.")
        if not math.isfinite(value) or value == 0:
            raise ValueError(
                f"What latent {latent} usually is, is not known: it did not fire in the text that was "
                "measured. Measure on more text, or give its strength with raw=True."
            )
        units.append(float(value))
    return units


def _of_all(dictionary: Dictionary, usual: Any) -> Sequence[Any]:
    """A value of each latent."""
    # Of an array what is in it.
    values = usual.tolist() if hasattr(usual, "tolist") else usual
    if isinstance(values, (str, bytes)) or not isinstance(values, Sequence):
        raise ValueError(
            "usual must be what usual_strengths returns, the records of collect_examples, or {latent: value}; got "
            f"{shown(usual)}."
        )
    if len(values) != dictionary.n_latents:
        raise ValueError(
            f"usual has {len(values)} values, and the {dictionary.name} {dictionary.n_latents} latents."
        )
    return values


def _of_records(
    dictionary: Dictionary, records: LatentRecords, latents: Sequence[int]
) -> dict[int, float]:
    """Mean magnitudes of the random examples, which are drawn evenly from all firings."""
    if len(records) != dictionary.n_latents:
        raise ValueError(
            f"The records are of {len(records)} latents, and the {dictionary.name} has "
            f"{dictionary.n_latents}."
        )
    if not is_of_weights(records.weights_sha256, dictionary.weights_sha256, "The records"):
        raise ValueError(
            "The records are of other weights than the SAE's: it may have been trained anew. Collect "
            "them again."
        )
    if records.strength != "activation":
        raise ValueError(f"The records have the {records.strength} of latents, not activations.")
    means = {}
    for latent in latents:
        strengths = [abs(example.strength) for example in records[latent].random]
        if strengths and not records[latent].when_off:
            means[latent] = sum(strengths) / len(strengths)
    return means
