"""SAELens' store of text and activations, which says what it leaves out and ends where nothing is left."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from datasets import DatasetDict, IterableDatasetDict
from sae_lens import ActivationsStore
from torch import Tensor
from typing_extensions import Self, override

from bae_lens.activations.rank_share import OwnNumbers
from bae_lens.activations.special_tokens import special_token_ids
from bae_lens.activations.texts import MissingTexts, check_readable, check_text, is_missing
from bae_lens.activations.token_ids import context_of
from bae_lens.distributed import n_ranks

logger = logging.getLogger(__name__)

# Batches in a row without any token that counts, after which there is no hope.
MOST_EMPTY = 100
# Texts after which it is decided, or at the end of the text, whether too many are dropped.
_ENOUGH_TEXTS = 1000
MOST_DROPPED = 0.95


class TextStore(ActivationsStore):
    """SAELens' ``ActivationsStore``, where it would hang, crash or be silent.

    * Missing texts (None, NaN, empty) are passed over and counted; what is no text, or no token of the
      model's, is refused with its row and value.
    * Texts that are dropped whole, since they are shorter than the context and are not to be joined
      (``disable_concat_sequences``), are counted; where more than 95 % are, the store refuses.
    * A text of which no token is left after special ones are taken out raises, as does one that is too
      short for a single context. SAELens reads it again for ever.
    * The last contexts of a text are served in a smaller batch. SAELens loses those that do not fill one.
    """

    @classmethod
    def of(cls, store: ActivationsStore) -> Self:
        """The same store, of which nothing has been read."""
        text_store = cls.__new__(cls)
        vars(text_store).update(vars(store))
        text_store._begin()
        return text_store

    @override
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._begin()

    def _begin(self) -> None:
        self._n_passes = 0
        self._is_at_end = False
        self._missing: MissingTexts | None = None
        self._progress = Progress(describe_positions(self))
        if self.dataset is not None:
            self._missing = MissingTexts(self.tokens_column)
            self.iterable_sequences = self._iterate_tokenized_sequences()

    # Text

    @override
    def _iterate_tokenized_sequences(self) -> Generator[Tensor, None, None]:
        self._counts = _Counts()
        n_sequences = 0
        for sequence in super()._iterate_tokenized_sequences():
            n_sequences += 1
            yield sequence
        counts, self._n_passes = self._counts, self._n_passes + 1
        if self._n_passes == 1:
            self._say_what_was_left_out()
        if n_sequences == 0:
            raise ValueError(_why_nothing(counts, self.context_size, self.tokens_column))

    @override
    def _iterate_raw_dataset(self) -> Generator[Any, None, None]:
        assert self.dataset is not None
        counts = self._counts
        for row in self.dataset:
            counts.n_rows += 1
            value = self._checked(row, counts)
            if value is not None:
                yield value
            # As SAELens counts: once the next one is asked for.
            self.n_dataset_processed += 1

    def _checked(self, row: Any, counts: _Counts) -> Any:
        """What is in the row's column; None where it is passed over."""
        value = row.get(self.tokens_column) if isinstance(row, Mapping) else row
        # A tensor is not missing.
        if not isinstance(value, Tensor) and is_missing(value):
            counts.n_missing += 1
            assert self._missing is not None
            self._missing.pass_over(counts.n_rows)
            return None
        what = f"The {self.tokens_column!r} of row {counts.n_rows}"
        if self.is_dataset_tokenized:
            return self._checked_tokens(value, what, counts)
        if self.use_chat_formatting and not isinstance(value, str):
            return value
        return check_text(value, what)

    def _checked_tokens(self, value: Any, what: str, counts: _Counts) -> list[int] | None:
        n_tokens: Any = getattr(getattr(self.model, "cfg", None), "d_vocab", None)
        highest = n_tokens - 1 if isinstance(n_tokens, int) and n_tokens > 0 else 2**63 - 1
        try:
            ids = torch.as_tensor(value)
            if ids.numel() == 0:
                ids = ids.long()
            elif ids.is_floating_point() or not 0 <= int(ids.min()) <= int(ids.max()) <= highest:
                raise ValueError
            ids = ids.tolist()
            counts.see(len(ids), self.context_size)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"{what} has to be token ids, whole numbers from 0 to {highest}; got "
                f"{ascii(value)[:60]}."
            ) from error
        self._refuse_if_most_are_dropped(counts)
        return ids if len(ids) >= self.context_size else None

    @override
    def _iterate_raw_dataset_tokens(self) -> Generator[Tensor, None, None]:
        tokenizer = getattr(self.model, "tokenizer", None)
        bos = tokenizer.bos_token_id if tokenizer is not None and self.prepend_bos else None
        counts = self._counts
        for tokens in super()._iterate_raw_dataset_tokens():
            tokens = tokens.long()  # Of no text at all they are floats.
            if self.disable_concat_sequences:
                adds_bos = bos is not None and len(tokens) > 0 and int(tokens[0]) != bos
                counts.see(len(tokens), self.context_size - adds_bos)
                self._refuse_if_most_are_dropped(counts)
            else:
                counts.see(len(tokens), 0)
            yield tokens

    def _refuse_if_most_are_dropped(self, counts: _Counts) -> None:
        if self._n_passes == 0 and counts.n_texts == _ENOUGH_TEXTS and counts.are_most_short:
            raise ValueError(_why_dropped(counts, self.context_size))

    def _say_what_was_left_out(self) -> None:
        """Log, or refuse, what was left out; called once, at the end of the first pass."""
        counts = self._counts
        if self._missing is not None:
            self._missing.at_end(counts.n_rows)
        if counts.n_short == 0:
            return
        if counts.are_most_short and counts.n_texts < _ENOUGH_TEXTS:
            raise ValueError(_why_dropped(counts, self.context_size))
        logger.warning(
            "%d of %d texts, %d of %d tokens, were dropped: they are shorter than the context of %d tokens, "
            "and texts are not joined (disable_concat_sequences).",
            *(counts.n_short, counts.n_texts, counts.n_short_tokens, counts.n_tokens),
            self.context_size,
        )

    @override
    def get_batch_tokens(
        self,
        batch_size: int | None = None,
        raise_at_epoch_end: bool = False,
        move_to_model_device: bool = True,
    ) -> Tensor:
        was_at_end, self._is_at_end = self._is_at_end, False
        if was_at_end and raise_at_epoch_end:
            raise StopIteration(f"The text ended after {self.n_dataset_processed} samples.")
        sequences: list[Tensor] = []
        while len(sequences) < (batch_size or self.store_batch_size_prompts):
            try:
                sequences.append(super().get_batch_tokens(1, True, move_to_model_device))
            except StopIteration:
                # A pass without any sequence has raised another error, so that this one ends.
                if not raise_at_epoch_end:
                    continue
                if not sequences:
                    raise
                self._is_at_end = True
                break
        return torch.cat(sequences)

    # Activations

    @override
    def get_data_loader(self) -> Iterator[Any]:
        batches = super().get_data_loader()
        return batches if n_ranks() == 1 else OwnNumbers(batches)

    @override
    def get_filtered_llm_batch(self, raise_on_epoch_end: bool = False) -> Tensor:
        try:
            batch = super().get_filtered_llm_batch(raise_on_epoch_end)
        except StopIteration:
            self._progress.at_end()
            raise
        self._progress.see(len(batch))
        return batch


class Progress:
    """Ends what reads until there is enough, where nothing comes.

    Args:
        settings: that decide which tokens count, for the message.
    """

    def __init__(self, settings: str = "") -> None:
        self._settings = f" ({settings})" if settings else ""
        self._n_empty = self._n_batches = 0
        self._is_barren = True

    def see(self, n_tokens: int) -> None:
        """After each batch, with how many of its tokens count.

        Raises:
            ValueError: if there was none in a hundred batches in a row.
        """
        self._n_batches += 1
        self._is_barren &= n_tokens == 0
        self._n_empty = 0 if n_tokens > 0 else self._n_empty + 1
        if self._n_empty >= MOST_EMPTY:
            self._raise(f"{self._n_empty} batches in a row had none")

    def at_end(self) -> None:
        """At the end of each pass over the text.

        Raises:
            ValueError: if there was none in the whole of it.
        """
        if self._is_barren and self._n_batches > 0:
            self._raise(f"the whole text, {self._n_batches} batches, had none")
        self._n_batches, self._is_barren = 0, True

    def _raise(self, found: str) -> None:
        raise ValueError(
            f"No token is left after special ones are taken out: {found}{self._settings}. Look at the "
            "text, exclude_special_tokens, context_size and seqpos_slice."
        )


def check_dataset(dataset: Any) -> None:
    """That SAELens' store can read a dataset: rows by column, at least one, more than once.

    Raises:
        ValueError: if not.
    """
    if isinstance(dataset, str):
        return
    check_readable(dataset)
    if isinstance(dataset, (dict, DatasetDict, IterableDatasetDict)):
        raise ValueError(
            f"dataset has to be one split; got the splits {', '.join(map(str, dataset))}. "
            "Give one of them."
        )
    none = object()
    first: Any = next(iter(dataset), none)
    if first is none:
        raise ValueError("The dataset is empty: it has no rows.")
    if not isinstance(first, Mapping):
        raise ValueError(
            f"Rows of the dataset have to have columns, such as 'text'; the first is a "
            f"{type(first).__name__}. Give datasets.Dataset.from_dict({{'text': texts}})."
        )
    for name in ("tokens", "input_ids"):
        if name in first and not hasattr(first[name], "__len__"):
            raise ValueError(
                f"The {name!r} of row 1 has to be token ids; got {ascii(first[name])[:60]}."
            )


def check_text_settings(settings: Any, model: Any, dataset: Any) -> list[int]:
    """That a dataset can be read, and that the settings of a run or of an SAE leave tokens in it.

    Args:
        settings: a runner's config or an SAE's metadata.
        model: the language model.
        dataset: that is read, or its name, or None.

    Returns:
        Token ids that do not count.

    Raises:
        ValueError: if not, or contexts are longer than the model's.
    """
    if dataset is not None:
        check_dataset(dataset)
    excluded = special_token_ids(model, settings.exclude_special_tokens)
    bos = getattr(getattr(model, "tokenizer", None), "bos_token_id", None)
    n_ctx = context_of(model)
    if settings.context_size is not None:
        if n_ctx is not None and settings.context_size > n_ctx:
            raise ValueError(
                f"context_size is {settings.context_size}, and the model reads {n_ctx} tokens at most. Lower it in "
                "the config, or in the SAE's metadata where it is read from there."
            )
        check_positions(
            settings.context_size, settings.seqpos_slice, bool(settings.prepend_bos), excluded, bos
        )
    return excluded


def check_positions(
    context_size: int,
    seqpos_slice: Sequence[int | None] | None,
    prepend_bos: bool,
    excluded: bool | Iterable[int],
    bos: int | None = None,
) -> None:
    """That a position is left in each context, of those that BOS is not known to be at.

    Args:
        context_size: tokens of a context.
        seqpos_slice: which of its positions are kept.
        prepend_bos: whether it begins with BOS.
        excluded: see SAELens' ``exclude_special_tokens``.
        bos: token id, if known.

    Raises:
        ValueError: if none is.
    """
    seqpos_slice = tuple(seqpos_slice or (None,))
    kept = list(range(context_size)[slice(*seqpos_slice)])
    is_bos_out = excluded is True or (excluded is not False and bos in set(excluded or ()))
    if not kept:
        raise ValueError(
            f"seqpos_slice {seqpos_slice} leaves none of the {context_size} positions of a context "
            "(context_size). Change one of them."
        )
    if prepend_bos and is_bos_out and kept == [0]:
        raise ValueError(
            f"No token is left: of each context only position 0 is kept (context_size {context_size}, "
            f"seqpos_slice {seqpos_slice}), which is BOS (prepend_bos), and exclude_special_tokens takes "
            "that out. Raise context_size."
        )


def describe_positions(store: Any) -> str:
    """The settings of a store that decide which tokens count, for messages."""
    excluded = getattr(store, "exclude_special_tokens", None)
    n_excluded = 0 if excluded is None else len(excluded)
    named = [f"exclude_special_tokens names {n_excluded}"]
    for name in ("context_size", "seqpos_slice", "prepend_bos"):
        if getattr(store, name, None) is not None:
            named.append(f"{name} is {getattr(store, name)}")
    return ", ".join(named)


class _Counts:
    """Counts of what one pass over the text has read and dropped."""

    def __init__(self) -> None:
        self.n_rows = self.n_missing = 0
        self.n_texts = self.n_tokens = 0
        self.n_short = self.n_short_tokens = 0

    def see(self, n_tokens: int, n_needed: int) -> None:
        self.n_texts += 1
        self.n_tokens += n_tokens
        if n_tokens < n_needed:
            self.n_short += 1
            self.n_short_tokens += n_tokens

    @property
    def are_most_short(self) -> bool:
        return self.n_short > MOST_DROPPED * self.n_texts


def _why_dropped(counts: _Counts, context_size: int) -> str:
    return (
        f"{counts.n_short} of the first {counts.n_texts} texts are shorter than the context of "
        f"{context_size} tokens and would be dropped whole, since texts are not joined "
        f"(disable_concat_sequences); more than {MOST_DROPPED:.0%} is too many. Lower context_size, or let "
        "texts be joined: disable_concat_sequences=False."
    )


def _why_nothing(counts: _Counts, context_size: int, column: str) -> str:
    if counts.n_rows == 0:
        return "The dataset is empty: it has no rows."
    if counts.n_missing == counts.n_rows:
        return f"All {counts.n_rows} rows have no text in the column {column!r}."
    return (
        f"The text is too short for one context of {context_size} tokens (context_size): all "
        f"{counts.n_texts} texts together have {counts.n_tokens}."
    )
