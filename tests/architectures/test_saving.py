"""An autoencoder's two files are replaced together."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE

from bae_lens import TrainingTopKTranscoder, TrainingTopKTranscoderConfig
from tests.helpers import D_IN, D_SAE, make_bae, make_training_bae, make_training_clvq


def make_transcoder(seed: int) -> TrainingTopKTranscoder:
    torch.manual_seed(seed)
    return TrainingTopKTranscoder(TrainingTopKTranscoderConfig(d_in=D_IN, d_sae=D_SAE, k=3))


@pytest.mark.parametrize(
    ("make", "method"),
    [
        (make_training_bae, "save_inference_model"),
        (make_training_bae, "save_model"),
        (make_bae, "save_model"),
        (make_training_clvq, "save_inference_model"),
        (make_training_clvq, "save_model"),
        (make_transcoder, "save_inference_model"),
        (make_transcoder, "save_model"),
    ],
)
def test_a_disk_that_fills_up_between_the_two_leaves_the_old_ones(
    tmp_path: Path, make: Any, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "sae"
    weights_path, cfg_path = getattr(make(seed=0), method)(folder)
    assert (weights_path, cfg_path) == (folder / "sae_weights.safetensors", folder / "cfg.json")
    (folder / "notes.txt").write_text("mine")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(json, "dump", full)
        with pytest.raises(OSError, match="No space left"):
            getattr(make(seed=1), method)(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    getattr(make(seed=1), method)(folder)
    assert (folder / "sae_weights.safetensors").read_bytes() != before["sae_weights.safetensors"]
    assert (folder / "notes.txt").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["sae"]
    if method == "save_inference_model":
        SAE.load_from_disk(folder)
