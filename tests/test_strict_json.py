import json
import math

import pytest

from bae_lens.strict_json import finite_or_none


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_json_cannot_hold_is_none(value):
    assert finite_or_none(value) is None


@pytest.mark.parametrize("value", [0.5, -1, True, "nan", None, [1.0]])
def test_anything_else_is_left_alone(value):
    assert finite_or_none(value) == value
    json.dumps(finite_or_none(value), allow_nan=False)
