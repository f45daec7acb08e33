"""Labeled texts as sparse probing needs them: read once, some held out, without repetitions."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor
from transformer_lens.HookedRootModule import HookedRootModule

from bae_lens.activations.hook_points import take_heads
from bae_lens.activations.labeled_texts import LabeledTexts
from bae_lens.activations.outlier_tokens import (
    N_REFERENCE_TOKENS,
    OutlierTokens,
    multiple_of,
    reference_norm,
)
from bae_lens.activations.reference_norms import warn_of_many
from bae_lens.activations.text_batch import read_hooks
from bae_lens.activations.texts import NO_TOKENS
from bae_lens.concept_ablation.passes import Batch, Reader
from bae_lens.concept_ablation.texts import encode_texts
from bae_lens.scoring.probing_result import n_of_each, positives
from bae_lens.scoring.probing_settings import SparseProbingSettings

logger = logging.getLogger(__name__)

# Of a class: two to fit a probe and two to choose its penalty by.
_LEAST_TRAIN = 4
# A component's size over the largest, below which it is none.
_ROUNDING = 1e-9
# Tokens that are taken at a time.
AT_ONCE = 4096


@dataclass(frozen=True, eq=False)
class SparseProbingTask:
    """Labeled texts that a model has read at a hook point: all that does not depend on a dictionary.

    Several dictionaries of the same hook point are compared on one, ``probe_latents(task, dictionary)``, by
    the same texts, splits and draws. The activations of all tokens are held in memory, on the CPU, as the
    model has them.

    Attributes:
        settings: as given.
        hook_name: where activations are read.
        head_index: the one head that is read; None: all are, side by side.
        label_names: of the classes.
        labels: class of each text.
        is_test: whether a text is held out.
        acts: activation of each token that counts, text by text.
        text_of: number of the text that each is of.
        n_truncated: texts that were cut to the context.
        n_repeated: texts that the model reads as it read one before; they are in no other field.
        n_outlier_tokens: tokens that were left out as outliers.
        measured: what was measured already and does not depend on the dictionary.
        n_ambiguous: texts that the model reads as it reads one of another class; they are in no other field.
    """

    settings: SparseProbingSettings
    hook_name: str
    head_index: int | None
    label_names: list[str]
    labels: Int[np.ndarray, " n"]
    is_test: Bool[np.ndarray, " n"]
    acts: Float[Tensor, "n_tokens d"]
    text_of: Int[np.ndarray, " n_tokens"]
    n_truncated: int
    n_repeated: int
    n_outlier_tokens: int
    measured: dict[str, Any] = field(default_factory=dict)
    n_ambiguous: int = 0

    @classmethod
    def prepare(
        cls,
        model: HookedRootModule,
        hook_name: str,
        dataset: Any,
        settings: SparseProbingSettings | None = None,
        *,
        test_dataset: Any = None,
        head_index: int | None = None,
        outliers: OutlierTokens | None = None,
        text_column: str = "text",
        label_column: str = "label",
        split: str = "test",
        verbose: bool = True,
    ) -> SparseProbingTask:
        """Read the texts, and hold some of them out.

        Texts without a token that counts have no mean, and are left out, with a logged warning.

        Args:
            model: see ``sparse_probing``.
            hook_name: where to read.
            dataset: see ``sparse_probing``, as for what is not said here.
            settings: the defaults if omitted.
            test_dataset: held-out texts, of which ``max_examples`` are used, too.
            head_index: the one head to read; None: all.
            outliers: what is left out; if None, it is told by the median norm over the first tokens of
                these texts, unless the settings leave nothing out.
            text_column: name of the column of texts.
            label_column: name of the column of labels.
            split: of a dataset that is given by name.
            verbose: show progress bars.

        Raises:
            ValueError: see ``sparse_probing``.
        """
        settings = settings or SparseProbingSettings()
        columns = {"text_column": text_column, "label_column": label_column, "split": split}
        data = _sample(LabeledTexts.of(dataset, **columns), settings)
        texts, labels, n_first = data.texts, data.labels.numpy(), len(data)
        if test_dataset is not None:
            held_out = _sample(LabeledTexts.of(test_dataset, **columns), settings)
            texts = [*texts, *held_out.texts]
            labels = np.concatenate([labels, _renumbered(held_out, data.label_names)])
        encoded = encode_texts(
            model, texts, context_size=settings.context_size, readout="last", template=None
        )
        rows = zip(encoded.tokens.tolist(), encoded.attention_mask.sum(1).tolist(), strict=True)
        kept, n_ambiguous = _first_of_each([tuple(ids[:n]) for ids, n in rows], labels, n_first)
        is_kept = np.zeros(len(texts), dtype=bool)
        is_kept[kept] = True
        is_test = _held_out(labels[kept], settings) if test_dataset is None else kept >= n_first
        _check_counts(labels[kept], is_test, data.label_names)
        reader = Reader(
            model, encoded, (hook_name, hook_name), "mean", settings.batch_size, verbose=verbose
        )
        acts, text_of = _read(reader, hook_name, head_index, is_kept)
        is_out = _outliers_among(acts, hook_name, outliers, settings)
        acts, text_of = acts[~is_out], text_of[~is_out.numpy()]
        has_tokens = np.isin(kept, text_of)
        n_repeated = len(texts) - len(kept) - n_ambiguous
        if not has_tokens.all():
            logger.warning(NO_TOKENS, (~has_tokens).sum(), len(kept))
            kept, is_test = kept[has_tokens], is_test[has_tokens]
            _check_counts(labels[kept], is_test, data.label_names)
        return cls(
            settings=settings,
            hook_name=hook_name,
            head_index=head_index,
            label_names=data.label_names,
            labels=labels[kept],
            is_test=is_test,
            acts=acts,
            text_of=np.searchsorted(kept, text_of),
            n_truncated=encoded.n_truncated,
            n_repeated=n_repeated,
            n_outlier_tokens=int(is_out.sum()),
            n_ambiguous=n_ambiguous,
        )

    @property
    def positives(self) -> tuple[int, ...]:
        """The classes that are told from the others."""
        return positives(len(self.label_names))

    @cached_property
    def averages(self) -> Any:
        """Sparse matrix ``[n, n_tokens]`` that takes tokens to the means over texts."""
        n_of = np.bincount(self.text_of, minlength=len(self.labels))
        places = (self.text_of, np.arange(len(self.text_of)))
        shape = (len(self.labels), len(self.text_of))
        return sparse.csc_matrix((1 / n_of[self.text_of], places), shape)

    @cached_property
    def mean_acts(self) -> Float[np.ndarray, "n d"]:
        """The mean activation of each text."""
        parts = self.acts.split(AT_ONCE)
        starts = np.arange(len(parts)) * AT_ONCE
        sums = (
            self.averages[:, start : start + len(part)] @ part.double().numpy()
            for start, part in zip(starts, parts, strict=True)
        )
        return sum(sums)  # pyright: ignore[reportReturnType]

    @cached_property
    def components(self) -> Float[np.ndarray, "n r"]:
        """The mean activations along their principal components over the training texts."""
        x = self.mean_acts - self.mean_acts[~self.is_test].mean(0)
        _, sizes, directions = np.linalg.svd(x[~self.is_test], full_matrices=False)
        # Of fewer texts than dimensions the last is rounding alone, and nothing where it is divided by.
        return x @ directions[sizes > _ROUNDING * sizes[0]].T

    def training_texts(self, positive: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Training texts of a class and as many of the others, each alike; and which are of the class."""
        rng = np.random.default_rng([self.settings.seed, positive])
        order = rng.permutation(np.flatnonzero(~self.is_test))
        labels = self.labels[order]
        own, others = order[labels == positive], order[labels != positive]
        # The first text of each other class comes before the second of any.
        turn = np.empty(len(others), dtype=np.int64)
        for label in np.unique(self.labels[others]):
            of_label = self.labels[others] == label
            turn[of_label] = np.arange(of_label.sum())
        n = n_of_each(np.bincount(labels, minlength=len(self.label_names)).tolist(), positive)
        chosen = np.concatenate([own[:n], others[turn.argsort(kind="stable")][:n]])
        return chosen, np.arange(2 * n) < n


def _sample(data: LabeledTexts, settings: SparseProbingSettings) -> LabeledTexts:
    data.check(0)
    n = settings.max_examples
    return data if n is None or n >= len(data) else data.sample(n, settings.seed)


def _renumbered(data: LabeledTexts, names: list[str]) -> NDArray[np.int64]:
    """The classes by other names' numbers."""
    if set(data.label_names) != set(names):
        raise ValueError(
            f"The held-out texts have the classes {_listed(data.label_names)}, and the training texts "
            f"{_listed(names)}. They have to have the same."
        )
    return np.array([names.index(name) for name in data.label_names])[data.labels.numpy()]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(map(repr, names[:10])) + more


def _first_of_each(
    texts: Sequence[tuple[int, ...]], labels: NDArray[np.int64], n_first: int
) -> tuple[NDArray[np.int64], int]:
    """Which texts are no repetition, and how many are of none of their classes, since equal ones are of several.

    Args:
        texts: token ids.
        labels: class of each.
        n_first: of the training texts, where others were given to be held out.

    Raises:
        ValueError: if one that is to be held out is a training text.
    """
    first: dict[tuple[int, ...], int] = {}
    for i, ids in enumerate(texts):
        first.setdefault(ids, i)
    leaks = [i - n_first for i, ids in enumerate(texts) if first[ids] < n_first <= i]
    if leaks:
        raise ValueError(
            f"{len(leaks)} of {len(texts) - n_first} held-out texts are training texts too, as the model "
            f"reads them (the first is number {leaks[0] + 1} of those that are used): what a probe was "
            "fitted to says nothing of others. Take them out of one of the two."
        )
    ambiguous = {ids for i, ids in enumerate(texts) if labels[i] != labels[first[ids]]}
    n_ambiguous = sum(ids in ambiguous for ids in texts)
    kept = [i for ids, i in first.items() if ids not in ambiguous]
    if n_ambiguous:
        logger.warning(
            "%d of %d texts are left out: the model reads one of another class as it would read them.",
            *(n_ambiguous, len(texts)),
        )
    if n_repeated := len(texts) - len(kept) - n_ambiguous:
        logger.warning(
            "%d of %d texts are left out: the model reads another as it would read them.",
            *(n_repeated, len(texts)),
        )
    return np.array(kept, dtype=np.int64), n_ambiguous


def _held_out(labels: NDArray[np.int64], settings: SparseProbingSettings) -> NDArray[np.bool_]:
    """A share of each class, one text at least."""
    rng = np.random.default_rng(settings.seed)
    is_test = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        own = rng.permutation(np.flatnonzero(labels == label))
        is_test[own[: max(1, round(settings.test_share * len(own)))]] = True
    return is_test


def _check_counts(
    labels: NDArray[np.int64], is_test: NDArray[np.bool_], names: Sequence[str]
) -> None:
    for what, part, least in (("training", ~is_test, _LEAST_TRAIN), ("held-out", is_test, 1)):
        counts = np.bincount(labels[part], minlength=len(names)).tolist()
        fewest = min(counts)
        if fewest < least:
            raise ValueError(
                f"Each class needs {least} or more {what} texts that differ; of {names[counts.index(fewest)]!r} "
                f"there are {fewest}. Take more texts (max_examples), another test_share, or leave rare classes "
                "out."
            )


@torch.no_grad()
def _read(
    reader: Reader, hook_name: str, head_index: int | None, is_kept: NDArray[np.bool_]
) -> tuple[Tensor, NDArray[np.int64]]:
    """Activations of the tokens that count, and which text each is of."""
    device = next(reader.model.parameters()).device
    acts, text_of = [], []
    for batch in reader.batches("Reading texts"):
        text = batch.text._replace(valid=batch.text.valid & _column(is_kept, batch))
        on_device = text._make(part if part is None else part.to(device) for part in text)
        _, [seen] = read_hooks(reader.model, on_device, [hook_name])
        seen = take_heads(seen, head_index)
        acts.append(seen[on_device.valid.to(seen.device)].cpu())
        rows, _ = text.valid.nonzero(as_tuple=True)
        text_of.append(batch.examples[rows].numpy())
    read = torch.cat(acts)
    if not len(read):
        raise ValueError("No token of the texts is left after special tokens are taken out.")
    return read, np.concatenate(text_of)


def _column(of_texts: NDArray[np.bool_], batch: Batch) -> Bool[Tensor, "batch 1"]:
    return torch.from_numpy(of_texts)[batch.examples][:, None]


def _outliers_among(
    acts: Tensor, hook_name: str, outliers: OutlierTokens | None, settings: SparseProbingSettings
) -> Bool[Tensor, " n_tokens"]:
    multiple = multiple_of(settings.exclude_outlier_tokens)
    if multiple is None:
        return torch.zeros(len(acts), dtype=torch.bool)
    if outliers is None:
        norm = reference_norm(acts[:N_REFERENCE_TOKENS])
        outliers = OutlierTokens({hook_name: norm}, multiple)
    is_out = outliers.mask(acts, hook_name)
    warn_of_many(int(is_out.sum()), len(acts), outliers)
    return is_out
