"""Texts that are each a sequence of their own, with the attention mask that padding asks for."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset, IterableDataset
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from bae_lens.activations.paired_batch import PairedBatch
from bae_lens.activations.special_tokens import special_token_mask, text_start
from bae_lens.activations.store_state import load_count, save_count
from bae_lens.activations.text_batch import TextBatch, read_hooks
from bae_lens.activations.texts import MissingTexts, check_readable, check_text, is_missing
from bae_lens.checks.fields import check, whole
from bae_lens.loading.classifiers import class_names

# The first of these that a dataset has is read: SAELens' two, and what sentence datasets call theirs.
_COLUMNS = ("text", "sentence", "problem")
_SHORTEST = 3  # [CLS], one token, [SEP]


class Sentences(NamedTuple):
    """A batch of texts.

    Attributes:
        tokens: token ids, padded on the right to the longest text of the batch.
        attention_mask: True where there is a token.
    """

    tokens: Int[Tensor, "batch pos"]
    attention_mask: Bool[Tensor, "batch pos"]


class SentenceStore:
    """What SAELens' ``ActivationsStore`` is for a stream of tokens, for texts of their own.

    SAELens' store joins texts and cuts them into equal pieces, which an encoder reads as one text,
    and knows no attention mask. Here every text is one sequence, as the model's tokenizer makes it,
    and a forward pass gets a mask for the padding. Texts are served in the order of the dataset, and
    again from the first when they are used up.

    Args:
        model: a TransformerBridge or a HookedTransformer, encoder or decoder, with its tokenizer.
            A text begins with BOS where ``model.to_tokens`` has it begin so, unless ``prepend_bos`` says otherwise.
        dataset: a ``datasets`` dataset with a column of texts, or a list of texts. Texts that are
            missing, with a logged warning, or have nothing but space in them are passed over.
        hook_names: the lower and the upper hook point, or one that is both.
        context_size: tokens at most of a text, special ones among them; the tokenizer cuts off the
            rest.
        store_batch_size_prompts: texts per batch.
        exclude_special_tokens: ids of tokens that ``PairedBatch.valid`` leaves out.
        model_kwargs: for ``model.run_with_cache``.
        device: of a ``PairedBatch``; the model may be on another.
        dtype: of its activations.
        column: of the texts; ``text``, ``sentence`` or ``problem`` if omitted.
        prepend_bos: whether a text begins with BOS; None: as the model has it.

    Raises:
        ValueError: if the model has no tokenizer or takes no attention mask, the dataset has no
            such column, or ``context_size`` or the number of hook names makes no sense.
    """

    def __init__(
        self,
        model: Any,
        dataset: Dataset | IterableDataset | Sequence[str],
        hook_names: Sequence[str],
        *,
        context_size: int,
        store_batch_size_prompts: int = 32,
        exclude_special_tokens: Iterable[int] = (),
        model_kwargs: dict[str, Any] | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        column: str | None = None,
        prepend_bos: bool | None = None,
    ) -> None:
        context_size = check("context_size", context_size, whole(1))
        store_batch_size_prompts = check(
            "store_batch_size_prompts", store_batch_size_prompts, whole(1)
        )
        _check_model(model, context_size)
        if isinstance(hook_names, str) or len(hook_names) not in (1, 2):
            raise ValueError(
                f"hook_names are the lower and the upper hook point, or one; got {hook_names!r}."
            )
        self.column = _column_of(dataset, column)
        self.model = model
        self.dataset = dataset
        self.hook_names = list(hook_names)
        self.context_size = context_size
        self.store_batch_size_prompts = store_batch_size_prompts
        self.exclude_special_tokens = list(exclude_special_tokens)
        self.model_kwargs = model_kwargs or {}
        self.device = torch.device(device)
        self.dtype = dtype
        self._start = text_start(model, prepend_bos=prepend_bos)
        self._missing = MissingTexts(self.column)
        self.reset_input_dataset()

    def reset_input_dataset(self) -> None:
        """Go on with the first text."""
        self._read_from(0)

    def get_batch(
        self, batch_size: int | None = None, raise_at_epoch_end: bool = False
    ) -> Sentences:
        """The next texts, on the model's device.

        Args:
            batch_size: how many; ``store_batch_size_prompts`` if omitted.
            raise_at_epoch_end: raise once every text was served, after a last batch that may be
                smaller. Otherwise a batch is filled up from the beginning of the dataset.

        Raises:
            StopIteration: if asked for. The next batch is the first again.
            ValueError: if there is no text in the dataset.
        """
        batch_size = check("batch_size", batch_size, whole(1, or_none=True))
        n = self.store_batch_size_prompts if batch_size is None else batch_size
        rows = list(itertools.islice(self._rows, n))
        if raise_at_epoch_end and not rows:
            self.reset_input_dataset()
            raise StopIteration("Every text was served; the next batch is the first again.")
        while len(rows) < n and not raise_at_epoch_end:
            self.reset_input_dataset()
            more = list(itertools.islice(self._rows, n - len(rows)))
            if not more:
                raise ValueError(
                    f"There is no text in the dataset, or none that is not empty, among "
                    f"{self.n_texts_read} rows."
                )
            rows += more
        # Any id would do for padding: what is no token is told by the mask alone.
        pad = self.model.tokenizer.pad_token_id or 0
        tokens = pad_sequence([torch.tensor(ids) for ids in rows], True, pad)
        lengths = torch.tensor([len(ids) for ids in rows])
        mask = torch.arange(tokens.shape[1]) < lengths[:, None]
        device = _device_of(self.model)
        return Sentences(tokens.to(device), mask.to(device))

    def get_batch_tokens(
        self, batch_size: int | None = None, raise_at_epoch_end: bool = False
    ) -> Int[Tensor, "batch pos"]:
        """The tokens of ``get_batch``, for callers that know SAELens' store.

        They do without the mask, which only a decoder can: see ``is_encoder_model``.
        """
        return self.get_batch(batch_size, raise_at_epoch_end).tokens

    @torch.no_grad()
    def paired_batch(self, raise_on_epoch_end: bool = False) -> PairedBatch:
        """The next texts and their activations at both hook points, from one forward pass.

        Args:
            raise_on_epoch_end: as in ``get_batch``.
        """
        tokens, mask = self.get_batch(raise_at_epoch_end=raise_on_epoch_end)
        valid = mask & ~special_token_mask(tokens, self.exclude_special_tokens)
        text = TextBatch(tokens, valid, mask)
        names = list(dict.fromkeys(self.hook_names))
        _, read = read_hooks(self.model, text, names, self.model_kwargs)
        # Heads, where a hook point has them, side by side, as SAELens' store has them.
        read = [x.flatten(2).to(self.device, self.dtype) for x in read]
        return PairedBatch(tokens.to(self.device), read[0], read[-1], valid.to(self.device))

    def save_to_checkpoint(self, checkpoint_path: str | Path) -> None:
        """Write how many texts were read, under the name SAELens gives its store's state."""
        save_count(checkpoint_path, "n_texts_read", self.n_texts_read)

    def load_from_checkpoint(self, checkpoint_path: str | Path) -> None:
        """Go on with the very text that would have come next when the checkpoint was written.

        Raises:
            ValueError: if the checkpoint was written by another kind of store.
        """
        n_texts_read = load_count(checkpoint_path, "n_texts_read", type(self).__name__)
        self._read_from(n_texts_read)

    def _read_from(self, n_texts_read: int) -> None:
        self.n_texts_read = n_texts_read  # of this pass over the dataset, empty ones included
        self._rows = self._tokenized()

    def _tokenized(self) -> Iterator[list[int]]:
        """Token ids of the texts from ``n_texts_read`` on, which counts along."""
        for row in itertools.islice(self.dataset, self.n_texts_read, None):
            self.n_texts_read += 1
            text: Any = row if self.column is None else row.get(self.column)
            if is_missing(text):
                self._missing.pass_over(self.n_texts_read)
                continue
            if not check_text(text, _place(self.n_texts_read, self.column)).strip():
                continue
            encoded = self.model.tokenizer(
                text,
                truncation=True,
                max_length=self.context_size - self._start.n_more,
                return_special_tokens_mask=True,
            )
            # A character that the tokenizer drops may have been all there was.
            if not all(encoded["special_tokens_mask"]):
                yield self._start.of(encoded["input_ids"])
        self._missing.at_end(self.n_texts_read)


@torch.no_grad()
def is_encoder_model(model: Any) -> bool:
    """Whether the model's tokens look at what comes after them, as BERT's do.

    Such a model predicts no next token, so cross-entropy and KL figures are not for it. Found out
    by trying (two forward passes of two tokens), since a TransformerBridge's config says "causal"
    for BERT too. A classifier reads a text as a whole, whichever way its tokens look.

    Args:
        model: any model of TransformerLens, or that SAELens takes.
    """
    if class_names(model) is not None:
        return True
    before, after = (
        model(torch.tensor([[1, last]], device=_device_of(model)))[0, 0] for last in (2, 3)
    )
    return bool((before - after).norm() > 1e-3 * before.norm())


def _device_of(model: Any) -> torch.device:
    return next(model.parameters()).device


def _check_model(model: Any, context_size: int) -> None:
    if getattr(model, "tokenizer", None) is None:
        raise ValueError("The model has no tokenizer, so it cannot read texts. Give it one.")
    # A HookedSAETransformer hands everything on to a HookedTransformer, which names its arguments.
    forwards = [vars(kind)["forward"] for kind in type(model).__mro__ if "forward" in vars(kind)]
    if not any("attention_mask" in inspect.signature(f).parameters for f in forwards):
        raise ValueError(
            f"{type(model).__name__} takes no attention_mask, so texts of different lengths cannot "
            "be read in one batch. Load the model as a TransformerBridge or a HookedTransformer."
        )
    if not _SHORTEST <= context_size <= model.cfg.n_ctx:
        raise ValueError(
            f"context_size is {context_size}; it has to be between {_SHORTEST} (one token between "
            f"two special ones) and the model's {model.cfg.n_ctx}."
        )


def _column_of(dataset: Any, column: str | None) -> str | None:
    """Name of the column with the texts; None for a list of texts."""
    if isinstance(dataset, (str, dict)):
        what = repr(dataset) if isinstance(dataset, str) else f"the splits {', '.join(dataset)}"
        raise ValueError(f"dataset has to be a loaded dataset, one split of it; got {what}.")
    check_readable(dataset)
    wanted = _COLUMNS if column is None else (column,)
    first: Any = None
    for number, row in enumerate(dataset, start=1):
        if isinstance(row, str):
            return None
        if is_missing(row):
            continue
        if not isinstance(row, Mapping):
            raise ValueError(
                f"The dataset has to hold texts; it holds a {type(row).__name__}, as row {number}."
            )
        first = first or (number, row)
        # The first text may be missing.
        for name in wanted:
            if isinstance(row.get(name), str):
                return name
        if not all(is_missing(row.get(name)) for name in wanted):
            first = (number, row)
            break
    if first is None:
        return None
    number, row = first
    there = [name for name in wanted if not is_missing(row.get(name))]
    if there:
        why = f"row {number} has {ascii(row[there[0]])[:60]} there, and a text is a string"
    elif any(name in row for name in wanted):
        why = f"all of them are missing ({', '.join(map(repr, row))} are its columns)"
    else:
        why = f"it has {', '.join(map(repr, row))}"
    raise ValueError(
        f"The dataset has no column {' or '.join(map(repr, wanted))} with texts; {why}."
    )


def _place(row: int, column: str | None) -> str:
    return f"Text {row}" if column is None else f"The {column!r} of row {row}"
