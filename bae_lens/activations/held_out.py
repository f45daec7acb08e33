"""The model and the held-out text that a saved SAE belongs to, rebuilt from its metadata."""

from __future__ import annotations

import itertools
from typing import Any, Literal

import torch
from datasets import Dataset
from sae_lens import SAE, ActivationsStore
from transformer_lens.HookedRootModule import HookedRootModule

from bae_lens import offline as demo
from bae_lens.activations.hook_points import hook_names
from bae_lens.activations.labeled_texts import is_file_of_texts, read_texts
from bae_lens.activations.rank_share import own_text
from bae_lens.activations.sentence_store import SentenceStore
from bae_lens.activations.special_tokens import special_token_ids
from bae_lens.activations.text_store import TextStore, check_text_settings
from bae_lens.checks.fields import Text, check, shown, whole
from bae_lens.loading import hub
from bae_lens.loading.language_models import check_named_folder, load_model


def load_model_of(
    sae: SAE[Any],
    device: str = "cpu",
    *,
    model_name: str | None = None,
    model_class_name: str | None = None,
    trust_remote_code: bool = False,
    source: str = "The SAE's metadata",
) -> HookedRootModule:
    """The language model that the SAE's metadata names, from PyPI or through SAELens.

    Metadata may be somebody else's: see ``bae_lens.loading.language_models`` for what is taken from it.
    A folder that it names as a ``TransformerBridge`` is opened only if it is given as ``model_name`` too.

    Args:
        sae: a loaded SAE.
        device: where to put the model.
        model_name: a name or a folder in place of the metadata's.
        model_class_name: SAELens' name of a class in place of the metadata's.
        trust_remote_code: take all that the metadata asks for, and let the model's own code run.
        source: what messages call the metadata.

    Raises:
        ValueError: if the metadata names no model or no hook point, it asks for more than is taken
            from it, it names a folder that is not given, or the model cannot be found or read.
    """
    metadata = sae.cfg.metadata
    if model_name is None and metadata.model_name is None:
        raise ValueError(
            f"{source} names no model (metadata.model_name), so there is none to evaluate it on. Name "
            "one: --model."
        )
    if model_name is None and not trust_remote_code:
        check_named_folder(
            metadata.model_name, model_class_name or metadata.model_class_name, source
        )
    return load_model(
        metadata.model_name if model_name is None else model_name,
        model_class_name or metadata.model_class_name or "HookedTransformer",
        device=device,
        options=metadata.model_from_pretrained_kwargs,
        hook_names=list(dict.fromkeys(hook_names(sae))),
        source=source if model_name is None else "--model",
        trust_remote_code=trust_remote_code,
    )


def open_text(name: Any, split: Literal["train", "test"] = "train", streaming: bool = True) -> Any:
    """A dataset by what a config or the metadata calls it.

    Args:
        name: ``bae-lens/movie-reviews``, a file of texts (see ``read_texts``), or the name or folder of
            a dataset.
        split: of the movie reviews; of any other dataset it is ``"train"``, and a file has one.
        streaming: whether a dataset of the hub is streamed.

    Raises:
        FileNotFoundError: if it is meant for a file that is not there.
        ValueError: if there is nothing of that name, or it cannot be read.
    """
    name = check("The dataset", name, Text(may_be_empty=False))
    ours = demo.load_dataset(name, split=split)
    if ours is not None:
        return ours
    if is_file_of_texts(name):
        return Dataset.from_dict({"text": read_texts(name)})
    return hub.load_dataset(name, streaming=streaming)


def rows_after(dataset: Any, n_rows: int) -> Any:
    """A dataset without its first rows: the text that is left for who has read those, in their order."""
    if isinstance(dataset, Dataset):
        # An empty range that begins at its end is refused.
        return dataset.select(range(len(dataset))[n_rows:] or range(0))
    if hasattr(dataset, "skip"):
        return dataset.skip(n_rows)
    return list(itertools.islice(dataset, n_rows, None))


def held_out_store(
    sae: SAE[Any],
    model: HookedRootModule,
    dataset: Any = None,
    store_batch_size_prompts: int = 8,
    all_ranks: bool = False,
) -> ActivationsStore | Any:
    """A store of text for a saved SAE, with its own context size, BOS and special-token settings.

    Unlike ``ActivationsStore.from_sae`` it takes ``exclude_special_tokens``,
    ``disable_concat_sequences`` and ``sequence_separator_token`` from the metadata too, where
    SAELens writes them but does not read them.

    Args:
        sae: a loaded SAE.
        model: its language model.
        dataset: a dataset, its name, or a file of texts (column ``text``); what the metadata names
            if omitted. Of ``bae-lens/movie-reviews`` the held-out split is served, of any other
            dataset the split ``"train"`` (SAELens' choice), on which the SAE may have been trained.
        store_batch_size_prompts: prompts per forward pass.
        all_ranks: serve this rank's share of the text, see ``own_text``.

    Returns:
        SAELens' store, or a ``SentenceStore``, which serves each text by itself with its attention
        mask, where the metadata says ``text_unit: "sentence"``.

    Raises:
        ValueError: if the metadata names no dataset and none is given, or lacks another setting of
        the text that the SAE was trained on; or there is no dataset of that name, it cannot be
        read, or no token is left in it.
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
        dataset = open_text(dataset, "test")
    if all_ranks:
        dataset = own_text(dataset)
    if metadata.text_unit == "sentence":
        return _sentence_store(sae, model, dataset, store_batch_size_prompts)
    if metadata.text_unit not in (None, "context"):
        raise ValueError(
            "metadata.text_unit, the unit of text that the SAE was trained on, must be 'context' or "
            f"'sentence'; got {metadata.text_unit!r}."
        )
    excluded = check_text_settings(metadata, model, dataset)
    store = TextStore.from_sae(
        model,
        sae,
        dataset,
        store_batch_size_prompts=store_batch_size_prompts,
        device=str(sae.device),
        disable_concat_sequences=bool(metadata.disable_concat_sequences),
        sequence_separator_token=metadata.get("sequence_separator_token", "bos"),
    )
    if excluded:
        store.exclude_special_tokens = torch.tensor(excluded, device=store.device)
    return store


def _sentence_store(
    sae: SAE[Any], model: HookedRootModule, dataset: Any, store_batch_size_prompts: int
) -> SentenceStore:
    metadata = sae.cfg.metadata
    if metadata.context_size is None:
        raise ValueError("The SAE's metadata names no context_size (tokens of a sentence at most).")
    return SentenceStore(
        model,
        dataset,
        list(dict.fromkeys(hook_names(sae))),
        context_size=metadata.context_size,
        store_batch_size_prompts=store_batch_size_prompts,
        exclude_special_tokens=special_token_ids(model, metadata.exclude_special_tokens or False),
        device=sae.device,
    )
