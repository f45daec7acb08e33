"""Token ids as text that people can read, and examples with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bae_lens.examples.corpus import NOTHING
from bae_lens.examples.records import Example
from bae_lens.examples.reservoir import Reservoir

# What decoders put for bytes that are no character.
_BROKEN = "\ufffd"


class TokenStrings:
    """Strings of single tokens, space included, such that those of a window together are its text.

    A token alone decodes to something else than within a text: SentencePiece takes the space before
    it away, WordPiece leaves its ``##``. So each is decoded behind another one.

    Args:
        tokenizer: a tokenizer of ``transformers``; None: a token is its id, as ``<17>``.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, str] = {}
        if tokenizer is not None:
            self._before = list(tokenizer("a", add_special_tokens=False)["input_ids"])
            self._text_before = self._decode([])

    def __call__(self, token: int) -> str:
        """The text of a token by itself."""
        if token not in self._known:
            self._known[token] = self._after([token])
        return self._known[token]

    def of_window(self, tokens: Sequence[int], marked: int) -> tuple[str, ...]:
        """The text of each token of a window.

        Tokens that are bytes of the same character have it in one string, of the ``marked`` one if
        it is among them, or else of the last.
        """
        strings = tuple(map(self, tokens))
        return self._whole(tokens, marked) if any(_BROKEN in s for s in strings) else strings

    def _whole(self, tokens: Sequence[int], marked: int) -> tuple[str, ...]:
        strings = [""] * len(tokens)
        done, first = "", 0
        for i in range(len(tokens)):
            text = self._after(tokens[: i + 1])
            if text.endswith(_BROKEN) and i + 1 < len(tokens):
                continue  # The next token may complete the character.
            strings[marked if first <= marked <= i else i] = text[len(done) :]
            done, first = text, i + 1
        return tuple(strings)

    def _after(self, tokens: Sequence[int]) -> str:
        if self._tokenizer is None:
            return "".join(f"<{token}>" for token in tokens)
        return self._decode(tokens)[len(self._text_before) :]

    def _decode(self, tokens: Sequence[int]) -> str:
        ids = [*self._before, *tokens]
        return self._tokenizer.decode(
            ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )


def examples_of(
    reservoir: Reservoir,
    group: int,
    strings: TokenStrings,
    n_left: int,
    strength: float | None,
    has_margins: bool = False,
) -> tuple[Example, ...]:
    """Examples of a group; all of one strength where one is given, and the number kept may be their margin."""
    examples = []
    for key, place, values in zip(*reservoir.of(group), reservoir.values_of(group), strict=True):
        window = place["window"]
        tokens = tuple(window[window != NOTHING].tolist())
        values = values[window != NOTHING] if len(values) else values
        marked = int((window[:n_left] != NOTHING).sum())
        examples.append(
            Example(
                tokens=tokens,
                marked=marked,
                strength=float(key) if strength is None else strength,
                text=int(place["text"]),
                position=int(place["position"]),
                strings=strings.of_window(tokens, marked),
                margin=float(key) if has_margins else None,
                activations=_activations(values),
            )
        )
    return tuple(examples)


def _activations(values: NDArray[np.float32]) -> tuple[float | None, ...] | None:
    """To four digits, as there are more than the rounding of the model leaves; None where none is known."""
    known = ~np.isnan(values)
    if not known.any():
        return None
    # Most are 0, and the same object then.
    found: list[float | None] = [0.0 if is_known else None for is_known in known.tolist()]
    for k in np.flatnonzero(values).tolist():
        if known[k]:
            found[k] = float(f"{values[k]:.4g}")
    return tuple(found)
