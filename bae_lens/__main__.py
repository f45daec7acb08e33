"""``python -m bae_lens``: the same as the console script ``bae-lens``."""

import sys

from bae_lens.cli import main

sys.exit(main())
