"""Models in Hugging Face's own format, from a folder, as a TransformerBridge.

A folder is read as data: its configs as JSON, its weights as safetensors, and never its code.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from sae_lens import SAETransformerBridge
from sae_lens.util import str_to_dtype
from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES
from transformer_lens.model_bridge.sources.transformers import get_hf_model_class_for_architecture

from bae_lens.checks.fields import shown
from bae_lens.encoders import ENCODER_CLASSES, encoder_bridge
from bae_lens.files.json_file import read_json
from bae_lens.loading.classifiers import class_names

BRIDGE_CLASSES = ("TransformerBridge", "SAETransformerBridge")
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_VOCABULARIES = (
    *("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model"),
    *("spiece.model", "sentencepiece.bpe.model"),
)
# Of a model without a head; what pools a text is not read where there is no head behind it.
_UNUSED = ("pooler.",)
_OPTIONS = ("dtype", "torch_dtype")


def load_folder(
    folder: Path, device: str | torch.device = "cpu", options: Mapping[str, Any] | None = None
) -> SAETransformerBridge:
    """A model that ``save_pretrained`` wrote to a folder with its tokenizer.

    A BERT or RoBERTa (``…Model``, ``…ForMaskedLM``, ``…ForSequenceClassification``) is what
    ``encoder_bridge`` says; a causal language model of an architecture that TransformerLens maps is
    booted by TransformerLens.

    Args:
        folder: with ``config.json``, ``model.safetensors`` and the files of a tokenizer.
        device: where to put it.
        options: ``dtype`` (or ``torch_dtype``), float32 if omitted; of the others none that is set.

    Raises:
        ValueError: if a file is missing, the weights are pickled, are not finite or are not all that
            the architecture has, TransformerLens does not map it, its head is none of classes (see
            ``class_names``), or the tokenizer has tokens that the model does not know.
    """
    options = {name: value for name, value in (options or {}).items() if value}
    dtype = _dtype({name: options.pop(name) for name in _OPTIONS if name in options})
    if options:
        raise ValueError(
            "a TransformerBridge of a folder takes its weights as they are, and of "
            f"model_from_pretrained_kwargs only dtype; got {', '.join(options)}"
        )
    architecture = _architecture(folder)
    check_files(folder)
    if architecture in ENCODER_CLASSES:
        bridge = _load_encoder(folder, architecture, device, dtype)
    else:
        bridge = SAETransformerBridge.boot_transformers(str(folder), device=device, dtype=dtype)
    model = bridge.original_model
    check_tokenizer(bridge.tokenizer, model)
    check_finite(model)
    class_names(bridge)
    return bridge.eval()  # pyright: ignore[reportReturnType]


def _dtype(given: Mapping[str, Any]) -> torch.dtype:
    names = [name for name in given.values() if name != "auto"]
    return str_to_dtype(str(names[0]).removeprefix("torch.")) if names else torch.float32


def _architecture(folder: Path) -> str:
    """The class that a folder's config.json names, which is one that can be loaded here."""
    if not (folder / "config.json").is_file():
        raise ValueError("there is no config.json in it")
    names = read_json(folder / "config.json", "config of a model", "architectures")["architectures"]
    name = names[0] if isinstance(names, list) and names else names
    if not isinstance(name, str):
        raise ValueError(f"config.json: architectures must name a class; got {shown(names)}")
    if name in ENCODER_CLASSES or (
        name in SUPPORTED_ARCHITECTURES
        and get_hf_model_class_for_architecture(name) is transformers.AutoModelForCausalLM
    ):
        return name
    raise ValueError(
        f"its architecture is {shown(name)}, and a TransformerBridge is made of {', '.join(ENCODER_CLASSES)} "
        "and of the causal language models that TransformerLens maps"
    )


def check_files(folder: Path) -> None:
    """
    Raises:
        ValueError: if a folder has no weights as safetensors, or no tokenizer.
    """
    if not any((folder / name).is_file() for name in _WEIGHTS):
        pickles = sorted(file.name for file in folder.iterdir() if file.suffix in (".bin", ".pt"))
        why = (
            f"{pickles[0][:80]} is a pickle, which can run code and is not read. Convert it where you "
            "trust it: from_pretrained, then save_pretrained"
            if pickles
            else "the weights are missing"
        )
        raise ValueError(f"there is no {_WEIGHTS[0]} in it: {why}")
    if not any((folder / name).is_file() for name in _VOCABULARIES):
        raise ValueError(
            "there is no tokenizer in it (tokenizer.json, vocab.txt, …). Save it there too: "
            "tokenizer.save_pretrained"
        )


def _load_encoder(
    folder: Path, architecture: str, device: str | torch.device, dtype: torch.dtype
) -> SAETransformerBridge:
    model, info = getattr(transformers, architecture).from_pretrained(
        folder,
        dtype=dtype,
        attn_implementation="eager",
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
    )
    missing = sorted(name for name in info["missing_keys"] if not name.startswith(_UNUSED))
    if missing:
        raise ValueError(
            f"{len(missing)} tensors of a {architecture} are not among its weights, such as "
            f"{', '.join(missing[:2])}, and would be made up at random"
        )
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return encoder_bridge(model, tokenizer, str(folder), device)


def check_tokenizer(tokenizer: Any, model: Any) -> None:
    """
    Raises:
        ValueError: if a tokenizer has tokens that the model of transformers does not know.
    """
    n_rows = model.get_input_embeddings().weight.shape[0]
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if largest >= n_rows:
        raise ValueError(
            f"its tokenizer does not match: it has token {largest}, and the model's embedding is of "
            f"{n_rows} tokens"
        )


def check_finite(model: torch.nn.Module) -> None:
    """
    Raises:
        ValueError: if a weight of a model is NaN or infinite.
    """
    for name, value in model.named_parameters():
        if not value.isfinite().all():
            # The name within the bridge, which has each part wrapped.
            raise ValueError(
                f"there are numbers that are NaN or infinite in {name.replace('_original_component.', '')}"
            )
