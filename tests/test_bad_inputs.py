"""A few bad inputs to every reader, command and config; all of them in ``make check-slow``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bad_inputs.__main__ import READERS
from tests.bad_inputs.readers import Reader
from tests.bad_inputs.table import failures, try_all

_FEW = 6


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_that_answers_are_clear(reader: Reader, tmp_path: Path) -> None:
    assert failures(try_all([reader], _FEW, tmp_path, seed=1)) == []
