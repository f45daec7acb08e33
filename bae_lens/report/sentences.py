"""Some texts with what fires at each of their tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sae_lens import SAE
from sae_lens.training.activation_scaler import ActivationScaler
from torch import Tensor
from transformer_lens.HookedRootModule import HookedRootModule

from bae_lens.activations.hook_points import take_heads
from bae_lens.activations.outlier_tokens import OutlierTokens
from bae_lens.activations.special_tokens import special_token_ids
from bae_lens.activations.text_batch import TextBatch, read_hooks
from bae_lens.checks.fields import check, whole
from bae_lens.dictionaries import Clusters
from bae_lens.examples.coder import Coder
from bae_lens.examples.corpus import Texts
from bae_lens.examples.records import LatentRecords, check_records_of
from bae_lens.examples.token_text import TokenStrings


class CodedSentence(NamedTuple):
    """A text and its codes.

    Attributes:
        strings: what each token is read as; together they are the text.
        codes: of each token, the latents that fire most strongly with their strengths (see
            ``LatentRecords.strength``), the strongest first; of a token that does not count, none.
        label: class of the text; None without labels.
        others: of each token all other latents that fire, in order; None where they are not known.
    """

    strings: tuple[str, ...]
    codes: tuple[tuple[tuple[int, float], ...], ...]
    label: str | None = None
    others: tuple[tuple[int, ...], ...] | None = None


@torch.no_grad()
def collect_sentences(
    model: HookedRootModule,
    dictionary: SAE[Any] | Clusters,
    source: Any,
    records: LatentRecords,
    *,
    n_sentences: int = 40,
    n_codes: int = 8,
    n_tokens: int = 64,
    labels: Sequence[Any] | None = None,
    activation_scaler: ActivationScaler | None = None,
    exclude_special_tokens: bool | Iterable[int] = True,
    model_kwargs: Mapping[str, Any] | None = None,
) -> list[CodedSentence]:
    """The first texts of a corpus with their codes; of a dataset, the first in random order.

    Args:
        model: as for ``collect_examples``.
        dictionary: as for ``collect_examples``.
        source: as for ``collect_examples``. A store that joins texts has pieces in place of them.
        records: of this dictionary; says which bits mean something where they are off, and how rare
            they are. Its seed is that of the random order.
        n_sentences: texts at most.
        n_codes: latents a token at most that are kept with their strengths; of all others it is kept that
            they fire.
        n_tokens: tokens of a text that are kept, the first ones.
        labels: class of each text, as for ``collect_examples``.
        activation_scaler: as SAELens trains with, while it is not folded in yet.
        exclude_special_tokens: as in SAELens: those tokens have no codes, nor have those that the
            examples left out as outliers.
        model_kwargs: passed to the model.

    Raises:
        ValueError: if a number is below 1, or the examples are of another dictionary.
    """
    n_sentences = check("n_sentences", n_sentences, whole(1))
    n_codes, n_tokens = check("n_codes", n_codes, whole(1)), check("n_tokens", n_tokens, whole(1))
    reader = SentenceReader(
        model, dictionary, records, activation_scaler, exclude_special_tokens, model_kwargs
    )
    # That there are labels decides how texts are read; which class is which does not matter here.
    classes = None if labels is None else np.zeros(len(labels), dtype=np.int64)
    texts = Texts.open(
        source, reader.coder, model, records.settings, reader.special_tokens, classes
    )
    strongest = Strongest(records, n_codes)
    sentences = []
    # One by one, so that no text has padding.
    for batch, [text] in islice(replace(texts, batch_size=1).batches(), n_sentences):
        strings, counts, x = reader(batch, n_tokens)
        coded = iter(strongest(reader.coder.firings(x)) if len(x) > 0 else ())
        of_tokens = [next(coded) if is_counted else ((), ()) for is_counted in counts]
        sentences.append(
            CodedSentence(
                strings,
                tuple(best for best, _ in of_tokens),
                None if labels is None else str(labels[text]),
                tuple(others for _, others in of_tokens),
            )
        )
    return sentences


class SentenceReader:
    """Reads one text at a time, and leaves the tokens out that the examples left out.

    Args:
        model: as for ``collect_sentences``.
        dictionary: the same.
        records: the same.
        activation_scaler: the same.
        exclude_special_tokens: the same.
        model_kwargs: the same.

    Raises:
        ValueError: if the examples are of another dictionary.
    """

    def __init__(
        self,
        model: HookedRootModule,
        dictionary: SAE[Any] | Clusters,
        records: LatentRecords,
        activation_scaler: ActivationScaler | None = None,
        exclude_special_tokens: bool | Iterable[int] = True,
        model_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        self.coder = Coder(dictionary, activation_scaler or ActivationScaler())
        check_records_of(records, self.coder.n_latents, self.coder.weights_sha256)
        self.special_tokens = special_token_ids(model, exclude_special_tokens)
        self._model, self._model_kwargs = model, model_kwargs
        self._outliers = None
        if (left_out := records.outliers) is not None:
            norms = {self.coder.hook_name: left_out.reference_norm}
            self._outliers = OutlierTokens(norms, left_out.multiple)
        self._strings = TokenStrings(getattr(model, "tokenizer", None))

    @torch.no_grad()
    def __call__(
        self, batch: TextBatch, n_tokens: int | None = None
    ) -> tuple[tuple[str, ...], list[bool], Tensor]:
        """Of the one text of a batch.

        Args:
            batch: without padding.
            n_tokens: the first ones that are kept; all if omitted.

        Returns:
            What each token is read as, whether it counts, and ``[n, d_in]`` the activations of those that do.
        """
        _, [acts] = read_hooks(self._model, batch, [self.coder.hook_name], self._model_kwargs)
        x = take_heads(acts, self.coder.head_index)[0, :n_tokens]
        tokens, counts = batch.tokens[0, :n_tokens], batch.valid[0, :n_tokens]
        if self._outliers is not None:
            left_out = self._outliers.mask(x, self.coder.hook_name)
            counts = counts & ~left_out.to(counts.device)
        strings = self._strings.of_window(tokens.tolist(), marked=-1)
        return strings, counts.tolist(), x[counts.to(x.device)]


class Strongest:
    """The strongest of the latents that fire, of either sign, token by token, and the others.

    Args:
        records: says what fires and how strongly, of one-bit codes.
        n: how many.
    """

    def __init__(self, records: LatentRecords, n: int) -> None:
        self._n = n
        self._surprises = None
        if records.strength == "surprise":
            self._when_off = np.array([latent.when_off for latent in records.latents])
            rates = np.array([latent.rate for latent in records.latents])
            # One that fires here and did not among the examples is rarer than can be told.
            self._surprises = -np.log2(np.maximum(rates, 1 / records.n_tokens))

    def __call__(self, firings: Any) -> list[tuple[tuple[tuple[int, float], ...], tuple[int, ...]]]:
        """Of the rows of what ``Coder.firings`` gives, and all others that fire."""
        return [
            self._of(firings.indices[begin:end].astype(np.int64), firings.data[begin:end])
            for begin, end in zip(firings.indptr[:-1], firings.indptr[1:], strict=True)
        ]

    def _of(
        self, latents: NDArray[np.int64], strengths: NDArray[np.float32]
    ) -> tuple[tuple[tuple[int, float], ...], tuple[int, ...]]:
        values: NDArray[Any] = strengths
        if self._surprises is not None:
            fires = self._when_off.copy()
            fires[latents] = ~fires[latents]
            latents = fires.nonzero()[0]
            values = self._surprises[latents]
        order = np.lexsort((latents, -np.abs(values)))
        best, others = order[: self._n], np.sort(latents[order[self._n :]])
        return (
            tuple(zip(latents[best].tolist(), values[best].tolist(), strict=True)),
            tuple(others.tolist()),
        )
