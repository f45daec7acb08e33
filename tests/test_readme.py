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
