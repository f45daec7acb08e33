"""Tests of ``benchmarks/writing.py``: what is printed is what is written."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))

import writing  # noqa: E402  # pyright: ignore[reportMissingImports]

NAMES = [
    path.stem for path in BENCHMARKS.glob("*.py") if "with written(" in path.read_text("utf-8")
]


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(writing, "RESULTS", tmp_path)
    monkeypatch.setattr(
        sys, "argv", ["/a/b/speed.py", "--rounds", "3", "--output", "/a/c", "--write"]
    )
    path = tmp_path / "speed.md"
    path.write_text("# Speed\n\nBy hand.\n")
    return path


def run(text: str, **options: bool) -> None:
    with writing.written(
        "speed", argparse.Namespace(**({"write": True, "quick": False} | options))
    ):
        sys.stdout.write(text + "\n")


def test_what_is_printed_is_written_between_markers(
    page: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("| a |\n|---|\n| 1 |")
    assert capsys.readouterr().out == "| a |\n|---|\n| 1 |\n"
    content = page.read_text()
    assert content.startswith("# Speed\n\nBy hand.\n")
    assert "| a |\n|---|\n| 1 |\n" + writing.END in content
    # The command without the names of folders, and what it ran on.
    assert re.search(r"`python benchmarks/speed.py --rounds 3 --output OUTPUT` on 20\d\d-", content)
    assert "torch " in content

    page.write_text(content + "\nAlso by hand.\n")
    run("| a |\n|---|\n| 2 |")
    again = page.read_text()
    assert "| 1 |" not in again
    assert "| 2 |" in again
    assert again.startswith("# Speed\n\nBy hand.\n")
    assert again.endswith("\nAlso by hand.\n")
    assert again.count(writing.BEGIN) == 1


def test_without_it_nothing_is_written(page: Path) -> None:
    run("| 1 |", write=False)
    assert page.read_text() == "# Speed\n\nBy hand.\n"


def test_quick_figures_are_refused_before_anything_is_measured(page: Path) -> None:
    with pytest.raises(ValueError, match="--quick are of too little"):
        run("| 1 |", quick=True)
    assert page.read_text() == "# Speed\n\nBy hand.\n"


def test_a_run_that_fails_writes_nothing(page: Path) -> None:
    def fail() -> None:
        with writing.written("speed", argparse.Namespace(write=True)):
            sys.stdout.write("| 1 |\n")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert page.read_text() == "# Speed\n\nBy hand.\n"


def test_every_benchmark_has_it_and_a_page() -> None:
    assert len(NAMES) == 18
    for name in NAMES:
        assert f'with written("{name}", args)' in (BENCHMARKS / f"{name}.py").read_text("utf-8")
        assert (BENCHMARKS / "results" / f"{name}.md").is_file()
