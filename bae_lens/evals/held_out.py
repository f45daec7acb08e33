"""The model and the held-out text that a saved SAE belongs to, rebuilt from its metadata."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from datasets import load_dataset
from sae_lens import SAE, ActivationsStore
from sae_lens.load_model import load_model as sae_lens_load_model
from transformer_lens.HookedRootModule import HookedRootModule

from bae_lens import demo
from bae_lens.fields import check, shown, whole
from bae_lens.hook_points import hook_names
from bae_lens.special_tokens import special_token_ids

if TYPE_CHECKING:
    from bae_lens.training.sentences import SentenceStore


def load_model_of(sae: SAE[Any], device: str = "cpu") -> HookedRootModule:
    """The language model that the SAE's metadata names, from PyPI or through SAELens.

    Raises:
        ValueError: if the metadata does not name a model, or no hook point.
    """
    metadata = sae.cfg.metadata
    if metadata.model_name is None:
        raise ValueError(
            "The SAE's metadata names no model (metadata.model_name), so there is none to evaluate it on."
        )
    kwargs: dict[str, Any] = metadata.model_from_pretrained_kwargs or {}
    class_name = metadata.model_class_name or "HookedTransformer"
    model = demo.load_model(metadata.model_name, class_name, device=device, **kwargs)
    if model is not None:
        return model  # pyright: ignore[reportReturnType]  # a bridge is one by behaviour
    return sae_lens_load_model(
        class_name,
        metadata.model_name,
        device=device,
        model_from_pretrained_kwargs=kwargs,
        hook_names=list(dict.fromkeys(hook_names(sae))),
    )


def held_out_store(
    sae: SAE[Any],
    model: HookedRootModule,
    dataset: Any = None,
    store_batch_size_prompts: int = 8,
) -> ActivationsStore | Any:
    """A store of text for a saved SAE, with its own context size, BOS and special-token settings.

    Unlike ``ActivationsStore.from_sae`` it takes ``exclude_special_tokens``,
    ``disable_concat_sequences`` and ``sequence_separator_token`` from the metadata too, where
    SAELens writes them but does not read them.

    Args:
        sae: a loaded SAE.
        model: its language model.
        dataset: a dataset or its name; the one in the metadata if omitted. Of
            ``bae-lens/movie-reviews`` the held-out split is served, of any other the split
            ``"train"`` (SAELens' choice), on which the SAE may have been trained.
        store_batch_size_prompts: prompts a forward pass.

    Returns:
        SAELens' store, or a ``SentenceStore``, which serves each text by itself with its attention
        mask, where the metadata says ``text_unit: "sentence"``.

    Raises:
        ValueError: if the metadata names no dataset and none is given, or lacks another setting of
            the text that the SAE was trained on.
    """
    metadata = sae.cfg.metadata
    check("store_batch_size_prompts", store_batch_size_prompts, whole(1))
    if dataset is None:
        dataset = metadata.dataset_path or None
    if dataset is None:
        raise ValueError(
            "The SAE's metadata names no dataset (metadata.dataset_path); name one: --dataset."
        )
    if hasattr(dataset, "__len__") and len(dataset) == 0:
        raise ValueError(f"The dataset has no text: it is {shown(dataset)}. Give another one.")
    if isinstance(dataset, str):
        ours = demo.load_dataset(dataset, split="test")
        dataset = dataset if ours is None else ours
    if metadata.text_unit == "sentence":
        return _sentence_store(sae, model, dataset, store_batch_size_prompts)
    if metadata.text_unit not in (None, "context"):
        raise ValueError(
            "metadata.text_unit, the unit of text that the SAE was trained on, must be 'context' or "
            f"'sentence'; got {metadata.text_unit!r}."
        )
    store = ActivationsStore.from_sae(
        model,
        sae,
        dataset,
        streaming=isinstance(dataset, str),
        store_batch_size_prompts=store_batch_size_prompts,
        device=str(sae.device),
        disable_concat_sequences=bool(metadata.disable_concat_sequences),
        sequence_separator_token=metadata.get("sequence_separator_token", "bos"),
    )
    excluded = special_token_ids(model, metadata.exclude_special_tokens or False)
    if excluded:
        store.exclude_special_tokens = torch.tensor(excluded, device=store.device)
    return store


def _sentence_store(
    sae: SAE[Any], model: HookedRootModule, dataset: Any, store_batch_size_prompts: int
) -> SentenceStore:
    # Imported here, since training itself imports the evals.
    from bae_lens.training.sentences import SentenceStore

    metadata = sae.cfg.metadata
    if metadata.context_size is None:
        raise ValueError("The SAE's metadata names no context_size (tokens of a sentence at most).")
    if isinstance(dataset, str):
        dataset = load_dataset(dataset, split="train", streaming=True)
    return SentenceStore(
        model,
        dataset,
        list(dict.fromkeys(hook_names(sae))),
        context_size=metadata.context_size,
        store_batch_size_prompts=store_batch_size_prompts,
        exclude_special_tokens=special_token_ids(model, metadata.exclude_special_tokens or False),
        device=sae.device,
    )
