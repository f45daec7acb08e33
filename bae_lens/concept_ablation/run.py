"""Concept ablation in one call."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from sae_lens import SAE
from transformer_lens.HookedRootModule import HookedRootModule

from bae_lens.concept_ablation.measure import ablate
from bae_lens.concept_ablation.result import ConceptAblationResult
from bae_lens.concept_ablation.settings import AblationSettings
from bae_lens.concept_ablation.task import AblationTask
from bae_lens.dictionaries import Clusters, Dictionary


def concept_ablation(
    model: HookedRootModule,
    dictionary: SAE[Any] | Clusters,
    dataset: Any,
    settings: AblationSettings | None = None,
    *,
    hook_name_out: str | None = None,
    reference_texts: Sequence[str] | None = None,
    text_column: str = "text",
    label_column: str = "label",
    split: str = "test",
    verbose: bool = True,
) -> ConceptAblationResult:
    """Remove the concept of each text's salient token and see what a probe, and the model, lose.

    The logit of the class that is predicted of a text is attributed to tokens at the lower hook point,
    and the concept that the dictionary sees in the salient token is taken out: of the stored vectors at
    either hook point, and, causally, of the lower activations inside a forward pass, at the salient token
    or at all. In the same places the controls: random
    directions, as they are and as long as the concept; a random concept, one of another class; the
    mean direction; LEACE, which has seen the labels; and probes fitted again after the ablation.

    Who predicts is ``AblationSettings.predicted_by``: the model's own head if it is a classifier, its
    label words if they are given, else a probe fitted to the texts' vectors at the upper hook point.
    What the paper (arXiv 2506.20040) attributes is the model's own logit, of fine-tuned classifiers and
    of prompted language models; what it reads after the ablation is a probe of the stored vectors. Both
    are read here: of stored vectors the probe, which alone can be; inside the forward pass the probe,
    and the model's own logits where it is asked.

    Args:
        model: HookedSAETransformer or SAETransformerBridge, decoder or encoder.
        dictionary: CLVQ-VAE, VQ-VAE, BAE, any SAELens SAE or transcoder, or ``Clusters``. Its
            metadata names the hook points.
        dataset: labeled texts: a JSONL or CSV file, a dataset or its name, a DataFrame, rows by
            column, or ``LabeledTexts``.
        settings: the defaults if omitted, which take a sample of 200 texts (``max_examples``).
        hook_name_out: the upper hook point; if omitted where the dictionary writes, or, if it
            writes where it reads, the same point of the last block.
        reference_texts: unlabeled texts to describe the concepts by (codes by the mean of their
            tokens), the first of which are the ordinary text whose cross-entropy is measured. Codes
            that few tokens have are badly described by a few labeled texts alone.
        text_column: name of the column of texts; not for ``LabeledTexts``, nor are the next two.
        label_column: name of the column of labels.
        split: of a dataset that is given by name.
        verbose: show progress bars.

    Raises:
        ValueError: if the model lacks a hook point, the dictionary reads another width, labels are
            missing or constant, a class has fewer examples than there are folds, label words do
            not tell the classes apart, a head is asked for that there is not, or its classes are not
            those of the texts.
        FileNotFoundError: if there is no such file.
        ImportError: if ``concept-erasure`` is missing; the message is the command to run.
    """
    task = AblationTask.prepare(
        model,
        probed_hooks(model, dictionary, hook_name_out),
        dataset,
        settings,
        reference_texts=reference_texts,
        text_column=text_column,
        label_column=label_column,
        split=split,
        verbose=verbose,
    )
    return ablate(task, dictionary)


def probed_hooks(
    model: Any, dictionary: SAE[Any] | Clusters, hook_name_out: str | None = None
) -> tuple[str, str]:
    """Where a dictionary's concepts are read, and where a probe reads: ``hook_name_out``, or where the
    dictionary writes; if it writes where it reads, the same point of the last block, if that is in one."""
    hook_in, written = Dictionary(dictionary).hook_names
    last = re.sub(r"^blocks\.\d+\.", f"blocks.{model.cfg.n_layers - 1}.", hook_in)
    if hook_name_out is None:
        hook_name_out = written if written != hook_in else last
    return hook_in, hook_name_out
