from __future__ import annotations

import pytest

from bae_lens.checks.suggest import did_you_mean, index_of


def test_it_names_the_nearest():
    assert did_you_mean("d_sea", ["lr", "d_sae", "d_in"]) == "Did you mean d_sae?"


def test_it_names_one_even_where_none_is_near():
    assert did_you_mean("zzzz", ["lr", "d_sae"]) in ("Did you mean lr?", "Did you mean d_sae?")


def test_a_name_is_offered_once():
    assert did_you_mean("devise", ["device", "device"]) == "Did you mean device?"


def test_the_index_of_a_name():
    assert index_of(["a", "b"], "b", "letter") == 1
    with pytest.raises(ValueError, match="There is no letter 'c'; there are a, b"):
        index_of(["a", "b"], "c", "letter")
