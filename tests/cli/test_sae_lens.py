"""SAELens' own commands know the architectures of this package."""

from __future__ import annotations

import re
import sys
from importlib.metadata import entry_points

import pytest

from bae_lens.cli import main


def test_training_by_sae_lens_lists_our_architectures(capsys):
    before = sys.argv

    with pytest.raises(SystemExit) as ended:
        main(["sae-lens", "train", "--help"])

    assert ended.value.code == 0
    assert sys.argv is before
    listed = capsys.readouterr().out
    assert {"bae", "clvq_vae", "topk_transcoder"} <= set(re.findall(r"\w+", listed))


def test_evals_by_sae_lens_are_its_own(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["sae-lens", "evals", "--help"])

    assert ended.value.code == 0
    assert "sae_regex_pattern" in capsys.readouterr().out


def test_another_command_is_refused(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["sae-lens", "tune"])

    assert ended.value.code == 2
    assert "invalid choice: 'tune'" in capsys.readouterr().err


def test_the_entry_point_that_a_host_would_load_is_declared():
    own = [e for e in entry_points(group="sae_lens.plugins") if e.name == "bae-lens"]

    if not own:
        pytest.skip("this copy of the package was installed before it declared one")
    assert own[0].load().__name__ == "bae_lens"
