"""One pass over a corpus that collects what there is to see of each latent."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from datasets import Dataset, IterableDataset
from sae_lens import SAE, ActivationsStore
from sae_lens.training.activation_scaler import ActivationScaler
from transformer_lens.HookedRootModule import HookedRootModule

from bae_lens.activations.outlier_tokens import OutlierTokens
from bae_lens.activations.rank_share import own_number
from bae_lens.activations.reference_norms import outlier_tokens_of, warn_of_many
from bae_lens.activations.special_tokens import special_token_ids
from bae_lens.activations.text_batch import MaskedTextStore
from bae_lens.dictionaries import Clusters
from bae_lens.distributed import from_first, gather_merge, n_ranks, on_every_rank, rank
from bae_lens.examples.coder import Coder
from bae_lens.examples.collector import Collector
from bae_lens.examples.corpus import Texts, class_numbers, token_blocks
from bae_lens.examples.lemmas import load_simplemma
from bae_lens.examples.records import ExampleSettings, LatentRecords, LeftOut
from bae_lens.examples.token_text import TokenStrings

logger = logging.getLogger(__name__)

# Between the numbers of two ranks' tokens.
_FAR = 2**40


def collect_examples(
    model: HookedRootModule,
    dictionary: SAE[Any] | Clusters,
    source: ActivationsStore
    | MaskedTextStore
    | Dataset
    | IterableDataset
    | Sequence[str]
    | str
    | None,
    settings: ExampleSettings | None = None,
    *,
    labels: Sequence[Any] | None = None,
    activation_scaler: ActivationScaler | None = None,
    exclude_special_tokens: bool | Iterable[int] = True,
    exclude_outlier_tokens: bool | float | OutlierTokens = True,
    model_kwargs: Mapping[str, Any] | None = None,
    verbose: bool = False,
    all_ranks: bool = False,
) -> LatentRecords:
    """Examples, tokens, neighbors and classes of each latent or code, from one pass over a corpus.

    The same seed gives the same examples, however the corpus is batched (but for rounding in the
    model, which may differ with the size of a batch). Memory does not grow with the corpus: an
    example is 8 bytes a token of its window (its id, and what the latent has there) and 24 more, of which
    there are ``n_strongest + n_random`` a latent, of one-bit codes twice ``2 n_strongest + n_random``: by
    default 73 MB of 16,384 latents, 220 MB of as many bits. The margins of a block of bits are 32 MB, twice
    while it is cut out; see also ``TokenCounts`` (which counts bins of activations as well), ``PairCounts``
    and ``CorpusSample``.

    Args:
        model: a HookedTransformer, TransformerBridge or another model with their interface.
        dictionary: an SAE, transcoder, BAE, CLVQ-VAE or VQ-VAE, or clusters. A BatchTopK SAE in
            training has to be converted first, see ``Coder``.
        source: the corpus. A list of texts is read text by text; a dataset or its name as the
            dictionary was trained (``held_out_store``; None: on the dataset in its metadata), or
            text by text with labels and for clusters; both in random order, so that ``n_tokens`` are
            from all over it. A store, or a dataset that streams, is read in its own order.
        settings: what to collect.
        labels: class of each text, in the order of the dataset: numbers or names.
        activation_scaler: as SAELens trains with, while it is not folded in yet.
        exclude_special_tokens: as in SAELens: those tokens do not count.
        exclude_outlier_tokens: nor do attention sinks other than BOS, told by their norm at the hook
            point that is read: see ``bae_lens.activations.reference_norms.outlier_tokens_of``. False: they do.
        model_kwargs: passed to the model.
        verbose: show a progress bar.
        all_ranks: every rank of a process group calls this with the same arguments, reads its share of the
            corpus (of a store its own), and returns the records of all of them. Random examples are others
            then, texts of a stream or of joined texts are numbered through all ranks, and outliers are told
            by rank 0's norms.

    Raises:
        ImportError: if lemmas are asked for and simplemma is missing.
        ValueError: if there is not one label per text, the model lacks the dictionary's hook point or
            has activations of another width there, its code depends on the batch, or there is no token
            that counts.
    """
    settings = settings or ExampleSettings()
    coder = Coder(dictionary, activation_scaler or ActivationScaler())
    if settings.lemmas is not None:
        load_simplemma()  # Rather now than after the pass.
    special = special_token_ids(model, exclude_special_tokens)
    names, classes = (None, None) if labels is None else class_numbers(labels)
    ranks = n_ranks() if all_ranks else 1
    with on_every_rank() if ranks > 1 else nullcontext():
        texts = Texts.open(source, coder, model, settings, special, classes, ranks)
    outliers = outlier_tokens_of(
        exclude_outlier_tokens,
        dictionary,
        texts.store,
        model,
        special,
        model_kwargs,
        {coder.hook_name: coder.head_index},
    )
    own = settings
    if ranks > 1:
        outliers = from_first(outliers)
        n = settings.n_tokens
        own = replace(settings, n_tokens=None if n is None else max(1, own_number(n)))
    texts = replace(texts, outliers=outliers)
    collector = Collector(
        coder.n_latents, coder.strength, settings, len(names or ()), coder.level_values
    )
    if ranks > 1:
        collector.first_token = rank() * _FAR
    for block in token_blocks(texts, coder, model, own, model_kwargs, verbose):
        collector.update(block)
    if ranks > 1:
        collector = gather_merge(collector)
    if collector.n_tokens == 0:
        raise ValueError(
            "There is no token that counts: the text is empty, or all of it is special tokens or "
            "outliers."
        )
    left_out = None
    if outliers is not None:
        norm = outliers.reference_norms[coder.hook_name]
        left_out = LeftOut(collector.n_left_out, norm, outliers.multiple)
        warn_of_many(left_out.n, collector.n_tokens + left_out.n, outliers)
    strings = TokenStrings(getattr(model, "tokenizer", None))
    latents = collector.latents(coder, strings)
    shares = collector.class_totals / collector.n_tokens
    return LatentRecords(
        dictionary=coder.name,
        hook_name=coder.hook_name,
        strength=coder.strength,
        neighbor_measure="distance" if coder.strength == "nearness" else "phi",
        n_tokens=collector.n_tokens,
        n_texts=collector.n_texts,
        settings=settings,
        latents=tuple(latents),
        class_names=names,
        class_shares=None if names is None else tuple(shares.tolist()),
        corpus_tokens=collector.corpus_tokens(strings),
        outliers=left_out,
        weights_sha256=coder.weights_sha256,
    )
