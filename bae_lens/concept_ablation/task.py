"""Texts with labels that a model has read: all that does not depend on a dictionary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.HookedRootModule import HookedRootModule

from bae_lens.activations.labeled_texts import LabeledTexts
from bae_lens.activations.outlier_tokens import multiple_of
from bae_lens.concept_ablation.attribution import Attribution, attribute
from bae_lens.concept_ablation.concepts import TokenSample
from bae_lens.concept_ablation.passes import Batch, Reader, Readout, check_hooks, pool
from bae_lens.concept_ablation.probes import Probe, fit_probe, stratified_folds
from bae_lens.concept_ablation.removals import leace_fitters
from bae_lens.concept_ablation.settings import AblationSettings
from bae_lens.concept_ablation.texts import encode_texts
from bae_lens.evals.reconstruction import predicts_next_token

# What LabeledTexts.read takes if nothing is said.
_COLUMNS = {"text_column": "text", "label_column": "label", "split": "test"}


class Salient(NamedTuple):
    """The salient token of each text.

    Attributes:
        position: of the token, in the text's words.
        word: which word it is part of, −1 where the text has none but the readout.
        lower: its activation at the lower hook point.
        readout_wins: whether the position that the vector is read at is attributed more.
        missing: see ``Attributed``.
    """

    position: Int[Tensor, " n"]
    word: Int[Tensor, " n"]
    lower: Float[Tensor, "n d_in"]
    readout_wins: Tensor | None
    missing: Tensor | None


@dataclass(frozen=True, eq=False)
class AblationTask:
    """Labeled texts, a model that has read them, probes, and each text's salient token.

    Several dictionaries of the same hook points can be compared on one: ``ablate(task, dictionary)``.

    Attributes:
        settings: as given.
        data: the labeled texts that are used.
        reader: of these texts.
        ordinary: of ordinary text; None where its cross-entropy is not measured.
        sample: tokens that concepts are described by.
        fold: of each text.
        vectors: of each text at the lower and at the upper hook point.
        probes: of either, one per fold, fitted on the other folds.
        label_logits: the model's own, one column per label word; None without label words.
        label_tokens: ids of the label words' first tokens.
        measured: what was measured already and does not depend on the dictionary.
    """

    settings: AblationSettings
    data: LabeledTexts
    reader: Reader
    ordinary: Reader | None
    sample: TokenSample
    fold: Int[Tensor, " n"]
    vectors: tuple[Float[Tensor, "n d_in"], Float[Tensor, "n d_out"]]
    probes: tuple[list[Probe], list[Probe]]
    label_logits: Float[Tensor, "n n_classes"] | None
    label_tokens: Int[Tensor, " n_classes"] | None
    measured: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def prepare(
        cls,
        model: HookedRootModule,
        hook_names: tuple[str, str],
        dataset: Any,
        settings: AblationSettings | None = None,
        *,
        reference_texts: Sequence[str] | None = None,
        text_column: str = "text",
        label_column: str = "label",
        split: str = "test",
        verbose: bool = True,
    ) -> AblationTask:
        """Read the texts and fit the probes.

        Args:
            model: HookedSAETransformer or SAETransformerBridge, decoder or encoder.
            hook_names: where concepts are ablated and where the probe reads.
            dataset: labeled texts, or what ``LabeledTexts.read`` takes.
            settings: the defaults if omitted.
            reference_texts: unlabeled texts that describe the concepts, and the first of which are
                the ordinary text whose cross-entropy is measured; the labeled ones if omitted.
            text_column: see ``LabeledTexts.read``, as for the next two.
            label_column: name of the column of labels.
            split: of a dataset that is given by name.
            verbose: show progress bars.

        Raises:
            ValueError: if the model lacks a hook point, labels are missing or constant, a class has
                fewer examples than there are folds, or the label words do not tell the classes apart.
            ImportError: if ``concept-erasure`` (extra ``interp``) is missing.
        """
        settings = settings or AblationSettings()
        leace_fitters(0, 1, 2)  # said now, if the package is missing, and not after an hour
        check_hooks(model, hook_names)
        columns = {"text_column": text_column, "label_column": label_column, "split": split}
        data = _labeled(dataset, columns)
        if reference_texts is not None and not len(reference_texts):
            raise ValueError(
                "reference_texts is empty: give texts, or None to describe the concepts by the "
                "labeled ones."
            )
        if settings.max_examples is not None and settings.max_examples < len(data):
            data = data.sample(settings.max_examples, settings.seed)
        assert settings.n_folds is not None
        data.check(settings.n_folds)
        is_decoder = predicts_next_token(model)
        readout = settings.readout or ("last" if is_decoder else "first")
        label_tokens = _label_tokens(model, settings, data, is_decoder)
        reader = _reader(model, hook_names, data.texts, readout, settings, verbose)
        multiple = multiple_of(settings.exclude_outlier_tokens)
        if multiple is not None:
            reader = reader.with_reference(multiple)
        others = None
        if reference_texts is not None:
            others = _reader(model, hook_names, reference_texts, readout, settings, verbose, False)
            others = replace(others, outliers=reader.outliers)
        ordinary = None
        if is_decoder and settings.causal and settings.n_ordinary:
            some = (reference_texts or data.texts)[: settings.n_ordinary]
            ordinary = _reader(model, hook_names, some, readout, settings, verbose, False)
            ordinary = replace(ordinary, outliers=reader.outliers)
        fold = stratified_folds(data.labels, settings.n_folds, settings.seed)
        vectors, label_logits, sample = _read(reader, others, label_tokens, settings)
        probes = tuple(_fit(v, data, fold, settings) for v in vectors)
        return cls(
            settings=settings,
            data=data,
            reader=reader,
            ordinary=ordinary,
            sample=sample,
            fold=fold,
            vectors=vectors,
            probes=probes,  # pyright: ignore[reportArgumentType]
            label_logits=label_logits,
            label_tokens=label_tokens,
        )

    @cached_property
    def salient(self) -> Salient:
        """The salient token of each text, found when it is first asked for."""
        return _find_salient(self)

    @property
    def n_classes(self) -> int:
        return len(self.data.label_names)

    def fit_probes(self, vectors: Tensor | Sequence[Tensor]) -> list[Probe]:
        """One a fold, fitted on the other folds; of vectors that differ for each fold, a list."""
        return _fit(vectors, self.data, self.fold, self.settings)

    def correct(self, vectors: Tensor, probes: Sequence[Probe]) -> Tensor:
        """Whether each text's own fold's probe is right about its vector."""
        return self.predictions(vectors, probes) == self.data.labels

    def predictions(self, vectors: Tensor, probes: Sequence[Probe]) -> Tensor:
        """What each text's own fold's probe says."""
        return self.logits(vectors, probes, torch.arange(len(vectors))).argmax(-1)

    def logits(self, vectors: Tensor, probes: Sequence[Probe], index: Tensor) -> Tensor:
        """Logits for some texts' vectors ``[batch, d]``, each by the probe of its fold."""
        every = torch.stack([probe(vectors) for probe in probes])
        return every[self.fold[index], torch.arange(len(index))]

    def fold_accuracies(self, correct: Tensor) -> tuple[float, ...]:
        """Share of the right ones in each fold."""
        return tuple(correct[self.fold == f].float().mean().item() for f in self.fold.unique())

    @torch.no_grad()
    def predict(self, texts: Sequence[str]) -> tuple[Int[Tensor, " n_others"], list[str]]:
        """What all folds' probes together, by the mean of their logits, say of other texts, which are
        read as the labeled ones are; and of each what the model has read of it."""
        source = self.reader
        reader = _reader(
            source.model, source.hook_names, texts, source.readout, self.settings, source.verbose
        )
        reader = replace(reader, outliers=self.reader.outliers)
        classes = torch.empty(len(reader), dtype=torch.int64)
        for batch in reader.batches("Reading other texts"):
            acts = reader.run(batch).upper
            vectors = pool(acts, batch.read.to(acts.device)).float().cpu()
            logits = torch.stack([probe(vectors) for probe in self.probes[1]])
            classes[batch.examples] = logits.mean(0).argmax(-1)
        return classes, reader.texts.as_read(texts)

    def centers(self, batch: Batch) -> Float[Tensor, "batch pos d_in"]:
        """What lower activations are centered on: the mean token; the mean vector where that is read.

        A [CLS], or the last token of a template, has a mean of its own, far from that of tokens.
        """
        mean = self.sample.lower_mean.expand(*batch.at.shape, -1)
        if self.reader.readout == "mean":
            return mean
        return torch.where(batch.read[..., None], self.vectors[0].mean(0), mean)


def _labeled(dataset: Any, columns: dict[str, str]) -> LabeledTexts:
    """The texts, read by their columns' names if they are not read yet."""
    if not isinstance(dataset, LabeledTexts):
        return LabeledTexts.read(dataset, **columns)
    given = [name for name, value in columns.items() if value != _COLUMNS[name]]
    if given:
        raise ValueError(
            f"{given[0]} is for data that are still to be read; these are LabeledTexts: give it to "
            "LabeledTexts.read."
        )
    return dataset


def _reader(
    model: HookedRootModule,
    hook_names: tuple[str, str],
    texts: Sequence[str],
    readout: Readout,
    settings: AblationSettings,
    verbose: bool,
    is_labeled: bool = True,
) -> Reader:
    encoded = encode_texts(
        model,
        texts,
        context_size=settings.context_size,
        readout="first" if readout == "first" else "last",
        template=settings.template if is_labeled else None,
    )
    return Reader(model, encoded, hook_names, readout, settings.batch_size, verbose=verbose)


def _label_tokens(
    model: Any, settings: AblationSettings, data: LabeledTexts, is_decoder: bool
) -> Tensor | None:
    words = settings.label_words
    if words is None:
        return None
    if not is_decoder:
        raise ValueError("The model predicts no next token, so it has no logits for label_words.")
    if len(words) != len(data.label_names):
        raise ValueError(
            f"label_words must be one per class, in the order {', '.join(data.label_names)}; got "
            f"{len(words)}: {', '.join(map(repr, words))}."
        )
    ids = [model.tokenizer(word, add_special_tokens=False)["input_ids"] for word in words]
    if not all(ids):
        raise ValueError(f"One of the label_words {', '.join(map(repr, words))} has no token.")
    tokens = [of_word[0] for of_word in ids]
    if len(set(tokens)) < len(tokens):
        raise ValueError(
            f"Two of the label_words {', '.join(map(repr, words))} begin with the same token, so "
            "they cannot be told apart by it. Choose others."
        )
    return torch.tensor(tokens)


def _fit(
    vectors: Tensor | Sequence[Tensor],
    data: LabeledTexts,
    fold: Tensor,
    settings: AblationSettings,
) -> list[Probe]:
    assert settings.probe is not None
    n_classes, folds = len(data.label_names), fold.unique().tolist()
    by_fold = [vectors] * len(folds) if isinstance(vectors, Tensor) else vectors
    return [
        fit_probe(v[fold != f], data.labels[fold != f], n_classes, settings.probe, settings.seed)
        for f, v in zip(folds, by_fold, strict=True)
    ]


@torch.no_grad()
def _read(
    reader: Reader, others: Reader | None, label_tokens: Tensor | None, settings: AblationSettings
) -> tuple[tuple[Tensor, Tensor], Tensor | None, TokenSample]:
    """Vectors of the texts, the model's logits for the label words, and a sample of tokens."""
    n = len(reader)
    vectors: list[Any] = [None, None]
    logits = None if label_tokens is None else torch.empty(n, len(label_tokens))
    tokens = _Tokens(settings.n_sample_tokens, settings.seed)
    for batch in reader.batches("Reading texts"):
        seen = reader.run(batch, logits_at=None if label_tokens is None else batch.position)
        for i, acts in enumerate((seen.lower, seen.upper)):
            pooled = pool(acts, batch.read.to(acts.device)).float().cpu()
            vectors[i] = torch.empty(n, pooled.shape[1]) if vectors[i] is None else vectors[i]
            vectors[i][batch.examples] = pooled
        if logits is not None and label_tokens is not None and seen.logits is not None:
            logits[batch.examples] = read_label_words(seen.logits, label_tokens)
        if others is None:
            tokens.add(batch, seen.lower, seen.upper)
    if others is not None:
        for batch in others.batches("Reading reference texts"):
            seen = others.run(batch)
            tokens.add(batch, seen.lower, seen.upper)
    return (vectors[0], vectors[1]), logits, tokens.sample(reader.hook_names)


def read_label_words(logits: Float[Tensor, "batch 1 vocabulary"], label_tokens: Tensor) -> Tensor:
    """The model's logits for the label words, at the position that was asked for."""
    return logits[:, 0, label_tokens.to(logits.device)].float().cpu()


class _Tokens:
    """Tokens at both hook points: all go into the means, and a uniform sample of them is kept."""

    def __init__(self, n_kept: int, seed: int) -> None:
        self._n_kept = n_kept
        self._generator = torch.Generator().manual_seed(seed)
        self._keys = torch.empty(0)
        self._kept: list[Tensor] = []
        self._totals: list[Tensor] = []
        self._n = 0

    def add(self, batch: Batch, *hooks: Tensor) -> None:
        """Activations of a batch at each hook point."""
        new = [acts[batch.text.valid.to(acts.device)].float().cpu() for acts in hooks]
        if not self._kept:
            self._kept = [acts[:0] for acts in new]
            self._totals = [torch.zeros(acts.shape[1], dtype=torch.float64) for acts in new]
        for total, acts in zip(self._totals, new, strict=True):
            total += acts.double().sum(0)
        self._n += len(new[0])
        # Each token draws a number; those with the smallest are a uniform sample of all so far.
        keys = torch.cat([self._keys, torch.rand(len(new[0]), generator=self._generator)])
        order = keys.argsort()[: self._n_kept].sort().values
        self._keys = keys[order]
        self._kept = [
            torch.cat([kept, acts])[order] for kept, acts in zip(self._kept, new, strict=True)
        ]

    def sample(self, hook_names: tuple[str, str]) -> TokenSample:
        """What was kept."""
        means = [(total / max(self._n, 1)).float() for total in self._totals]
        return TokenSample(hook_names, self._kept[0], self._kept[1], means[0], means[1])


def _find_salient(task: AblationTask) -> Salient:
    settings, reader = task.settings, task.reader
    n, d = task.vectors[0].shape
    if settings.salient == "readout":
        words = reader.texts.word_of[torch.arange(n), reader.texts.readout]
        return Salient(reader.texts.readout, words, task.vectors[0], None, None)
    target = task.predictions(task.vectors[1], task.probes[1])

    def score(vectors: Tensor, index: Tensor) -> Tensor:
        logits = task.logits(vectors.float().cpu(), task.probes[1], index)
        return logits[torch.arange(len(index)), target[index]]

    position = torch.empty(n, dtype=torch.int64)
    lower, missing = torch.empty(n, d), torch.empty(n)
    wins = torch.empty(n, dtype=torch.bool)
    method: Attribution = settings.salient
    for batch in reader.batches(f"Attributing ({method.replace('_', ' ')})"):
        attributed = attribute(reader, batch, score, task.centers(batch), method, settings.n_steps)
        scores = attributed.scores.abs() if settings.protocol == "released" else attributed.scores
        word_of = reader.texts.word_of[batch.examples, : scores.shape[1]]
        is_word = (word_of >= 0) & batch.at
        if reader.readout != "mean":
            is_word &= ~batch.read
        # A text of one token has no other word than the one that is read.
        is_word |= batch.at & ~is_word.any(1, keepdim=True)
        best = scores.masked_fill(~is_word, -torch.inf)
        position[batch.examples] = best.argmax(1)
        readout = scores.masked_fill(~batch.read, -torch.inf).amax(1)
        wins[batch.examples] = readout > best.amax(1)
        rows = torch.arange(len(scores))
        lower[batch.examples] = attributed.lower[rows, position[batch.examples]].float()
        missing[batch.examples] = attributed.missing.float()
    word = reader.texts.word_of[torch.arange(n), position]
    is_known = method == "integrated_gradients"
    return Salient(
        position,
        word,
        lower,
        None if reader.readout == "mean" else wins,
        missing if is_known else None,
    )
