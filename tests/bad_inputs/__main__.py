"""``python -m tests.bad_inputs [N]``: N bad inputs a reader (default 50), and the table."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.bad_inputs.readers import FILES
from tests.bad_inputs.runs import FOLDERS
from tests.bad_inputs.table import failures, table, try_all
from tests.bad_inputs.values import VALUES

READERS = (*FILES, *FOLDERS, *VALUES)


def main() -> int:
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 50
    with tempfile.TemporaryDirectory() as folder:
        tried = try_all(READERS, n, Path(folder))
    bad = failures(tried)
    print("\n".join(bad))
    print(table(tried))
    n_tried = sum(len(one.results) for one in tried)
    n_unreadable = sum(one.count("silent", "hang") for one in tried)
    print(
        f"\n{n_tried - len(bad)} of {n_tried} clear (or not to be told), {n_unreadable} silent or hanging"
    )
    return int(n_unreadable > 0 or len(bad) > 0.05 * n_tried)


if __name__ == "__main__":
    sys.exit(main())
