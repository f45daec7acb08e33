"""How far the next token's distribution moves when activations are replaced by a dictionary's reconstruction.

The BAE release (``injection_loss.py``) replaces the last token's activation and takes the Jensen–Shannon divergence of what
the model says next from what it says by itself. A number alone says little: at a late layer, or where the text tells what comes
next, any replacement moves it little. Here the mean activation and zeros stand beside the reconstruction, and all tokens beside
the last, since errors of the context add up.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
from jaxtyping import Float, Int
from sae_lens import SAE
from torch import Tensor

from bae_lens.activations.equal_lengths import equal_lengths
from bae_lens.activations.hook_points import take_heads
from bae_lens.activations.outlier_tokens import OutlierTokens
from bae_lens.activations.text_batch import TextBatch, read_hooks
from bae_lens.activations.token_ids import sequence_of
from bae_lens.attach.left_alone import LeftAlone
from bae_lens.checks.fields import OneOf, check, shown, whole
from bae_lens.dictionaries import Dictionary
from bae_lens.evals.reconstruction import Continuation, predicts_next_token
from bae_lens.results import Table
from bae_lens.stats import Interval, mean_interval
from bae_lens.stats import shown as shown_interval

Where = Literal["last", "all"]
Replacement = Literal["reconstruction", "mean", "zero"]
Measure = Literal["js", "kl"]


class Divergences(NamedTuple):
    """Of the next token's distribution from the model's own, in nats, one a text.

    Attributes:
        js: Jensen–Shannon divergence, at most ln 2.
        kl: KL(model ‖ model with the replacement), without a bound.
    """

    js: Float[Tensor, " n_texts"]
    kl: Float[Tensor, " n_texts"]


@dataclass(frozen=True, eq=False)
class ReplacementDivergences:
    """What replacements do to the next token; see ``replacement_divergences``.

    Attributes:
        values: by where activations were replaced and by what; texts in the order given, float64, on the CPU.
    """

    values: Mapping[tuple[Where, Replacement], Divergences]

    @property
    def n_texts(self) -> int:
        """Number of texts that were scored."""
        return len(self.values["last", "reconstruction"].js)

    def interval(
        self, where: Where, replacement: Replacement = "reconstruction", measure: Measure = "js"
    ) -> Interval:
        """Mean over texts with its 95 % percentile bootstrap interval over them; of one text without bounds.

        Raises:
            ValueError: if there is no such replacement or measure.
        """
        check("where", where, OneOf(get_args(Where)))
        check("replacement", replacement, OneOf(get_args(Replacement)))
        check("measure", measure, OneOf(get_args(Measure)))
        interval = mean_interval(getattr(self.values[where, replacement], measure).tolist())
        assert interval is not None
        return interval

    def table(self) -> Table:
        """Both divergences of each replacement, with their intervals."""
        rows = [
            (
                f"{replacement}, {where} token{'' if where == 'last' else 's'}",
                *(
                    shown_interval(self.interval(where, replacement, measure))
                    for measure in get_args(Measure)
                ),
            )
            for where, replacement in self.values
        ]
        of = f"{self.n_texts} texts, in nats, with 95 % intervals over texts"
        if self.n_texts == 1:
            of = "one text, in nats"
        note = f"Of the next token after {of}; JS is at most ln 2 = {math.log(2):.3f}."
        return Table(("replaced by", "JS", "KL"), rows, (note,))


@torch.no_grad()
def replacement_divergences(
    model: Any,
    sae: SAE[Any],
    texts: Sequence[str] | Sequence[Int[Tensor, " length"]] | Int[Tensor, "n length"],
    context_size: int | None = None,
    exclude_special_tokens: bool | Sequence[int] = True,
    exclude_outlier_tokens: bool | float | OutlierTokens = False,
    batch_size: int = 8,
) -> ReplacementDivergences:
    """Divergence of the next token from the model's own when activations are replaced, beside mean and zero.

    After each text the model is read once as it is, and once for each replacement: of the last token alone, and of all tokens;
    by the SAE's output, by the mean activation of these texts' tokens, and by zeros. Special tokens and outliers keep their
    activations in all of them, other than in SAELens' zero-ablation, and are not in the mean. The last token is the last one
    that counts.

    Args:
        model: a HookedTransformer or TransformerBridge that predicts the next token.
        sae: any SAE; of one that writes to another hook point than it reads, what stands there is replaced.
        texts: texts, or token ids.
        context_size: tokens of a text that are read, BOS among them; if omitted, what the SAE was trained on, or the
            model's context where that is not known.
        exclude_special_tokens: as of ``attached``.
        exclude_outlier_tokens: as of ``attached``.
        batch_size: texts of equal length per forward pass.

    Raises:
        ValueError: if there are no texts, a text has no token that counts or more than the model reads, the model predicts no next token or lacks the
            hook points, or the SAE has no reference norms to tell outliers by.
    """
    dictionary = Dictionary(sae)
    batch_size = check("batch_size", batch_size, whole(1))
    context_size = check("context_size", context_size, whole(1, or_none=True))
    left_alone = LeftAlone.of(model, dictionary, exclude_special_tokens, exclude_outlier_tokens)
    if not predicts_next_token(model):
        raise ValueError(
            f"The {type(model).__name__} predicts no next token: it is no causal model, or has no language-model head."
        )
    length = dictionary.context_size if context_size is None else context_size
    sequences = _sequences(model, texts, length)
    rows = list(equal_lengths(sequences, batch_size))
    batches = [
        _counted(
            model,
            dictionary,
            TextBatch.of(torch.stack([sequences[i] for i in of]), left_alone.special),
            left_alone.outliers,
        )
        for of in rows
    ]
    for of, batch in zip(rows, batches, strict=True):
        if not batch.valid.any(1).all():
            i = of[int(batch.valid.any(1).int().argmin())]
            raise ValueError(
                f"Text {i} has no token that counts: all are special, or outliers. Leave it out."
            )
    point = Continuation(model, dictionary.hook_names[1], dictionary.head_indices[1])
    mean = point.mean(batches).float()
    found: dict[tuple[Where, Replacement], list[Divergences]] = defaultdict(list)
    for batch in batches:
        logits, inputs, _ = _read(model, dictionary, batch, stop_after=False)
        _, outputs = dictionary.reconstruct(inputs, batch.valid)
        last = _last(batch.valid)
        masks: dict[Where, Tensor] = {"last": last, "all": batch.valid}
        news: dict[Replacement, Tensor] = {
            "reconstruction": outputs,
            "mean": mean,
            "zero": torch.zeros_like(mean),
        }
        own = _log_probs(logits, last)
        for where, mask in masks.items():
            for replacement, new in news.items():
                other = _log_probs(point.logits(batch, new, mask), last)
                found[where, replacement].append(divergences(own, other))
    order = torch.tensor([i for of in rows for i in of]).argsort()
    return ReplacementDivergences(
        {
            key: Divergences(*(torch.cat(part)[order] for part in zip(*parts, strict=True)))
            for key, parts in found.items()
        }
    )


def divergences(log_p: Float[Tensor, "n d"], log_q: Float[Tensor, "n d"]) -> Divergences:
    """JS of p and q, and KL(p ‖ q), in nats, from log-probabilities."""
    log_mean = torch.logaddexp(log_p, log_q) - math.log(2)
    p, q = log_p.exp(), log_q.exp()
    js = (p * (log_p - log_mean) + q * (log_q - log_mean)).sum(-1) / 2
    kl = (p * (log_p - log_q)).sum(-1)
    # Rounding can take them below.
    return Divergences(js.clamp(0, math.log(2)).cpu(), kl.clamp(min=0).cpu())


def _sequences(model: Any, texts: Any, most: int | None) -> list[Int[Tensor, " length"]]:
    if isinstance(texts, str) or not isinstance(texts, (Sequence, Tensor)) or not len(texts):
        raise ValueError(f"texts must be a list of texts; got {shown(texts)}.")
    found = []
    for i, text in enumerate(texts):
        cut = text[:most] if isinstance(text, Tensor) and text.ndim == 1 else text
        found.append(sequence_of(model, cut, f"Text {i}")[:most].cpu())
    return found


def _read(
    model: Any, dictionary: Dictionary, batch: TextBatch, stop_after: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """The model's output, and what stands where the SAE reads and where it writes."""
    output, both = read_hooks(model, batch, dictionary.hook_names, stop_after=stop_after)
    inputs, targets = (take_heads(*x) for x in zip(both, dictionary.head_indices, strict=True))
    return output, inputs, targets


def _counted(
    model: Any, dictionary: Dictionary, batch: TextBatch, outliers: OutlierTokens | None
) -> TextBatch:
    """The batch, on the model's device, without its outliers."""
    device = next(model.parameters()).device
    batch = TextBatch(batch.tokens.to(device), batch.valid.to(device))
    if outliers is None:
        return batch
    _, inputs, targets = _read(model, dictionary, batch)
    mask = outliers.mask_between(dictionary.hook_names, inputs, targets)
    return batch._replace(valid=batch.valid & ~mask.to(device))


def _last(valid: Tensor) -> Tensor:
    """True at the last token of each text that counts."""
    return valid & (valid.flip(1).cumsum(1).flip(1) == 1)


def _log_probs(logits: Tensor, last: Tensor) -> Float[Tensor, "n d"]:
    """After the last token, float64."""
    return logits[last.to(logits.device)].double().log_softmax(-1)
