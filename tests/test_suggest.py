from __future__ import annotations

from bae_lens.suggest import did_you_mean


def test_it_names_the_nearest():
    assert did_you_mean("d_sea", ["lr", "d_sae", "d_in"]) == "Did you mean d_sae?"


def test_it_names_one_even_where_none_is_near():
    assert did_you_mean("zzzz", ["lr", "d_sae"]) in ("Did you mean lr?", "Did you mean d_sae?")


def test_a_name_is_offered_once():
    assert did_you_mean("devise", ["device", "device"]) == "Did you mean device?"
