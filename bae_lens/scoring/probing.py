"""Sparse probing: how well a few latents tell the class of a text, beside controls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sae_lens import SAE
from scipy import sparse
from transformer_lens.HookedRootModule import HookedRootModule

from bae_lens.activations.outlier_tokens import multiple_of, saved_outlier_tokens
from bae_lens.concept_ablation.probes import fit_probe
from bae_lens.dictionaries import Clusters
from bae_lens.examples.coder import Coder
from bae_lens.scoring.probing_result import (
    COMPONENTS,
    DIMENSIONS,
    LATENTS,
    RANDOM,
    SHUFFLED,
    WHOLE,
    ProbeRow,
    SparseProbingResult,
)
from bae_lens.scoring.probing_settings import SparseProbingSettings
from bae_lens.scoring.probing_task import AT_ONCE, SparseProbingTask


def sparse_probing(
    model: HookedRootModule,
    dictionary: SAE[Any] | Clusters,
    dataset: Any,
    settings: SparseProbingSettings | None = None,
    *,
    test_dataset: Any = None,
    text_column: str = "text",
    label_column: str = "label",
    split: str = "test",
    verbose: bool = True,
) -> SparseProbingResult:
    """Tell the class of held-out texts by the mean activations of k latents.

    As SAEBench (arXiv 2503.09532) does it, after Gurnee et al. (arXiv 2305.01610): a latent's activations
    are averaged over a text's tokens, special ones left out; of each class against the others, in equal
    numbers and each of the others alike, the k latents are taken whose mean over training texts differs
    most; a logistic regression of these is fitted, and judged on held-out texts.

    Otherwise than there: latents are standardized and the penalty is chosen of five on a fifth of the
    training texts (``fit_probe``; there scikit-learn's C = 1 of activations as they are, which is harder on
    those that are small); all held-out texts count, by balanced accuracy; outlier tokens are left out as
    special ones are; texts that the model reads alike are taken once, and not at all where they are of
    several classes; of two classes there is one probe; the probe of the whole activation is not chosen by the
    texts that it is judged on. Bits count 1, and of a code that is one-hot a text has the share of each code.

    Beside the latents: as many random ones of those that fire in a training text; those that differ most
    between labels that were shuffled, probed with the true ones, which are as large as the chosen; and,
    chosen as the latents are, dimensions of the activation and principal components of the texts' mean
    activations. A probe of the whole mean activation is what there is to be read.

    Args:
        model: HookedSAETransformer or SAETransformerBridge, decoder or encoder, with a fast tokenizer.
        dictionary: any SAELens SAE or transcoder, BAE, CLVQ-VAE, or ``Clusters``.
        dataset: labeled texts: a JSONL or CSV file, a dataset or its name, a DataFrame, rows by
            column, or ``LabeledTexts``.
        settings: the defaults if omitted, which take a sample of 2,000 texts (``max_examples``).
        test_dataset: held-out texts, alike; a share of ``dataset`` (``test_share``) if omitted.
        text_column: name of the column of texts; not for ``LabeledTexts``, nor are the next two.
        label_column: name of the column of labels.
        split: of a dataset that is given by name.
        verbose: show progress bars.

    Raises:
        ValueError: if the model lacks the hook point, the dictionary reads another width or has a code
            that depends on the batch, labels are missing or constant, a class has too few texts, held-out
            texts are among the training texts or have other classes, or there are fewer than k latents that
            fire, dimensions, or components.
        FileNotFoundError: if there is no such file.
    """
    coder = Coder(dictionary)
    settings = settings or SparseProbingSettings()
    multiple, outliers = multiple_of(settings.exclude_outlier_tokens), None
    if multiple is not None:
        outliers = saved_outlier_tokens(dictionary, [coder.hook_name], multiple)
    task = SparseProbingTask.prepare(
        model,
        coder.hook_name,
        dataset,
        settings,
        test_dataset=test_dataset,
        head_index=coder.head_index,
        outliers=outliers,
        text_column=text_column,
        label_column=label_column,
        split=split,
        verbose=verbose,
    )
    return probe_latents(task, dictionary)


def probe_latents(task: SparseProbingTask, dictionary: SAE[Any] | Clusters) -> SparseProbingResult:
    """``sparse_probing`` of texts that have been read.

    Raises:
        ValueError: if the dictionary reads another hook point, head or width, has a code that depends on
            the batch, or fewer than k latents fire; or there are fewer than k dimensions or components.
    """
    coder = Coder(dictionary)
    own, read = (coder.hook_name, coder.head_index), (task.hook_name, task.head_index)
    if own != read:
        raise ValueError(
            f"The dictionary reads {_place(*own)}, and the texts were read at {_place(*read)}."
        )
    settings, most = task.settings, max(task.settings.k)
    _check_k(most, task.mean_acts.shape[1], f"dimensions at {task.hook_name!r}")
    _check_k(most, task.components.shape[1], "principal components of the training texts")
    code = _mean_codes(task, coder)
    alive = np.flatnonzero(code[~task.is_test].getnnz(axis=0))
    _check_k(most, len(alive), f"of {coder.n_latents} latents that fire in a training text")
    rows = []
    for positive in task.positives:
        texts, is_own = task.training_texts(positive)
        order = _by_difference(task, code, texts, is_own)
        rng = np.random.default_rng([settings.seed, positive, 1])
        shuffled = [
            _by_difference(task, code, texts, rng.permutation(is_own))
            for _ in range(settings.n_draws)
        ]
        for k in settings.k:
            some = [rng.choice(alive, k, replace=False) for _ in range(settings.n_draws)]
            rows.append(_probed(task, code, positive, LATENTS, k, [order[:k]]))
            rows.append(_probed(task, code, positive, RANDOM, k, some))
            rows.append(_probed(task, code, positive, SHUFFLED, k, [o[:k] for o in shuffled]))
    labels = task.labels[~task.is_test]
    return SparseProbingResult(
        dictionary=coder.name,
        hook_name=task.hook_name,
        settings=settings,
        n_latents=coder.n_latents,
        n_alive=len(alive),
        label_names=tuple(task.label_names),
        n_train=tuple(np.bincount(labels, minlength=len(task.label_names)).tolist()),
        labels=tuple(task.labels[task.is_test].tolist()),
        rows=(*rows, *_rows_of_activations(task)),
        n_truncated=task.n_truncated,
        n_repeated=task.n_repeated,
        n_ambiguous=task.n_ambiguous,
        n_outlier_tokens=task.n_outlier_tokens,
        weights_sha256=coder.weights_sha256,
    )


def _rows_of_activations(task: SparseProbingTask) -> list[ProbeRow]:
    """Probes of dimensions, of principal components and of the whole activation, measured once a task."""
    key = "rows of activations"
    if key not in task.measured:
        task.measured[key] = []
        for positive in task.positives:
            for method, matrix in ((DIMENSIONS, task.mean_acts), (COMPONENTS, task.components)):
                order = _by_difference(task, matrix, *task.training_texts(positive))
                for k in task.settings.k:
                    task.measured[key].append(
                        _probed(task, matrix, positive, method, k, [order[:k]])
                    )
            every = np.arange(task.mean_acts.shape[1])
            task.measured[key].append(_probed(task, task.mean_acts, positive, WHOLE, None, [every]))
    return task.measured[key]


def _mean_codes(task: SparseProbingTask, coder: Coder) -> Any:
    """Sparse matrix ``[n, n_latents]``: the mean activations of latents over each text."""
    total: Any = sparse.csr_matrix((len(task.labels), coder.n_latents))
    for start in range(0, len(task.acts), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        code = coder.firings(task.acts[part])
        if coder.kind.is_one_hot:
            code.data[:] = 1  # In place of distances.
        total = total + task.averages[:, part] @ code
    return total.tocsr()


def _by_difference(
    task: SparseProbingTask,
    matrix: Any,
    texts: NDArray[np.int64],
    is_own: NDArray[np.bool_],
) -> NDArray[np.int64]:
    """Columns in the order of how much their means over two groups of texts differ."""
    own, others = matrix[texts[is_own]], matrix[texts[~is_own]]
    difference = np.abs(_mean(own) - _mean(others))
    if task.settings.chosen_by == "standardized":
        every = matrix[texts]
        std = np.sqrt((_mean(_squared(every)) - _mean(every) ** 2).clip(min=0))
        # One that never changes tells nothing.
        difference = np.divide(difference, std, out=np.zeros_like(std), where=std > 0)
    return (-difference).argsort(kind="stable")


def _mean(matrix: Any) -> NDArray[np.float64]:
    return np.asarray(matrix.mean(axis=0), dtype=np.float64).ravel()


def _squared(matrix: Any) -> Any:
    return matrix.multiply(matrix) if sparse.issparse(matrix) else matrix**2


def _probed(
    task: SparseProbingTask,
    matrix: Any,
    positive: int,
    method: str,
    k: int | None,
    draws: Sequence[NDArray[np.int64]],
) -> ProbeRow:
    """A probe of the columns of each draw."""
    texts, is_own = task.training_texts(positive)
    held_out = np.flatnonzero(task.is_test)
    truth = task.labels[held_out] == positive
    right = np.zeros(len(held_out), dtype=np.int64)
    for columns in draws:
        x = matrix[:, columns]
        x = torch.from_numpy(x.toarray() if sparse.issparse(x) else x)
        target = torch.from_numpy(is_own).long()
        probe = fit_probe(x[texts], target, 2, "logistic", task.settings.seed)
        right += probe.predict(x[held_out]).numpy() == truth
    is_one = len(draws) == 1 and k is not None and method not in (RANDOM, SHUFFLED)
    chosen = tuple(draws[0].tolist()) if is_one else ()
    return ProbeRow(positive, method, k, chosen, len(draws), tuple(right.tolist()))


def _check_k(k: int, n: int, of: str) -> None:
    if k > n:
        raise ValueError(
            f"k is {k}, and there are {n} {of}. Choose a smaller k, or give more texts."
        )


def _place(hook_name: str, head_index: int | None) -> str:
    return repr(hook_name) if head_index is None else f"head {head_index} of {hook_name!r}"
