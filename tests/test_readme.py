"""The README's example runs as it stands, and what it names is there."""

import os
import re
import subprocess
import sys
from pathlib import Path

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def python_blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def test_the_example_of_ten_lines_runs(tmp_path):
    example = python_blocks()[0]
    assert len([line for line in example.splitlines() if line.strip()]) <= 10

    run = subprocess.run(
        [sys.executable, "-c", example],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert run.returncode == 0, run.stderr
    kind, *shape, share = re.findall(r"[A-Za-z]\w*|[\d.]+", run.stdout.splitlines()[-1])
    assert kind == "BAE"
    assert [n for n in shape if n.isdigit()] == ["4", "256"]
    assert 0 < float(share) < 0.5
    assert (tmp_path / "output" / "readme" / "cfg.json").exists()


def test_every_python_block_compiles():
    for block in python_blocks():
        compile(block, "README.md", "exec")


def test_files_and_commands_that_it_names_exist():
    root = Path(__file__).parents[1]
    for path in re.findall(r"\]\(([\w./-]+)\)|`python ([\w./-]+\.py)`", README):
        name = next(part for part in path if part)
        assert (root / name).exists(), name
    makefile = (root / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_it_is_a_front_door():
    assert len(README.splitlines()) <= 250


def test_its_tables_of_results_are_rows_of_the_pages_that_it_links_to():
    root = Path(__file__).parents[1]
    results = README[README.index("## Results") : README.index("## Documentation")]
    pages = re.findall(r"\]\((benchmarks/results/\w+\.md)\)", results)
    there = {line for page in pages for line in (root / page).read_text("utf-8").splitlines()}
    rows = [line for line in results.splitlines() if line.startswith("| ")]
    assert len(rows) > 20
    for row in rows:
        assert row in there, row


def test_figures_of_its_prose_stand_in_the_pages():
    root = Path(__file__).parents[1]
    text = "".join(path.read_text("utf-8") for path in (root / "benchmarks/results").glob("*.md"))
    before = README[: README.index("## In an existing workflow")]
    figures = re.findall(r"\b0\.\d{3}\b", before)
    assert figures
    for figure in figures:
        assert figure in text, figure
