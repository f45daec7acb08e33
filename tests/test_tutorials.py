"""Every tutorial runs from its first cell to its last, on a reduced setting."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

TUTORIALS = Path(__file__).parents[1] / "tutorials"
REDUCED = {
    "01_train_a_binary_autoencoder.ipynb": {
        "TOKENS": 4096,
        "TRAINING_TOKENS": 20_480,
        "HELD_OUT_TOKENS": 8192,
        "OUTPUT": "output",
    },
    "02_entropy_of_a_language_model.ipynb": {
        "TEXTS": 250,
        "RANGES": [(2, 5), (6, 9)],
        "LAYERS": [0, 1],
        "PROMPTS": 160,
        "SHOTS": [0, 1],
        "ACCURACY_PROMPTS": 4,
        "SEEDS": [0],
        "STEPS": 6,
    },
    "03_cross_layer_concepts.ipynb": {
        "DATA": "bae-lens/movie-reviews",
        "CLASSIFIER_TEXTS": 300,
        "CLASSIFIER": "output/classifier",
        "DICTIONARY_TEXTS": 60,
        "HELD_OUT_TEXTS": 60,
        "CODES": 16,
        "STEPS": 4,
        "OUTPUT": "output/codes",
    },
    "04_concept_ablation.ipynb": {
        "DATA": "bae-lens/movie-reviews",
        "CLASSIFIER_TEXTS": 300,
        "CLASSIFIER": "output/classifier",
        "DICTIONARY_TEXTS": 60,
        "EXAMPLES": 24,
        "N_STEPS": 1,
        "CODES": 16,
        "STEPS": 3,
    },
    "05_read_the_concepts.ipynb": {
        "TOKENS": 4096,
        "TRAINING_TOKENS": 20_480,
        "EVIDENCE_TOKENS": 3000,
        "LATENTS": 10,
        "REVIEWS": 20,
        "OTHER_REVIEWS": 80,
        "OUTPUT": "output",
    },
}


def test_every_tutorial_has_a_reduced_setting():
    assert {path.name for path in TUTORIALS.glob("*.ipynb")} == set(REDUCED)


@pytest.mark.real_model
@pytest.mark.parametrize("name", REDUCED)
def test_tutorial_runs(name, tmp_path):
    notebook = nbformat.read(TUTORIALS / name, as_version=4)
    [parameters] = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    names = [line.split(" = ")[0] for line in parameters.source.splitlines() if " = " in line]
    assert names == list(REDUCED[name])
    parameters.source = "\n".join(f"{k} = {v!r}" for k, v in REDUCED[name].items())

    resources = {"metadata": {"path": str(tmp_path)}}
    done = NotebookClient(notebook, timeout=600, resources=resources).execute()

    images = [
        output
        for cell in done.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]
    assert len(images) == 2
    if "OUTPUT" in REDUCED[name]:
        assert (tmp_path / REDUCED[name]["OUTPUT"] / "sae_weights.safetensors").exists()
