"""Remove a dictionary's concepts, and everything that they are to be compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from sae_lens import SAE
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from bae_lens.concept_ablation import result as names
from bae_lens.concept_ablation.concepts import Concepts, describe
from bae_lens.concept_ablation.interventions import (
    Outcome,
    ablate_passes,
    ablate_vectors,
    ordinary_losses,
)
from bae_lens.concept_ablation.probes import Probe
from bae_lens.concept_ablation.rationales import concepts_in_rationale, salient_tokens
from bae_lens.concept_ablation.removals import EqualNorm, Leace, Removal, Subspace, leace_fitters
from bae_lens.concept_ablation.result import AblationRow, ConceptAblationResult
from bae_lens.concept_ablation.task import AblationTask
from bae_lens.dictionaries import Clusters, Dictionary


def ablate(
    task: AblationTask,
    dictionary: SAE[Any] | Clusters,
    name: str | None = None,
    causal: bool | None = None,
) -> ConceptAblationResult:
    """Ablate a dictionary's concepts of the salient tokens, and the controls.

    Args:
        task: the texts, read.
        dictionary: of the task's lower hook point: a CLVQ-VAE, a single-layer VQ-VAE, any other
            SAELens SAE or transcoder, a BAE, or clusters.
        name: for tables; the architecture if omitted.
        causal: also ablate inside the forward pass; as the task's settings say if omitted.

    Raises:
        ValueError: if the dictionary reads another width, or nothing in it is active on the texts.
        ImportError: if ``concept-erasure`` (extra ``interp``) is missing.
    """
    concepts = describe(dictionary, task.sample, task.settings.vectors, name)
    if not len(concepts.in_use):
        raise ValueError(f"No latent of {concepts.name} is active on any token of the texts.")
    measure = _Measure(task)
    causal = bool(task.settings.causal if causal is None else causal)
    rows = measure.originals(causal)
    sources = ["readout"] if task.settings.salient == "readout" else ["word", "readout"]
    for i, place in enumerate(names.STORED if _has_two(task) else names.STORED[:1]):
        rows += measure.shared_stored(i, place)
        for source in sources:
            removals = _removals(task, concepts, source, i == 1)
            rows += measure.stored(i, place, source, removals)
    if causal:
        removals = _removals(task, concepts, sources[0], at_upper=False)
        for place in names.CAUSAL:
            rows += measure.causal(place, sources[0], removals)
    ids = concepts.active(_tokens(task, sources[0]), task.settings.rank)
    return ConceptAblationResult(
        dictionary=concepts.name,
        hook_names=task.reader.hook_names,
        label_names=tuple(task.data.label_names),
        labels=tuple(task.data.labels.tolist()),
        settings=task.settings.to_dict() | {"predicted_by": task.predicted_by},
        rows=tuple(rows),
        salient=salient_tokens(task),
        concept_ids=tuple(map(tuple, ids.tolist())),
        n_truncated=task.reader.texts.n_truncated,
        n_outlier_tokens=task.reader.n_outliers,
        ordinary_ce=_mean_or_none(ordinary_losses(task, None)),
        concept_in_rationale=concepts_in_rationale(task, concepts, ids),
        weights_sha256=Dictionary(dictionary).weights_sha256,
        predictions=tuple(task.predicted.tolist()),
    )


def _has_two(task: AblationTask) -> bool:
    return task.reader.hook_names[0] != task.reader.hook_names[1]


def _tokens(task: AblationTask, concept_of: str) -> Tensor:
    """Lower activations ``[n, d_in]`` that the concepts are concepts of."""
    return task.vectors[0] if concept_of == "readout" else task.salient.lower


def _directions(
    task: AblationTask, concepts: Concepts, ids: Tensor, concept_of: str, at_upper: bool
) -> Tensor | None:
    """From the mean of what they are concepts of: of tokens, or of the vectors that are read."""
    center = None
    if task.settings.center and concept_of == "readout":
        center = task.vectors[int(at_upper)].mean(0)
    elif task.settings.center:
        center = task.sample.upper_mean if at_upper else task.sample.lower_mean
    return concepts.directions(ids, at_upper, center)


def _removals(
    task: AblationTask, concepts: Concepts, concept_of: str, at_upper: bool
) -> dict[str, Removal]:
    """The concept of each example and the controls that are made from the dictionary."""
    generator = torch.Generator().manual_seed(task.settings.seed)
    concept = concept_subspace(task, concepts, at_upper, concept_of)
    ids = concepts.active(_tokens(task, concept_of), task.settings.rank)
    other_ids = _other_ids(ids, concepts.in_use, generator)
    drawn = _directions(task, concepts, other_ids, concept_of, at_upper)
    if concept is None or drawn is None:
        return {}
    random = Subspace.random(concept, generator)
    others = _of_another_class(task.data.labels, generator)
    return {
        names.CONCEPT: concept,
        names.RANDOM: random,
        names.RANDOM_EQUAL: EqualNorm(random, concept),
        names.RANDOM_CONCEPT: Subspace.spanned_by(drawn),
        names.OTHER_CLASS: Subspace(concept.basis[others]),
    }


def _other_ids(ids: Tensor, in_use: Tensor, generator: torch.Generator) -> Tensor:
    """As many latents or codes that are in use, drawn anew where one would be an example's own."""
    drawn = in_use[torch.randint(len(in_use), ids.shape, generator=generator)]
    for _ in range(8):
        again = (drawn[:, :, None] == ids[:, None]).any(-1)
        fresh = in_use[torch.randint(len(in_use), ids.shape, generator=generator)]
        drawn = torch.where(again, fresh, drawn)
    return torch.where(ids < 0, ids, drawn)


def _of_another_class(labels: Tensor, generator: torch.Generator) -> Tensor:
    """For each example another one, drawn among those with another label."""
    may_be = (labels[:, None] != labels).float()
    return may_be.multinomial(1, generator=generator)[:, 0]


def concept_subspace(
    task: AblationTask, concepts: Concepts, at_upper: bool = False, concept_of: str = "word"
) -> Subspace | None:
    """The concept of each example's salient word (or readout), as a subspace.

    None where the dictionary has no directions at the upper hook point.
    """
    ids = concepts.active(_tokens(task, concept_of), task.settings.rank)
    directions = _directions(task, concepts, ids, concept_of, at_upper)
    return None if directions is None else Subspace.spanned_by(directions)


class _Measure:
    """Rows of one result; what no dictionary changes is measured once a task."""

    def __init__(self, task: AblationTask) -> None:
        self.task = task
        self.everything = torch.arange(len(task.data))
        # A second dictionary finds it there.
        self.kept = task.measured

    # Rows

    def originals(self, causal: bool) -> list[AblationRow]:
        """The untouched model, for each place."""
        rows = []
        places = list(names.STORED if _has_two(self.task) else names.STORED[:1])
        places += names.CAUSAL if causal else ()
        for place in places:
            i = 0 if place == names.LOWER else 1
            outcome = Outcome(self.task.vectors[i], None, 0.0)
            if place in names.CAUSAL:
                outcome.own_logits = self.task.own_logits
            rows += self._rows(outcome, self.task.probes[i], (place, "", "none"), 0.0)
        return rows

    def stored(
        self, i: int, place: str, source: str, removals: Mapping[str, Removal]
    ) -> list[AblationRow]:
        """Ablations of the vectors that were read at hook point ``i``."""
        rows = []
        for method, removal in removals.items():
            outcome = ablate_vectors(self.task, i, removal)
            key = (place, source, method)
            rows += self._rows(outcome, self.task.probes[i], key, removal.rank)
            if method == names.CONCEPT:
                rows += self._retrained(outcome, key, removal.rank)
        return rows

    def shared_stored(self, i: int, place: str) -> list[AblationRow]:
        """The controls that no dictionary has a part in."""
        if place not in self.kept:
            mean = self._mean_direction(self.task.vectors[i].mean(0))
            rows = self.stored(i, place, "", {names.MEAN: mean})
            leace = self._leace([(self.task.vectors[i], self.everything)])
            outcome = ablate_vectors(self.task, i, leace)
            key = (place, "", names.LEACE)
            rows += self._rows(outcome, self.task.probes[i], key, leace.rank)
            by_fold = [ablate_vectors(self.task, i, eraser).vectors for eraser in leace.by_fold()]
            rows += self._retrained(outcome, key, leace.rank, by_fold)
            self.kept[place] = rows
        return self.kept[place]

    def causal(self, place: str, source: str, removals: Mapping[str, Removal]) -> list[AblationRow]:
        """Ablations at the lower hook point inside the forward pass, read further up."""
        rows = []
        if place not in self.kept:
            mean = self._mean_direction(self.task.sample.lower_mean)
            self.kept[place] = self._causal_rows(
                place, "", {names.MEAN: mean, names.LEACE: self._token_leace(place)}
            )
        rows += self._causal_rows(place, source, removals)
        return rows + self.kept[place]

    def _causal_rows(
        self, place: str, source: str, removals: Mapping[str, Removal]
    ) -> list[AblationRow]:
        rows = []
        for method, removal in removals.items():
            outcome = ablate_passes(self.task, place, removal, f"Ablating: {place}, {method}")
            ce = _ce_changes(self.task, removal) if place == names.EVERYWHERE else ()
            key = (place, source, method)
            rows += self._rows(outcome, self.task.probes[1], key, removal.rank, ce)
            if method == names.CONCEPT:
                rows += self._retrained(outcome, key, removal.rank)
            if isinstance(removal, Leace):
                by_fold = [
                    ablate_passes(
                        self.task, place, eraser, f"Refitting: {place}, {method}", False
                    ).vectors
                    for eraser in removal.by_fold()
                ]
                rows += self._retrained(outcome, key, removal.rank, by_fold)
        return rows

    def _rows(
        self,
        outcome: Outcome,
        probes: list[Probe],
        key: tuple[str, str, str],
        rank: float,
        ce_change: tuple[float, ...] = (),
    ) -> list[AblationRow]:
        """Rows for what the probe says, and for what the model itself says if it was asked."""
        correct = {names.PROBE: self.task.correct(outcome.vectors, probes)}
        if outcome.own_logits is not None and self.task.own is not None:
            said = outcome.own_logits.argmax(-1)
            correct[names.READERS[self.task.own.by]] = said == self.task.data.labels
        place, source, method = key
        return [
            AblationRow(
                place=place,
                concept_of=source,
                method=method,
                read_by=reader,
                rank=rank,
                removed_norm=outcome.removed_norm,
                correct=tuple(right.tolist()),
                fold_accuracies=self.task.fold_accuracies(right),
                ce_change=ce_change,
            )
            for reader, right in correct.items()
        ]

    def _retrained(
        self,
        outcome: Outcome,
        key: tuple[str, str, str],
        rank: float,
        by_fold: Sequence[Tensor] | None = None,
    ) -> list[AblationRow]:
        """The same with probes that were fitted on ablated vectors: is the label gone, or moved?

        What was fitted by folds has to be ablated alike in all that one probe sees: what an eraser
        leaves of its own fold is opposite to what it left in the others, and a probe that was fitted
        on what each eraser left of its own would be wrong more often than by chance.
        """
        place, source, method = key
        probes = self.task.fit_probes(outcome.vectors if by_fold is None else by_fold)
        plain = Outcome(outcome.vectors, None, outcome.removed_norm)
        return self._rows(plain, probes, (place, source, method + names.RETRAINED), rank)

    # Removals that no dictionary has a part in

    def _mean_direction(self, mean: Tensor) -> Subspace:
        return Subspace(normalize(mean, dim=0).expand(len(self.everything), 1, -1))

    def _leace(self, parts: Any) -> Leace:
        """Fitted on the other folds' vectors, given in parts with the texts that they are of."""
        task = self.task
        fitters: list[Any] = []
        for vectors, index in parts:
            fitters = fitters or leace_fitters(
                len(task.probes[0]), vectors.shape[1], task.n_classes
            )
            classes = one_hot(task.data.labels[index], task.n_classes).double()
            for f, fitter in enumerate(fitters):
                is_other = task.fold[index] != f
                if is_other.any():
                    fitter.update(vectors[is_other].double(), classes[is_other])
        return Leace([fitter.eraser for fitter in fitters], task.fold, float(task.n_classes - 1))

    def _token_leace(self, place: str) -> Leace:
        """Fitted on the activations that are ablated, each with the label of its text."""
        task = self.task
        if place == names.SALIENT:
            return self._leace([(task.salient.lower, self.everything)])

        def parts() -> Any:
            for batch in task.reader.batches("Fitting LEACE"):
                lower = task.reader.lower(batch).float().cpu()
                yield lower[batch.at], batch.examples.repeat_interleave(batch.at.sum(1))

        return self._leace(parts())


def _ce_changes(task: AblationTask, removal: Removal) -> tuple[float, ...]:
    """What a removal adds to the cross-entropy of each ordinary text."""
    changes = ordinary_losses(task, removal) - ordinary_losses(task, None)
    return tuple(changes[changes.isfinite()].tolist())


def _mean_or_none(losses: Tensor) -> float | None:
    return losses.nanmean().item() if len(losses) else None
