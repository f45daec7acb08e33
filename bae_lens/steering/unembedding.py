"""Which tokens a latent makes more and less likely by itself: its decoder row through the unembedding."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from sae_lens import SAE
from torch import Tensor

from bae_lens.attach.points import Model
from bae_lens.checks.consistency import check_indices
from bae_lens.checks.fields import check, whole
from bae_lens.dictionaries import Dictionary
from bae_lens.examples.records import LatentRecords
from bae_lens.examples.token_text import TokenStrings
from bae_lens.steering.rows import check_has_rows, check_latents, latent_rows

# Hook points whose activations are of the residual stream, or are added to it, of a HookedTransformer and
# of a Bridge.
_RESIDUAL = re.compile(
    r"(^|\.)(hook_resid_(pre|mid|post)|hook_(attn|mlp)_out|(attn|mlp)\.hook_out|attn\.hook_result"
    r"|blocks\.\d+\.hook_(in|out)|hook_embed|embed\.hook_out)$"
)


class TokenEffect(NamedTuple):
    """What a latent adds to the logit of a token.

    Attributes:
        token: its id.
        string: its text; ``<id>`` where the model has no tokenizer.
        value: the logit, less the mean over all tokens, up to the scale of the final norm.
    """

    token: int
    string: str
    value: float


class LogitEffects(NamedTuple):
    """The tokens of the largest effects of a latent.

    Attributes:
        latent: which one.
        top: the largest first.
        bottom: the smallest first.
    """

    latent: int
    top: tuple[TokenEffect, ...]
    bottom: tuple[TokenEffect, ...]

    @property
    def opposite(self) -> LogitEffects:
        """Those of taking away what the latent adds."""
        top, bottom = (
            tuple(token._replace(value=-token.value) for token in end)
            for end in (self.bottom, self.top)
        )
        return LogitEffects(self.latent, top, bottom)


@torch.no_grad()
def logit_effects(
    model: Model, sae: SAE[Any], latents: Iterable[int] | None = None, k: int = 10
) -> list[LogitEffects]:
    """Tokens whose logits latents raise and lower most, through the residual stream alone.

    The row of the decoder, centered where the final norm centers, times that norm's weight, times the
    unembedding, less the mean over the vocabulary, which no probability depends on: the *logit lens* of a
    latent, as SAE dashboards have it. What layers in between make of it is left out, and at lower layers that
    is most: see by ``steer`` what the model then says. The norm's division by the length of the activation
    is left out too, so that values compare tokens, and latents of one dictionary, and not layers.

    Of a bit it is the effect of its being on (reports and exports show that of its firing, which of a bit that is
    mostly on is its being off), of other latents that of one unit of activation, of a code that of
    what it decodes to less the mean code.

    Args:
        model: a HookedTransformer or TransformerBridge with an unembedding.
        sae: any SAE that writes to the residual stream, or what is added to it.
        latents: by index; all if omitted, which takes ``n_latents × d_model × d_vocab`` multiplications.
        k: tokens at each end.

    Raises:
        ValueError: if there is no such latent, the SAE writes elsewhere (``hook_z``, within an MLP), or
            the model has no unembedding.
    """
    dictionary = Dictionary(sae)
    check_has_rows(dictionary)
    of = check_latents(dictionary, range(dictionary.n_latents) if latents is None else latents)
    hook = dictionary.hook_names[1]
    if _RESIDUAL.search(hook) is None:
        raise ValueError(
            f"The SAE writes to {hook!r}, whose activations are not of the residual stream, so that they do "
            "not go through the unembedding. Take an SAE of the residual stream, or of the output of "
            "attention or an MLP."
        )
    unembedding = _unembedding(model, dictionary.d_out)
    k = min(check("k", k, whole(1)), unembedding.shape[1])
    strings = TokenStrings(getattr(model, "tokenizer", None))
    found = []
    # So many at a time that their logits are of a few MB.
    for part in torch.tensor(of, dtype=torch.long).split(64):
        rows = latent_rows(dictionary, part.tolist()).float().to(unembedding.device)
        if dictionary.kind.is_one_bit and not dictionary.kind.is_one_hot:
            source: Any = dictionary.source
            rows = rows * source.level_values.detach()[part.to(source.device)].to(rows)
        logits = rows @ unembedding
        ends = logits.topk(k), logits.topk(k, largest=False)
        sides = [
            [
                tuple(map(TokenEffect, tokens, map(strings, tokens), values))
                for values, tokens in zip(*(x.tolist() for x in end), strict=True)
            ]
            for end in ends
        ]
        found += map(LogitEffects, part.tolist(), *sides)
    return found


def effects_of_firing(
    records: LatentRecords, effects: Sequence[LogitEffects]
) -> dict[int, LogitEffects]:
    """What the firing of latents does to logits, by latent: of a bit that says something where it is off
    (``LatentRecord.when_off``) its being off.

    Args:
        records: of the same latents.
        effects: as ``logit_effects`` gives them.

    Raises:
        ValueError: if there are no such latents in the records.
    """
    check_indices("effects", (of.latent for of in effects), len(records))
    return {of.latent: of.opposite if records[of.latent].when_off else of for of in effects}


def _unembedding(model: Any, d: int) -> Float[Tensor, "d_model d_vocab"]:
    """W_U with the final norm's weight and centering folded in, centered over the vocabulary, float32."""
    try:
        unembedding, norm = model.W_U, model.ln_final
    except AttributeError:
        raise ValueError(
            f"The {type(model).__name__} has no unembedding with a final norm before it, through which "
            "latents would have effects on logits."
        ) from None
    if unembedding.shape[0] != d:
        raise ValueError(
            f"The SAE writes width {d}, and the model's unembedding reads width {unembedding.shape[0]}."
        )
    weight, centers = _final_norm(norm, unembedding)
    folded = unembedding.detach().float() * weight[:, None]
    # In place: it is as large as the embeddings.
    if centers:
        folded -= folded.mean(0)
    folded -= folded.mean(1, keepdim=True)
    return folded


def _final_norm(norm: Any, like: Tensor) -> tuple[Float[Tensor, " d_model"], bool]:
    """The weight of a norm and whether it centers, as it behaves.

    Models keep them differently: folded away, as an offset from 1 (Gemma), under either of two names.
    """
    d = like.shape[0]
    # Of mean 0, and nowhere 0.
    x = torch.ones(d, device=like.device)
    x[1::2] = -1
    if d % 2:
        x[-3:] = x.new_tensor([1, 1, -2])
    ends = torch.stack([x, -x, x + 3])[None].to(like.dtype)
    above, below, shifted = norm(ends)[0].float()
    weight = (above - below) / 2 / (x / x.square().mean().sqrt())
    scale = above.abs().max()
    return weight, bool((shifted - above).abs().max() < 0.05 * scale)
