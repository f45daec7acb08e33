"""The documentation: its code runs, its metrics are complete, and every public name is on a page."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import zlib
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from transformers import BertModel

from bae_lens.evals import CodebookSummary, CodeSummary
from bae_lens.offline import names
from bae_lens.report import metrics
from tests.cli.helpers import resolve_to_tiny
from tests.conformance.cases import make_topk
from tests.helpers import (
    D_IN,
    HOOK,
    between,
    make_activations,
    make_bae,
    make_model,
    save_bert,
    write_labeled,
)

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "tutorials"
GUIDES = sorted((DOCS / "guides").glob("*.md"))
ROOMS = [
    f"bae_lens.{path.parent.name}"
    for path in sorted((ROOT / "bae_lens").glob("*/__init__.py"))
    if "\n__all__" in path.read_text(encoding="utf-8")
]
# Rooms that are of no use outside the package.
INTERNAL = {
    "bae_lens.checks",
    "bae_lens.files",
    "bae_lens.loading",
    "bae_lens.html_page",
    "bae_lens.cli",
}


@pytest.mark.parametrize("path", GUIDES, ids=lambda path: path.stem)
def test_the_code_of_a_guide_runs(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_guide(path, make_bae(), tmp_path, monkeypatch)


@pytest.mark.parametrize(
    "make", [lambda: make_bae(n_levels=3), lambda: make_topk(d_out=D_IN)], ids=["levels", "topk"]
)
def test_the_guide_to_steering_runs_whatever_a_latent_is_on_with(
    make: Callable[[], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_guide(DOCS / "guides" / "steering.md", make(), tmp_path, monkeypatch)


def run_guide(path: Path, sae: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    resolve_to_tiny(monkeypatch)
    given = {
        "model": make_model(),
        "sae": between(sae, hook_out=None),
        "activations": make_activations(64),
        "MODEL_NAME": names.MODEL_NAME,
        "MODEL_WIDTH": D_IN,
        "HOOK_NAME": HOOK,
        "DATASET_PATH": names.DATASET_NAME,
        "CONTEXT_SIZE": 16,
        "TRAINING_TOKENS": 192,
        "BATCH_SIZE": 64,
        "ENCODER": str(save_bert(tmp_path / "encoder", BertModel)),
        "LABELED_FILE": str(write_labeled(tmp_path / "labeled.jsonl")),
    }
    text = path.read_text(encoding="utf-8")
    for block in re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        exec(compile(block, path.name, "exec"), given)


def test_the_metrics_page_has_every_metric_that_the_report_explains() -> None:
    text = (DOCS / "metrics.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \| ([^|]+) \|$", text, re.MULTILINE)
    listed = [name for name, _, _ in rows]
    assert len(listed) == len(set(listed))
    code = {field.name for field in fields(CodeSummary)} - {"firing_rates", "l0_counts"}
    wanted = metrics._EXPLANATIONS.keys() | code | set(CodebookSummary._fields)
    assert wanted - set(listed) == set()
    assert all(can.strip() and cannot.strip() for _, can, cannot in rows)


def test_every_public_name_is_on_a_page_of_the_built_site(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="make docs installs it")
    subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        check=True,
    )
    inventory = (tmp_path / "objects.inv").read_bytes()
    start = inventory.index(b"zlib.\n") + len(b"zlib.\n")
    there = {line.split()[0] for line in zlib.decompress(inventory[start:]).decode().splitlines()}
    missing = [
        f"{room}.{name}"
        for room in ROOMS
        if room not in INTERNAL
        for name in importlib.import_module(room).__all__
        if f"{room}.{name}" not in there
    ]
    package = importlib.import_module("bae_lens")
    exported = {name for name in package.__all__ if name != "__version__"}
    assert missing == []
    assert exported - {name.rsplit(".", 1)[-1] for name in there} == set()
