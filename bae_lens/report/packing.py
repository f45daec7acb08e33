"""Token strings in little space: each is written once, and referred to by a few characters; and lists of
numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise

# Those of printable ASCII that stand for themselves in JSON and in HTML, none of them a space.
ALPHABET = "".join(chr(c) for c in range(33, 127) if chr(c) not in "\"'\\<>&`")[:86]
_HALF = len(ALPHABET) // 2
# The largest number in two characters: a value is one of so many steps, and 0, from least to greatest.
N_STEPS = _HALF + _HALF**2 - 1


class StringTable:
    """Strings by number, the most frequent first, so that it has the shortest reference.

    Args:
        counts: how often each string is referred to. Equally common ones are in their own order, so
            that the same counts give the same table.
    """

    def __init__(self, counts: Counter[str]) -> None:
        self.strings = sorted(counts, key=lambda string: (-counts[string], string))
        self._number = {string: i for i, string in enumerate(self.strings)}
        self._packed = {string: pack(i) for i, string in enumerate(self.strings)}

    def __getitem__(self, string: str) -> int:
        return self._number[string]

    def packed(self, strings: Iterable[str]) -> str:
        """References to several strings, one after the other."""
        return "".join(map(self._packed.__getitem__, strings))


def pack(number: int) -> str:
    """A number, 0 at least, as characters of which only the last is in the alphabet's first half."""
    characters = []
    while number >= _HALF:
        characters.append(ALPHABET[_HALF + number % _HALF])
        number = number // _HALF - 1
    return "".join([*characters, ALPHABET[number]])


def pack_rising(numbers: Sequence[int]) -> str:
    """Different numbers, 0 at least, each but the first as how far it is from the one before."""
    rising = sorted(numbers)
    steps = [b - a - 1 for a, b in pairwise(rising)]
    return "".join(map(pack, [*rising[:1], *steps]))


def pack_values(values: Iterable[tuple[int, float]], least: float, greatest: float) -> str:
    """Values at rising places, such as the tokens of a window at which a latent fires: of each how many places
    there are between it and the one before, and which step it is nearest to.

    Args:
        values: places from 0, and values between ``least`` and ``greatest``.
        least: step 0.
        greatest: step ``N_STEPS``.
    """
    numbers, after = [], 0
    per_step = (greatest - least) / N_STEPS or 1.0
    for place, value in values:
        numbers += [place - after, round((value - least) / per_step)]
        after = place + 1
    return "".join(map(pack, numbers))


def unpack(packed: str, strings: Sequence[str]) -> list[str]:
    """The strings that ``StringTable.packed`` refers to (as the page's script reads them).

    Raises:
        ValueError: if it refers to no string, or ends within a reference.
    """
    found, number, unit = [], 0, 1
    for i, character in enumerate(packed):
        digit = ALPHABET.find(character)
        # References are to what there is: a longer one would only count on.
        is_last = digit < _HALF
        if (
            digit < 0
            or number + digit * unit >= len(strings)
            or (not is_last and i + 1 == len(packed))
        ):
            raise ValueError(f"{character!r} at {i} refers to none of {len(strings)} strings.")
        if is_last:
            found.append(strings[number + digit * unit])
            number, unit = 0, 1
        else:
            # Longer references begin at the number where shorter ones end, hence not minus _HALF.
            number += digit * unit
            unit *= _HALF
    return found
