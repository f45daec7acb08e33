"""A corpus as blocks of tokens, with what fires at each and the text around it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from sae_lens import ActivationsStore
from scipy import sparse
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformer_lens.HookedRootModule import HookedRootModule

from bae_lens.activations.first_tokens import first_tokens, warn_if_text_ended
from bae_lens.activations.held_out import held_out_store
from bae_lens.activations.hook_points import take_heads
from bae_lens.activations.outlier_tokens import OutlierTokens
from bae_lens.activations.rank_share import own_text
from bae_lens.activations.sentence_store import SentenceStore
from bae_lens.activations.text_batch import MaskedTextStore, TextBatch, read_hooks
from bae_lens.activations.text_store import Progress
from bae_lens.activations.texts import check_text
from bae_lens.dictionaries import Clusters
from bae_lens.distributed import rank
from bae_lens.examples.coder import Coder
from bae_lens.examples.records import ExampleSettings

logger = logging.getLogger(__name__)

# Tokens of a block, and entries of its code as a dense matrix, at most.
_MAX_BLOCK, _MAX_DENSE = 4096, 2**24
# In a window: no token there; and none there that counts.
NOTHING = -1
AWAY = np.int32(2**31 - 1)


@dataclass(frozen=True, eq=False)
class TokenBlock:
    """Tokens that count, in the order they are read.

    Attributes:
        firings: sparse matrix ``[n, n_latents]``, see ``Coder.firings``.
        tokens: ``[n]``, ids.
        places: ``[n]``, see ``place_dtype``.
        classes: ``[n]``, class of each token's text; −1 without labels.
        margins: ``[n, n_latents]``, of bits, see ``Coder.firings_with_margins``; None of other codes.
        n_left_out: ``[n]``, outlier tokens between each and the one before; None where none are left
            out.
        steps: ``[n, n_left + 1 + n_right]``, how many tokens that count each token of a window is after
            the marked one; ``AWAY`` for one that does not count. None where that is not known.
        around: more tokens, so many that every window is among them, and which of them is the block's first;
            None where there are no others.
    """

    firings: Any
    tokens: NDArray[np.int64]
    places: NDArray[Any]
    classes: NDArray[np.int64]
    margins: NDArray[np.float16] | None = None
    n_left_out: NDArray[np.int64] | None = None
    steps: NDArray[np.int32] | None = None
    around: tuple[TokenBlock, int] | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, part: slice) -> TokenBlock:
        """Some of the tokens, without those around them."""
        return TokenBlock(
            self.firings[part],
            self.tokens[part],
            self.places[part],
            self.classes[part],
            None if self.margins is None else self.margins[part],
            None if self.n_left_out is None else self.n_left_out[part],
            None if self.steps is None else self.steps[part],
        )

    @classmethod
    def joined(cls, blocks: Sequence[TokenBlock]) -> TokenBlock:
        """Several as one."""
        margins = [block.margins for block in blocks if block.margins is not None]
        left_out = [block.n_left_out for block in blocks if block.n_left_out is not None]
        steps = [block.steps for block in blocks if block.steps is not None]
        return cls(
            sparse.vstack([block.firings for block in blocks], format="csr"),
            np.concatenate([block.tokens for block in blocks]),
            np.concatenate([block.places for block in blocks]),
            np.concatenate([block.classes for block in blocks]),
            np.concatenate(margins) if margins else None,
            np.concatenate(left_out) if left_out else None,
            np.concatenate(steps) if steps else None,
        )


def place_dtype(settings: ExampleSettings) -> np.dtype[Any]:
    """The record of where a token stands: text, position in its sequence, and the window of tokens around it."""
    width = settings.n_left + 1 + settings.n_right
    return np.dtype([("text", np.int64), ("position", np.int32), ("window", np.int32, (width,))])


@dataclass(frozen=True, eq=False)
class Texts:
    """Sequences of tokens, one after the other.

    Attributes:
        store: gives them.
        batch_size: sequences per forward pass.
        order: which text of the dataset each of the store's is; None: they are the same.
        classes: class of each text of the dataset; None without labels.
        special_tokens: ids of tokens that do not count.
        outliers: tokens that do not count either, by their norm; None: all do.
        n_ranks: of which each has sequences of its own.
    """

    store: ActivationsStore | MaskedTextStore
    batch_size: int
    order: NDArray[np.int64] | None
    classes: NDArray[np.int64] | None
    special_tokens: Sequence[int]
    outliers: OutlierTokens | None = None
    n_ranks: int = 1

    @classmethod
    def open(
        cls,
        source: Any,
        coder: Coder,
        model: HookedRootModule,
        settings: ExampleSettings,
        special_tokens: Sequence[int],
        classes: NDArray[np.int64] | None = None,
        n_ranks: int = 1,
    ) -> Texts:
        """From a store, a dataset, its name, or a list of texts, see ``collect_examples``; of several ranks
        this one's share.

        Raises:
            ValueError: if there are labels and not one for each text, or texts are joined so that
                they are not of one text.
        """
        order = None
        n_all = _n_rows(source)
        if hasattr(source, "get_batch") or hasattr(source, "get_batch_tokens"):
            store, batch_size = source, getattr(source, "store_batch_size_prompts", None)
        else:
            source, order = _shuffled(source, settings.seed, n_ranks)
            if n_ranks > 1 and order is None and classes is not None:
                raise ValueError(
                    "labels are of a dataset or a list of texts where several processes read it: rows of a "
                    "stream are not numbered then."
                )
            store = _store_of(
                source,
                coder,
                model,
                settings,
                are_labeled=classes is not None,
                all_ranks=n_ranks > 1 and order is None,
            )
            batch_size = settings.batch_size
        if not isinstance(store, SentenceStore):
            order = None
            if classes is not None:
                raise ValueError(
                    "labels are of texts, and this store joins texts into sequences. Give the "
                    "dataset itself or a SentenceStore, so that each text is read by itself."
                )
        elif classes is not None and hasattr(store.dataset, "__len__"):
            # Of a rank's share of a dataset too the labels are those of all of it.
            n_texts = len(store.dataset) if n_all is None else n_all  # pyright: ignore[reportArgumentType]
            if n_texts != len(classes):
                raise ValueError(
                    f"There must be one label per text; got {len(classes)} labels for {n_texts} texts."
                )
        if hasattr(store, "get_batch"):
            # Others go on where they are.
            store.reset_input_dataset()
        batch_size = batch_size or settings.batch_size
        return cls(store, batch_size, order, classes, special_tokens, n_ranks=n_ranks)

    def batches(self) -> Iterator[tuple[TextBatch, NDArray[np.int64]]]:
        """Batches, the last one smaller, and which text each of its sequences is."""
        sequences = self._sequences()
        while batch := list(islice(sequences, self.batch_size)):
            rows, texts = zip(*batch, strict=True)
            yield _collated(rows), np.array(texts)

    def classes_of(self, texts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Class of each text, −1 without labels."""
        if self.classes is None:
            return np.full(len(texts), -1)
        if texts.max() >= len(self.classes):
            raise ValueError(
                f"There must be one label per text; got {len(self.classes)} labels, and there is a "
                f"text {texts.max()}."
            )
        return self.classes[texts]

    def _sequences(self) -> Iterator[tuple[TextBatch, int]]:
        """One at a time, since a store may lose the beginning of a batch where the text ends, and
        which texts a store has passed over can be told in no other way."""
        n_served = 0
        while True:
            try:
                sequence = TextBatch.read(self.store, self.special_tokens, 1, True)
            except StopIteration:
                return
            store = self.store
            text = store.n_texts_read - 1 if isinstance(store, SentenceStore) else n_served
            if self.order is not None:
                text = int(self.order[text])
            elif self.n_ranks > 1:
                text = text * self.n_ranks + rank()
            yield sequence, text
            n_served += 1


def token_blocks(
    texts: Texts,
    coder: Coder,
    model: HookedRootModule,
    settings: ExampleSettings,
    model_kwargs: Mapping[str, Any] | None = None,
    verbose: bool = False,
) -> Iterator[TokenBlock]:
    """The corpus in blocks of a size that does not depend on how it is batched, the last one smaller.

    Raises:
        ValueError: if the model lacks the hook point, or its activations have another width than the
            dictionary's, or no token is left after special ones are taken out.
    """
    size = max(1, min(_MAX_BLOCK, _MAX_DENSE // coder.n_latents))
    pieces = _pieces(texts, coder, model, settings, model_kwargs)
    pieces = _first(settings.n_tokens, pieces, verbose)
    return _recut(pieces, size, settings.n_left, settings.n_right)


@torch.no_grad()
def _pieces(
    texts: Texts,
    coder: Coder,
    model: HookedRootModule,
    settings: ExampleSettings,
    model_kwargs: Mapping[str, Any] | None,
) -> Iterator[TokenBlock]:
    """One block per batch."""
    progress = Progress()
    n_waiting = 0  # Outliers after the last token of a batch that counts.
    for batch, text_of_row in texts.batches():
        progress.see(int(batch.valid.sum()))
        _, [acts] = read_hooks(model, batch, [coder.hook_name], model_kwargs)
        acts = take_heads(acts, coder.head_index)
        n_left_out = None
        if texts.outliers is not None:
            outliers = texts.outliers.mask(acts, coder.hook_name).to(batch.valid.device)
            is_out = outliers[batch.valid].cpu().numpy()
            n_before = n_waiting + np.cumsum(is_out)
            n_left_out = np.diff(n_before[~is_out], prepend=0)
            n_waiting += int(is_out.sum() - n_left_out.sum())
            batch = batch._replace(valid=batch.valid & ~outliers)
        x = acts[batch.valid.to(acts.device)]
        if len(x) == 0:
            continue
        rows, positions = (i.cpu().numpy() for i in batch.valid.nonzero(as_tuple=True))
        places = np.empty(len(rows), dtype=place_dtype(settings))
        places["text"], places["position"] = text_of_row[rows], positions
        tokens = batch.tokens
        if batch.attention_mask is not None:
            tokens = torch.where(batch.attention_mask, tokens, NOTHING)
        places["window"] = _windows(tokens, settings, NOTHING)[rows, positions]
        counts = _windows(batch.valid, settings, False)[rows, positions]
        order = np.cumsum(counts, axis=1, dtype=np.int32)
        firings, margins = coder.firings_with_margins(x)
        yield TokenBlock(
            firings,
            batch.tokens[batch.valid].cpu().numpy(),
            places,
            texts.classes_of(text_of_row)[rows],
            margins,
            n_left_out,
            np.where(counts, order - order[:, settings.n_left, None], AWAY),
        )


def _windows(values: Tensor, settings: ExampleSettings, nothing: int) -> NDArray[Any]:
    """What the tokens around each have, ``[batch, pos, n_left + 1 + n_right]``, as a view."""
    margins = ((0, 0), (settings.n_left, settings.n_right))
    padded = np.pad(values.cpu().numpy(), margins, constant_values=nothing)
    width = settings.n_left + 1 + settings.n_right
    return np.lib.stride_tricks.sliding_window_view(padded, width, axis=1)


def _first(
    n_tokens: int | None, pieces: Iterable[TokenBlock], verbose: bool
) -> Iterator[TokenBlock]:
    """The first tokens of blocks; what is missing is logged."""
    n_read = 0
    for piece in first_tokens(pieces, n_tokens, "Examples", verbose=verbose):
        n_read += len(piece)
        yield piece
    warn_if_text_ended(n_read, n_tokens)


def _recut(
    pieces: Iterable[TokenBlock], size: int, n_left: int, n_right: int
) -> Iterator[TokenBlock]:
    """Blocks of one size, the last one smaller, each with the tokens around it that its windows reach to."""
    held: list[TokenBlock] = []
    n_held, begin = 0, 0  # Of those held, the first that no block has had.

    def cut(end: int) -> TokenBlock:
        around = TokenBlock.joined(_between(held, 0, min(end + n_right, n_held)))
        return replace(around[begin:end], around=(around, begin))

    for piece in pieces:
        held.append(piece)
        n_held += len(piece)
        while n_held >= begin + size + n_right:
            yield cut(begin + size)
            begin += size
            done = max(0, begin - n_left)
            held = _between(held, done, n_held)
            n_held, begin = n_held - done, begin - done
    while begin < n_held:
        end = min(begin + size, n_held)
        yield cut(end)
        begin = end


def _between(pieces: Iterable[TokenBlock], begin: int, end: int) -> list[TokenBlock]:
    """Those of the tokens of several pieces."""
    parts = []
    for piece in pieces:
        if begin < len(piece) and end > 0:
            parts.append(piece[max(begin, 0) : min(end, len(piece))])
        begin, end = begin - len(piece), end - len(piece)
    return parts


def _n_rows(source: Any) -> int | None:
    """Rows of what can be shuffled."""
    return len(source) if isinstance(source, (list, tuple, Dataset)) else None


def _shuffled(source: Any, seed: int, n_ranks: int = 1) -> tuple[Any, NDArray[np.int64] | None]:
    """A dataset in random order, so that the first n tokens are from all over it, of several ranks this one's
    part of that; what cannot be shuffled (a name, a stream) as it is."""
    is_list = isinstance(source, (list, tuple))
    if is_list:
        # Their numbers are not those of the shuffled ones.
        for i, text in enumerate(source):
            if isinstance(text, str):
                check_text(text, f"Text {i}")
    if not is_list and not isinstance(source, Dataset):
        return source, None
    order = np.random.default_rng(seed).permutation(len(source))
    if n_ranks > 1:
        order = np.array(own_text(order.tolist()), dtype=np.int64)
    return [source[i] for i in order] if is_list else source.select(order), order


def _store_of(
    source: Any,
    coder: Coder,
    model: HookedRootModule,
    settings: ExampleSettings,
    are_labeled: bool,
    all_ranks: bool = False,
) -> ActivationsStore | MaskedTextStore:
    """A store of a dataset or its name, read as in training, or with each text by itself."""
    dictionary = coder.source
    is_list = isinstance(source, list)
    if not (isinstance(dictionary, Clusters) or are_labeled or is_list):
        return held_out_store(dictionary, model, source, settings.batch_size, all_ranks)
    if source is None:
        raise ValueError(
            "Texts are read by themselves, with labels and for clusters: give a dataset or a list of "
            "texts; got None."
        )
    n_ctx: int = model.cfg.n_ctx  # pyright: ignore[reportAttributeAccessIssue, reportAssignmentType]
    context_size = min(coder.context_size or n_ctx, n_ctx)
    source = own_text(source) if all_ranks else source
    return SentenceStore(
        model,
        source,
        [coder.hook_name],
        context_size=context_size,
        prepend_bos=coder.prepend_bos,
    )


def _collated(rows: Sequence[TextBatch]) -> TextBatch:
    """One batch of sequences, padded on the right."""

    def padded(parts: Iterable[Tensor]) -> Tensor:
        # Any id would do for padding: what is no token is told by the mask alone.
        return pad_sequence([part[0] for part in parts], batch_first=True)

    tokens, valid = padded(row.tokens for row in rows), padded(row.valid for row in rows)
    masks = [row.attention_mask for row in rows if row.attention_mask is not None]
    return TextBatch(tokens, valid, padded(masks) if masks else None)


def class_numbers(labels: Sequence[Any]) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Names of the classes, numbers in their own order, and the class of each text."""
    plain = np.asarray(labels).tolist()
    wrong = [label for label in plain if not isinstance(label, (str, int))]
    if wrong:
        raise ValueError(f"labels must be one whole number or name a text; got {wrong[0]!r}.")
    are_numbers = all(isinstance(label, int) for label in plain)
    names = sorted(set(plain)) if are_numbers else sorted(set(map(str, plain)))
    number_of = {name: i for i, name in enumerate(names)}
    numbers = [number_of[label if are_numbers else str(label)] for label in plain]
    return tuple(map(str, names)), np.array(numbers, dtype=np.int64)


def margins_of(block: TokenBlock) -> NDArray[np.float16]:
    """All alike where they are not known: the strongest are then random."""
    if block.margins is not None:
        return block.margins
    return np.broadcast_to(np.float16(1), block.firings.shape)
