"""Texts with labels that a model has read: all that does not depend on a dictionary."""

from __future__ import annotations

import logging
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
from bae_lens.activations.texts import NO_TOKENS
from bae_lens.concept_ablation.attribution import attribute
from bae_lens.concept_ablation.concepts import TokenSample
from bae_lens.concept_ablation.passes import Batch, Reader, check_hooks, pool
from bae_lens.concept_ablation.predictors import OwnLogits, own_logits
from bae_lens.concept_ablation.probes import Probe, fit_probe, stratified_folds
from bae_lens.concept_ablation.removals import leace_fitters
from bae_lens.concept_ablation.settings import AblationSettings, Attribution, PredictedBy, Readout
from bae_lens.concept_ablation.texts import encode_texts
from bae_lens.evals.reconstruction import predicts_next_token

logger = logging.getLogger(__name__)


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
    """Labeled texts, a model that has read them, its predictions, probes, and each text's salient token.

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
        own: how the model itself is asked for the classes; None if it is not.
        own_logits: what it says of each text, a column a class.
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
    own: OwnLogits | None
    own_logits: Float[Tensor, "n n_classes"] | None
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

        Where a vector is the mean over a text's tokens, texts without one that counts are left out, with a logged
        warning.

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
                fewer examples than there are folds, the label words do not tell the classes apart, a
                head is asked for that the model lacks, or the head's classes are not those of the data.
            ImportError: if ``concept-erasure`` (extra ``interp``) is missing.
        """
        settings = settings or AblationSettings()
        leace_fitters(0, 1, 2)  # said now, if the package is missing, and not after an hour
        check_hooks(model, hook_names)
        columns = {"text_column": text_column, "label_column": label_column, "split": split}
        data = LabeledTexts.of(dataset, **columns)
        if reference_texts is not None and not len(reference_texts):
            raise ValueError(
                "reference_texts is empty: give texts, or None to describe the concepts by the "
                "labeled ones."
            )
        if settings.max_examples is not None and settings.max_examples < len(data):
            data = data.sample(settings.max_examples, settings.seed)
        assert settings.n_folds is not None
        data.check(settings.n_folds)
        own = own_logits(model, data.label_names, settings.predicted_by, settings.label_words)
        is_decoder = predicts_next_token(model)
        readout = settings.readout or ("last" if is_decoder else "first")
        reader = _reader(model, hook_names, data.texts, readout, settings, verbose)
        multiple = multiple_of(settings.exclude_outlier_tokens)
        if multiple is not None:
            reader = reader.with_reference(multiple)
        has_tokens = reader.has_tokens()
        if not has_tokens.all():
            logger.warning(NO_TOKENS, int((~has_tokens).sum()), len(data))
            data = data.take(has_tokens.nonzero()[:, 0])
            data.check(settings.n_folds)
            outliers = reader.outliers
            reader = _reader(model, hook_names, data.texts, readout, settings, verbose)
            reader = replace(reader, outliers=outliers)
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
        vectors, said, sample = _read(reader, others, own, settings)
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
            own=own,
            own_logits=said,
        )

    @cached_property
    def salient(self) -> Salient:
        """The salient token of each text, found when it is first asked for."""
        return _find_salient(self)

    @property
    def predicted_by(self) -> PredictedBy:
        """Who predicts: the model itself where it is asked, unless the settings have the probe do it."""
        return "probe" if self.own is None or self.settings.predicted_by == "probe" else self.own.by

    @cached_property
    def predicted(self) -> Int[Tensor, " n"]:
        """The class that is predicted of each text, in the order of the data's."""
        if self.own_logits is None or self.predicted_by == "probe":
            return self.predictions(self.vectors[1], self.probes[1])
        return self.own_logits.argmax(-1)

    @property
    def label_logits(self) -> Float[Tensor, "n n_classes"] | None:
        """The model's own logits, one column per label word; None without label words."""
        return self.own_logits if self.own is not None and self.own.by == "label_words" else None

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
        """What is predicted of other texts, which are read as the labeled ones are, and of each what the
        model has read of it. Probes of all folds predict together, by the mean of their logits; -1 where a text's
        vector would be the mean of no token."""
        source = self.reader
        reader = _reader(
            source.model, source.hook_names, texts, source.readout, self.settings, source.verbose
        )
        reader = replace(reader, outliers=source.outliers)
        classes = torch.empty(len(reader), dtype=torch.int64)
        own = None if self.predicted_by == "probe" else self.own
        for batch in reader.batches("Reading other texts"):
            seen = reader.run(batch, logits_at=None if own is None else own.logits_at(batch))
            if own is not None and seen.logits is not None:
                found = own.read(seen.logits).argmax(-1)
            else:
                vectors = pool(seen.upper, batch.read.to(seen.upper.device)).float().cpu()
                logits = torch.stack([probe(vectors) for probe in self.probes[1]]).mean(0)
                found = logits.argmax(-1).where(batch.read.any(1), -1)
            classes[batch.examples] = found
        return classes, reader.texts.as_read(texts)

    def centers(self, batch: Batch) -> Float[Tensor, "batch pos d_in"]:
        """What lower activations are centered on: the mean token; the mean vector where that is read.

        A [CLS], or the last token of a template, has a mean of its own, far from that of tokens.
        """
        mean = self.sample.lower_mean.expand(*batch.at.shape, -1)
        if self.reader.readout == "mean":
            return mean
        return torch.where(batch.read[..., None], self.vectors[0].mean(0), mean)


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
    reader: Reader, others: Reader | None, own: OwnLogits | None, settings: AblationSettings
) -> tuple[tuple[Tensor, Tensor], Tensor | None, TokenSample]:
    """Vectors of the texts, the model's own logits of the classes, and a sample of tokens."""
    n = len(reader)
    vectors: list[Any] = [None, None]
    logits = None if own is None else torch.empty(n, len(own.columns))
    tokens = _Tokens(settings.n_sample_tokens, settings.seed)
    for batch in reader.batches("Reading texts"):
        seen = reader.run(batch, logits_at=None if own is None else own.logits_at(batch))
        for i, acts in enumerate((seen.lower, seen.upper)):
            pooled = pool(acts, batch.read.to(acts.device)).float().cpu()
            vectors[i] = torch.empty(n, pooled.shape[1]) if vectors[i] is None else vectors[i]
            vectors[i][batch.examples] = pooled
        if logits is not None and own is not None and seen.logits is not None:
            logits[batch.examples] = own.read(seen.logits)
        if others is None:
            tokens.add(batch, seen.lower, seen.upper)
    if others is not None:
        for batch in others.batches("Reading reference texts"):
            seen = others.run(batch)
            tokens.add(batch, seen.lower, seen.upper)
    return (vectors[0], vectors[1]), logits, tokens.sample(reader.hook_names)


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
    own = None if task.predicted_by == "probe" else task.own
    target = task.predicted

    def score(read: Tensor, index: Tensor) -> Tensor:
        logits = read if own else task.logits(read.float().cpu(), task.probes[1], index)
        return logits[torch.arange(len(index)), target[index]]

    position = torch.empty(n, dtype=torch.int64)
    lower, missing = torch.empty(n, d), torch.empty(n)
    wins = torch.empty(n, dtype=torch.bool)
    method: Attribution = settings.salient
    for batch in reader.batches(f"Attributing ({method.replace('_', ' ')})"):
        attributed = attribute(
            reader, batch, score, task.centers(batch), method, settings.n_steps, own
        )
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
