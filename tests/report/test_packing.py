"""Strings that are written once."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bae_lens.report.packing import (
    ALPHABET,
    N_STEPS,
    StringTable,
    pack,
    pack_rising,
    pack_values,
    unpack,
)


def test_packed_strings_come_back():
    strings = [f"s{i}" for i in range(5000)]
    table = StringTable(Counter(strings))
    order = [*reversed(strings), *strings[::7]]
    assert unpack(table.packed(order), table.strings) == order


def test_numbers_of_every_length_come_back():
    half = len(ALPHABET) // 2
    numbers = [0, half - 1, half, half + half**2 - 1, half + half**2, 10**6]
    assert [len(pack(n)) for n in numbers] == [1, 1, 2, 2, 3, 4]
    packed = "".join(map(pack, numbers))
    assert unpack(packed, range(10**6 + 1)) == numbers  # pyright: ignore[reportArgumentType]


def test_values_come_back_within_half_a_step():
    values = {0: -2.0, 3: 1.0, 4: 0.25, 24: 6.0}
    packed = pack_values(values.items(), -2.0, 6.0)
    numbers = list(map(int, unpack(packed, list(map(str, range(N_STEPS + 1))))))
    steps = [-2 + 8 * n / N_STEPS for n in numbers[1::2]]
    assert numbers[::2] == [0, 2, 0, 19]
    assert steps == pytest.approx(list(values.values()), abs=4 / N_STEPS)
    assert len(packed) <= 3 * len(values)
    # One value is the least and the greatest.
    assert pack_values([(2, 7.0)], 7.0, 7.0) == pack(2) + pack(0)
    assert pack_values([], 0.0, 1.0) == ""


def test_every_number_has_a_reference_of_its_own():
    assert len({pack(n) for n in range(100_000)}) == 100_000


def test_common_strings_have_the_shortest_references():
    table = StringTable(Counter({"rare": 1, "common": 9, "also rare": 1}))
    assert table.strings == ["common", "also rare", "rare"]
    assert table["common"] == 0


def test_the_alphabet_needs_no_escapes():
    assert len(set(ALPHABET)) == len(ALPHABET) == 86
    assert json.dumps(ALPHABET) == f'"{ALPHABET}"'
    assert not set(ALPHABET) & set("<>&'\"` ")


def test_what_is_not_in_the_table_is_refused():
    with pytest.raises(KeyError):
        StringTable(Counter("ab")).packed("c")


@settings(max_examples=200, deadline=None)
@given(packed=st.text(st.sampled_from([*ALPHABET[:3], *ALPHABET[-3:], "<", "é"]), max_size=8))
def test_what_refers_to_nothing_is_refused(packed):
    strings = [str(i) for i in range(60)]
    try:
        found = unpack(packed, strings)
    except ValueError as error:
        assert "refers to none of 60 strings" in str(error)  # noqa: PT017
    else:
        assert "".join(pack(int(string)) for string in found) == packed


def test_rising_numbers_come_back():
    """As ``risingIn`` of the page's script reads them."""
    for numbers in ([], [0], [5], [0, 1, 2], [3, 90, 91, 5000]):
        packed, found, last = pack_rising(numbers), [], -1
        for step in unpack(packed, range(10**4)):  # pyright: ignore[reportArgumentType]
            last += int(step) + 1
            found.append(last)
        assert found == numbers
