"""What a language model reads of texts, with the words that tokens are part of."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from bae_lens.activations.special_tokens import text_start
from bae_lens.activations.texts import check_text

logger = logging.getLogger(__name__)

Readout = Literal["last", "first"]
_SLOT = "{text}"


class EncodedTexts(NamedTuple):
    """What a model reads of texts, on the CPU.

    Attributes:
        tokens: token ids, padded on the right.
        attention_mask: True where there is a token.
        word_of: index of the word of the text that a token is part of; −1 for special tokens, the
            template, space alone, and padding.
        words: of each text, as far as the model reads it, without space around them.
        spans: where they begin and end in the text, which is without the template.
        readout: position that the sentence vector is read at.
        n_truncated: texts that were too long and are read in part.
    """

    tokens: Int[Tensor, "n pos"]
    attention_mask: Bool[Tensor, "n pos"]
    word_of: Int[Tensor, "n pos"]
    words: list[list[str]]
    spans: list[list[tuple[int, int]]]
    readout: Int[Tensor, " n"]
    n_truncated: int

    def as_read(self, texts: Sequence[str]) -> list[str]:
        """The texts that these tokens are of, up to the last word that the model reads."""
        return [
            text[: spans[-1][1]] if spans else ""
            for text, spans in zip(texts, self.spans, strict=True)
        ]


def encode_texts(
    model: Any,
    texts: Sequence[str],
    *,
    context_size: int,
    readout: Readout,
    template: str | None = None,
) -> EncodedTexts:
    """Tokens of texts, each a sequence of its own, and the words that they are part of.

    Words are what the tokenizer splits a text into before it looks up tokens; it may split off
    punctuation and single digits. They are parted at space, too, which some tokenizers (Llama-2's,
    Gemma's) do not do. A token that covers characters of the text and of the template is part of
    the word if one of the former is not space.

    Args:
        model: a model of TransformerLens with a fast tokenizer. A text begins with BOS where
            ``model.to_tokens`` has it begin so.
        texts: without the template.
        context_size: tokens at most, special ones and the template's among them. Of a longer text
            the end is cut off; the template stays whole.
        readout: ``"last"``: the last token that is not a special one which the tokenizer put there,
            of the template if that ends with text of its own; ``"first"``: position 0, BOS or
            [CLS] where there is one.
        template: what the model reads around a text, as in ``"Review: {text}\\nSentiment:"``.

    Raises:
        ValueError: if there is no fast tokenizer or no text, a text is no string, ``{text}`` does not stand in the
            template once, ``context_size`` is more than the model's or leaves no room for a text,
            or the tokenizer makes no token of a text.
    """
    tokenizer = getattr(model, "tokenizer", None)
    if not getattr(tokenizer, "is_fast", False):
        what = "no tokenizer" if tokenizer is None else f"the slow {type(tokenizer).__name__}"
        raise ValueError(
            f"Words are found by a fast tokenizer; the model has {what}. Give it one: "
            "AutoTokenizer.from_pretrained(name, use_fast=True)."
        )
    if readout not in get_args(Readout):
        raise ValueError(f"readout must be 'last' or 'first'; got {readout!r}.")
    if template is not None and template.count(_SLOT) != 1:
        raise ValueError(f"{_SLOT} has to stand in the template once; got {template!r}.")
    if context_size > model.cfg.n_ctx:
        raise ValueError(
            f"context_size is {context_size}, more than the model's {model.cfg.n_ctx}."
        )
    if not texts:
        raise ValueError("There are no texts to encode.")
    prefix, _, suffix = (template or _SLOT).partition(_SLOT)
    start = text_start(model)
    rows, word_rows, spans, positions = [], [], [], []
    n_truncated = 0
    for i, text in enumerate(texts):
        check_text(text, f"Text {i}")
        encoding, read = _encode(tokenizer, text, prefix, suffix, context_size - start.n_more)
        text_tokens = [k for k, special in enumerate(encoding.special_tokens_mask) if not special]
        if not text_tokens:
            raise ValueError(
                f"The tokenizer makes no token of text {i}, {text!r}: it drops all its characters. "
                "Leave the text out."
            )
        word_of, spans_of_text = _words_of(encoding, read, len(prefix))
        rows.append(torch.tensor(start.of(encoding.ids)))
        word_rows.append(torch.tensor([-1] * len(start.added) + word_of[start.n_dropped :]))
        spans.append(spans_of_text)
        positions.append(text_tokens[-1] + start.n_more if readout == "last" else 0)
        n_truncated += read != text
    if n_truncated:
        logger.warning(
            "%d of %d texts were too long and cut to %d tokens.",
            n_truncated,
            len(texts),
            context_size,
        )
    # Any id would do for padding: what is no token is told by the mask alone.
    tokens = pad_sequence(rows, True, tokenizer.pad_token_id or 0)  # pyright: ignore[reportOptionalMemberAccess]
    lengths = torch.tensor([len(row) for row in rows])
    return EncodedTexts(
        tokens=tokens,
        attention_mask=torch.arange(tokens.shape[1]) < lengths[:, None],
        word_of=pad_sequence(word_rows, True, -1),
        words=[
            [t[a:b] for a, b in spans_of_text]
            for t, spans_of_text in zip(texts, spans, strict=True)
        ],
        spans=spans,
        readout=torch.tensor(positions),
        n_truncated=n_truncated,
    )


def rationale_words(
    encoded: EncodedTexts, texts: Sequence[str], rationales: Sequence[str | None]
) -> list[set[int]]:
    """The words of each text that its rationale covers, in whole or in part.

    The rationale is looked for as it is, but for how much space there is between its words, and
    taken where it stands first.

    Args:
        encoded: the texts as ``encode_texts`` gave them.
        texts: the same as there.
        rationales: of each text, or None.

    Returns:
        Indices of words; none where there is no rationale or it is not in the text, or only in what
        was cut off.

    Raises:
        ValueError: if there are not as many texts, rationales and encoded texts.
    """
    if not len(texts) == len(rationales) == len(encoded.spans):
        raise ValueError(
            f"There have to be as many texts ({len(texts)}) and rationales ({len(rationales)}) as "
            f"encoded texts ({len(encoded.spans)})."
        )
    covered: list[set[int]] = []
    for text, marked, spans in zip(texts, rationales, encoded.spans, strict=True):
        pattern = r"\s+".join(map(re.escape, (marked or "").split()))
        match = re.search(pattern, text) if pattern else None
        start, end = match.span() if match else (0, 0)
        covered.append({i for i, (a, b) in enumerate(spans) if a < end and start < b})
    return covered


def _encode(tokenizer: Any, text: str, prefix: str, suffix: str, n_room: int) -> tuple[Any, str]:
    """Encoding of the text in its template, and the text, of which the end is cut to make room."""
    while True:
        # Not verbose, or it would warn of what is about to be cut.
        encoding = tokenizer(prefix + text + suffix, verbose=False).encodings[0]
        n_over = len(encoding.ids) - n_room
        if n_over <= 0:
            return encoding, text
        begin, end = len(prefix), len(prefix) + len(text)
        starts = [max(a - begin, 0) for a, b in encoding.offsets if a < b and a < end and b > begin]
        n_kept = len(starts) - n_over
        text = text[: starts[n_kept]].rstrip() if n_kept > 0 else ""
        if not text:
            n_others = len(encoding.ids) - len(starts)
            raise ValueError(
                f"There is no room for a text: {n_room} tokens beside BOS, and special tokens and "
                f"the template take {n_others}. Choose a larger context_size or a shorter template."
            )
        # What is left may be cut into other tokens, so it is tried again; each time it is shorter.


def _words_of(encoding: Any, text: str, text_begin: int) -> tuple[list[int], list[tuple[int, int]]]:
    """Index of each token's word, and the words' spans in the text."""
    word_of: list[int] = []
    spans: list[tuple[int, int]] = []
    last = None
    for (start, end), word in zip(encoding.offsets, encoding.word_ids, strict=True):
        start, end = max(start - text_begin, 0), max(end - text_begin, 0)
        piece = text[start:end]
        if word is None or not piece.strip():
            word_of.append(-1)
            continue
        start += len(piece) - len(piece.lstrip())
        end = start + len(piece.strip())
        # Several tokens may be one character's, so that a token need not begin where the last ended.
        if word != last or text[spans[-1][1] : start].isspace():
            spans.append((start, end))
        else:
            spans[-1] = (spans[-1][0], end)
        word_of.append(len(spans) - 1)
        last = word
    return word_of, spans
