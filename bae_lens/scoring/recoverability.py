"""How well a model's prediction can be told from what a dictionary shows of the salient token.

The prediction is the model's own where it has a classifier's head or is asked by label words, else a
probe's: see ``AblationSettings.predicted_by``.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from sae_lens import SAE

from bae_lens.activations.sentence_store import SentenceStore
from bae_lens.activations.texts import NO_TOKENS
from bae_lens.concept_ablation import AblationSettings, AblationTask, Clusters
from bae_lens.concept_ablation.concepts import describe
from bae_lens.dictionaries import Dictionary
from bae_lens.examples.collect import collect_examples
from bae_lens.examples.records import ExampleSettings, LatentRecords, check_records_of
from bae_lens.scoring.bag_of_words import CANNOT_TELL, PlainReader
from bae_lens.scoring.codes_of_words import word_codes
from bae_lens.scoring.nmi import prediction_nmi
from bae_lens.scoring.recoverability_result import (
    PREDICTORS,
    Given,
    Recoverability,
    RecoverabilitySettings,
)
from bae_lens.scoring.words_and_contexts import WordsAndContexts, words_and_contexts_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class RecoverabilityTask:
    """Texts with a model's predictions, and a bag-of-words classifier that has learned them from other texts.

    The CLVQ-VAE paper has people tell a model's prediction from a concept's word cloud or sentences.
    In their place a logistic regression on words, which knows what words mean for the prediction
    from one half of the reference texts, and sees only words and contexts of concepts, which are of the
    other half: neither of the texts that are asked about nor of those that it knows. Its own limits are those of
    the row ``"text"``.

    Attributes:
        texts: labeled texts, what is predicted of them and their salient tokens.
        shown_texts: reference texts that the words and contexts are of.
        shown_predictions: what is predicted of them.
        n_learned: reference texts that the reader has learned from.
        reader: fitted on those, as far as the model reads them.
        settings: as given.
    """

    texts: AblationTask
    shown_texts: tuple[str, ...]
    shown_predictions: tuple[int, ...]
    n_learned: int
    reader: PlainReader
    settings: RecoverabilitySettings

    @classmethod
    def prepare(
        cls,
        model: Any,
        hook_names: tuple[str, str],
        dataset: Any,
        reference_texts: Sequence[str],
        settings: RecoverabilitySettings | None = None,
        ablation: AblationSettings | None = None,
        *,
        class_names: Sequence[str] | None = None,
        verbose: bool = True,
    ) -> RecoverabilityTask:
        """Read the texts, fit the probes and the reader.

        Args:
            model: HookedSAETransformer or SAETransformerBridge, decoder or encoder.
            hook_names: where concepts are read, and where a probe reads.
            dataset: labeled texts that are asked about, as for ``AblationTask.prepare``.
            reference_texts: other texts of the same kind, without labels: the reader learns
                from one half of them, and words and contexts are of the other.
            settings: the defaults if omitted.
            ablation: how texts are read, who predicts (``predicted_by``) and how salient tokens are
                found; nothing is ablated.
            class_names: what the classes are called in results, in the order of the labels; None: as in
                the data.
            verbose: show progress bars.

        Raises:
            ValueError: if fewer than two of the reference texts are not asked about, those learned
                from have no two classes of three texts each, the same class is predicted of all
                texts, or see ``AblationTask.prepare``.
            ImportError: if ``concept-erasure`` (extra ``interp``) is missing.
        """
        texts = AblationTask.prepare(
            model,
            hook_names,
            dataset,
            ablation,
            reference_texts=reference_texts or None,
            verbose=verbose,
        )
        if class_names is not None:
            # Only now: a head knows its classes by the names that they have in the data.
            texts = replace(texts, data=replace(texts.data, label_names=list(class_names)))
        return cls.of(texts, reference_texts, settings)

    @classmethod
    def of(
        cls,
        texts: AblationTask,
        reference_texts: Sequence[str],
        settings: RecoverabilitySettings | None = None,
    ) -> RecoverabilityTask:
        """The same of texts that were read before."""
        settings = settings or RecoverabilitySettings()
        asked = {text.strip() for text in texts.data.texts}
        # A text that is asked about must not be among those that its concept is shown by, nor one that
        # the reader knows: it would know whole windows of it by heart.
        others = list(dict.fromkeys(t for t in map(str.strip, reference_texts) if t not in asked))
        _check_enough(others)
        names = texts.data.label_names
        said = texts.predicted.unique().tolist()
        if len(said) < 2:
            raise ValueError(
                f"{PREDICTORS[texts.predicted_by].capitalize()} predicts {names[said[0]]!r} of each of the {len(texts.data)} texts, so that "
                "there is nothing to tell. Take more texts, of all classes as many, or a hook point at "
                "which the classes differ."
            )
        # At random, since in some datasets every second text is of one class.
        order = np.random.default_rng(settings.seed).permutation(len(others))
        others = [others[i] for i in order]
        predictions, as_read = texts.predict(others)
        if n_without := int((predictions < 0).sum()):
            logger.warning(NO_TOKENS, n_without, len(others))
            kept = (predictions >= 0).nonzero()[:, 0].tolist()
            others, as_read = ([of[i] for i in kept] for of in (others, as_read))
            predictions = predictions[kept]
            _check_enough(others)
        classes, n = predictions.tolist(), (len(others) + 1) // 2
        reader = PlainReader.fit(as_read[:n], classes[:n], settings.seed)
        return cls(texts, tuple(others[n:]), tuple(classes[n:]), n, reader, settings)

    def collect(
        self, dictionary: SAE[Any] | Clusters, settings: ExampleSettings | None = None
    ) -> LatentRecords:
        """Examples of the texts that words and contexts are of, with the predictions as their classes.

        They are cut to as many tokens as those that are asked about, and read without a template.

        Args:
            dictionary: see ``collect_examples``.
            settings: the default reads all of the texts and keeps no background.
        """
        names, own = self.texts.data.label_names, self.texts.settings
        model: Any = self.texts.reader.model
        store = SentenceStore(
            model,
            list(self.shown_texts),
            [self.texts.reader.hook_names[0]],
            context_size=own.context_size,
            store_batch_size_prompts=own.batch_size,
            prepend_bos=Dictionary(dictionary).prepend_bos,
        )
        default = ExampleSettings(
            n_tokens=None,
            # Some for those from one text, of which one is shown.
            n_random=3 * self.settings.n_contexts,
            n_top_tokens=2 * self.settings.n_words,
            n_corpus_tokens=0,
            seed=self.settings.seed,
        )
        return collect_examples(
            model,
            dictionary,
            store,
            settings or default,
            labels=[names[i] for i in self.shown_predictions],
        )

    def recover(
        self,
        dictionary: SAE[Any] | Clusters,
        records: LatentRecords | None = None,
        name: str | None = None,
    ) -> Recoverability:
        """What the reader tells from the concepts of a dictionary.

        Args:
            dictionary: as for ``concept_ablation``; a text's concept is the one that ablation would
                remove: the code of its salient token, or its strongest latent.
            records: of this dictionary; None: ``collect`` it. Mind that it must not be of the texts
                that are asked about.
            name: what the dictionary is called; None: its architecture.

        Raises:
            ValueError: if the examples are of another number of latents, of other weights, or of other
                classes.
        """
        records = self.collect(dictionary) if records is None else records
        task, settings = self.texts, self.settings
        found = describe(dictionary, task.sample, task.settings.vectors, name)
        of_dictionary = Dictionary(dictionary)
        sha256 = of_dictionary.weights_sha256
        check_records_of(records, of_dictionary.n_latents, sha256)
        names = task.data.label_names
        if not set(records.class_names or ()) <= set(names):
            raise ValueError(
                f"The examples are of the classes {', '.join(records.class_names or ())}, the texts of "
                f"{', '.join(names)}. Collect it with RecoverabilityTask.collect, or without labels."
            )
        concepts = tuple(
            # Of a bit that is mostly on it is seen where it is off, and not what its being on says.
            -1 if latent >= 0 and records[latent].when_off else latent
            for latent in found.active(task.salient.lower, 1)[:, 0].tolist()
        )
        shown = {
            latent: words_and_contexts_of(records, latent, settings.n_words, settings.n_contexts)
            for latent in set(concepts) - {-1}
        }
        of_texts = [shown.get(latent, WordsAndContexts((), ())) for latent in concepts]
        words = [" ".join(view.words) for view in of_texts]
        contexts = ["\n".join(context.text for context in view.contexts) for view in of_texts]
        read = self.reader.read
        said: dict[Given, tuple[int, ...]] = {
            "words and contexts": read([f"{w}\n{c}" for w, c in zip(words, contexts, strict=True)]),
            "words": read(words),
            "contexts": read(contexts),
        }
        if records.class_names is not None:
            shares = _by_class_shares(records, names)
            said["class shares"] = tuple(
                CANNOT_TELL if latent < 0 else shares[latent] for latent in concepts
            )
        said["word"] = read(self._salient_words())
        said["text"] = read(task.reader.texts.as_read(task.data.texts))
        return Recoverability(
            dictionary=found.name,
            hook_names=task.reader.hook_names,
            class_names=tuple(names),
            predictions=tuple(task.predicted.tolist()),
            concepts=concepts,
            said=said,
            n_learned=self.n_learned,
            n_shown=len(self.shown_texts),
            settings=settings,
            weights_sha256=sha256,
            predicted_by=task.predicted_by,
            nmi=prediction_nmi(*word_codes(task, dictionary), seed=settings.seed),
        )

    def _salient_words(self) -> list[str]:
        own = self.texts.salient.word.tolist()
        words = self.texts.reader.texts.words
        return [words[i][word] if word >= 0 else "" for i, word in enumerate(own)]


def _by_class_shares(records: LatentRecords, names: Sequence[str]) -> list[int]:
    """The class of which each latent has the most for its share of all tokens."""
    assert records.class_names is not None
    assert records.class_shares is not None
    order = [names.index(name) for name in records.class_names]
    base = np.array(records.class_shares)
    found = []
    for own in records.latents:
        shares = np.array(own.class_shares)
        # A class that no token is of is the most frequent nowhere.
        lift = np.divide(shares, base, out=np.zeros_like(base), where=base > 0)
        found.append(order[int(lift.argmax())] if own.n_firings > 0 else CANNOT_TELL)
    return found


def _check_enough(others: Sequence[str]) -> None:
    if len(others) < 2:
        raise ValueError(
            "The reader learns from one half of the reference texts that are not asked about, and is "
            f"shown the other; there are {len(others)}. Give other texts of the same kind."
        )
