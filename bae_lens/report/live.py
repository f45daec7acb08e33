"""What fires at each token of a text that somebody types."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sae_lens import SAE
from sae_lens.training.activation_scaler import ActivationScaler
from torch import Tensor

from bae_lens.activations.sentence_store import SentenceStore
from bae_lens.activations.special_tokens import text_start
from bae_lens.activations.text_batch import TextBatch
from bae_lens.activations.texts import check_text
from bae_lens.dictionaries import Clusters
from bae_lens.examples.records import LatentRecords
from bae_lens.report.sentences import SentenceReader, Strongest


class LiveText:
    """A model and a dictionary that read any text, for ``live.js``.

    Args:
        model: as for ``collect_sentences``, with its tokenizer.
        dictionary: as for ``collect_sentences``.
        records: of this dictionary; they say how rare bits are, and which tokens do not count.
        activation_scaler: as for ``collect_sentences``.
        exclude_special_tokens: the same.
        model_kwargs: passed to the model.

    Attributes:
        n_tokens: of a text at most, special ones among them: the context of the dictionary, or of the model if
            that is shorter.

    Raises:
        ValueError: if the model has no tokenizer or takes no attention mask, or the examples are of another
            dictionary.
    """

    def __init__(
        self,
        model: Any,
        dictionary: SAE[Any] | Clusters,
        records: LatentRecords,
        *,
        activation_scaler: ActivationScaler | None = None,
        exclude_special_tokens: bool | Iterable[int] = True,
        model_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        self._reader = SentenceReader(
            model, dictionary, records, activation_scaler, exclude_special_tokens, model_kwargs
        )
        self._strongest = Strongest(records, len(records))
        self._model = model
        n_ctx: int = model.cfg.n_ctx
        self.n_tokens = min(self._reader.coder.context_size or n_ctx, n_ctx)
        self._store([])  # Refused now, if it cannot be.

    def __call__(self, text: str) -> dict[str, Any]:
        """Read a text.

        Returns:
            ``tokens``: what each is read as. ``codes``: of each token the latents that fire, the strongest first, as
            ``[latent, strength]`` (see ``LatentRecords.strength``), of bits ``[latent, strength, margin]``; of a token
            that does not count, none. ``counts``: whether each does. ``nTokens``: tokens of the whole text, of which the
            first ``self.n_tokens`` are read.

        Raises:
            ValueError: if the text has nothing in it that can be read.
        """
        if not check_text(text, "The text").strip():
            raise ValueError("The text is empty. Type a sentence.")
        try:
            batch = TextBatch.read(self._store([text]), self._reader.special_tokens, 1, True)
        except StopIteration:
            raise ValueError(
                "The tokenizer leaves nothing of this text. Type another one."
            ) from None
        strings, counts, x = self._reader(batch)
        coded = iter(self._codes(x) if len(x) > 0 else ())
        return {
            "tokens": list(strings),
            "counts": counts,
            "codes": [next(coded) if is_counted else [] for is_counted in counts],
            "nTokens": self._n_tokens_of(text),
        }

    def _store(self, texts: list[str]) -> SentenceStore:
        """One text is tokenized as those of a corpus are."""
        coder = self._reader.coder
        return SentenceStore(
            self._model,
            texts,
            [coder.hook_name],
            context_size=self.n_tokens,
            prepend_bos=coder.prepend_bos,
        )

    def _codes(self, x: Tensor) -> list[list[list[float]]]:
        firings, margins = self._reader.coder.firings_with_margins(x)
        found = []
        for row, (best, _) in enumerate(self._strongest(firings)):
            values = [_rounded(strength) for _, strength in best]
            codes: list[list[float]] = [[j, v] for (j, _), v in zip(best, values, strict=True)]
            if margins is not None:
                for code in codes:
                    code.append(_rounded(float(margins[row, int(code[0])])))
            found.append(codes)
        return found

    def _n_tokens_of(self, text: str) -> int:
        # The tokenizer is not to warn that this is more than the model reads: the answer says so.
        ids = self._model.tokenizer(text, verbose=False)["input_ids"]
        start = text_start(self._model, prepend_bos=self._reader.coder.prepend_bos)
        return len(ids) + start.n_more


def _rounded(value: float) -> float:
    """As many digits as a float32 has for certain."""
    return float(f"{value:.6g}")
