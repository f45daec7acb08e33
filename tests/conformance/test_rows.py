"""README.md says truly which row is tested where."""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).parent


def rows_of_readme() -> dict[str, set[str]]:
    """Row → files that the table names."""
    found = re.findall(
        r"^\| (\d\d) \| [^|]+ \| ([\w, ]+) \| [^|]+ \|$", (HERE / "README.md").read_text(), re.M
    )
    return {row: set(files.split(", ")) for row, files in found}


def rows_of_tests() -> dict[str, set[str]]:
    """Row → files with a test that is named after it."""
    found: dict[str, set[str]] = {}
    for path in HERE.glob("test_*.py"):
        for name in re.findall(r"^def (test_row\w+)", path.read_text(), re.M):
            for row in re.findall(r"row(\d\d)_", name):
                found.setdefault(row, set()).add(path.stem.removeprefix("test_"))
    return found


def test_the_table_has_thirty_rows():
    assert list(rows_of_readme()) == [f"{row:02}" for row in range(1, 31)]


def test_every_row_has_its_tests_where_the_table_says():
    assert rows_of_readme() == rows_of_tests()
