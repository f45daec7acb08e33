"""Fine-tuning with transformers' Trainer, and the folder that comes of it."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from bae_lens import offline as demo
from bae_lens.activations.labeled_texts import LabeledTexts
from bae_lens.encoders import n_positions
from bae_lens.files.json_file import write_json
from bae_lens.files.whole import check_output_folder, whole_folder
from bae_lens.finetuning.parts import split, texts_sha256
from bae_lens.finetuning.result import RESULT_FILENAME, FinetuningResult
from bae_lens.finetuning.settings import FinetuningSettings
from bae_lens.loading.devices import check_device
from bae_lens.loading.encoders_to_train import EncoderToTrain, load_encoder


def finetune_classifier(
    data: LabeledTexts | str | Path | Dataset | Iterable[Mapping[str, Any]],
    output: str | Path,
    model: str = demo.ENCODER_NAME,
    settings: FinetuningSettings | None = None,
    *,
    device: str = "cpu",
    verbose: bool = False,
    data_name: str | None = None,
) -> FinetuningResult:
    """Fine-tune an encoder to classify texts, and write it as a folder in Hugging Face's own format.

    ``AutoModelForSequenceClassification.from_pretrained`` reads the folder, and so does
    ``load_model(folder, "TransformerBridge")`` of ``bae_lens.loading.language_models``, and any config
    of a training run. On one machine the same arguments give the same weights.

    Args:
        data: labeled texts, or what ``LabeledTexts.read`` makes them of; of a dataset's name the
            split ``"train"``.
        output: the folder. It is written when all is done, whole or not at all, and may hold an
            earlier result of this function, whose place it takes.
        model: ``bae-lens/minilm-l6``, a folder, or a name on the hub, of an encoder.
        settings: its defaults if omitted.
        device: ``"cpu"``, or the kind of accelerator that transformers' Trainer finds.
        verbose: show a progress bar.
        data_name: what to call the data in the result, where they are not given by name.

    Returns:
        Accuracy on the held-out texts, and what it is of; also in ``finetuning.json`` in the folder.

    Raises:
        FileNotFoundError: if ``data`` is meant for a file that is not there.
        ValueError: if the data cannot be read, a class has no text in one of the parts, the model
            cannot be loaded or cannot classify, the context is longer than the model's, the folder
            holds something else or cannot be written, or training does not stay finite.
        ImportError: if a ``bae-lens/`` name is given and its package is missing.
    """
    from bae_lens.finetuning.trainer import train  # Trainer takes long to import.

    settings = FinetuningSettings() if settings is None else settings
    check_device("device", device)
    _check_output(output)
    if not isinstance(data, LabeledTexts):
        data_name = str(data) if data_name is None and isinstance(data, (str, Path)) else data_name
        data = LabeledTexts.read(data, split="train")
    parts = split(data, settings)
    with _seeded(settings.seed):
        encoder = load_encoder(model, data.label_names, settings.head, "model")
        encoded, n_truncated = _encode(encoder, data, settings.context_size)
        n_correct = train(encoder, encoded, parts, settings, device, verbose)
    labels = data.labels[parts.held_out]
    result = FinetuningResult(
        model=model,
        data=data_name,
        texts_sha256=texts_sha256(data),
        settings=asdict(settings),
        class_names=list(data.label_names),
        n_train=len(parts.train),
        n_duplicates=parts.n_duplicates,
        n_truncated=int(n_truncated[torch.cat(parts[:2])].sum()),
        held_out=parts.held_out.tolist(),
        n_correct=n_correct,
        n_most_frequent=int(torch.bincount(labels).max()),
    )
    with whole_folder(output, last="model.safetensors") as folder:
        encoder.model.save_pretrained(folder)
        encoder.tokenizer.save_pretrained(folder)
        write_json(folder / RESULT_FILENAME, result.to_dict())
        for weights in folder.glob("*.safetensors"):  # safetensors lets no other user read them.
            shutil.copymode(folder / RESULT_FILENAME, weights)
    return result


def _check_output(output: str | Path) -> None:
    """That the folder can be written, and that nothing of somebody else's is in it."""
    check_output_folder(output)
    folder = Path(os.path.realpath(output))
    if folder.is_dir() and any(folder.iterdir()) and not (folder / RESULT_FILENAME).is_file():
        raise ValueError(
            f"{output} holds something else than a fine-tuned model (there is no {RESULT_FILENAME} in it), "
            "and is not written over. Name another folder."
        )


def _encode(
    encoder: EncoderToTrain, data: LabeledTexts, context_size: int
) -> tuple[list[dict[str, Any]], Tensor]:
    """Examples for the Trainer, of all texts, and which of them were cut.

    Raises:
        ValueError: if the model has not so many positions.
    """
    most = n_positions(encoder.model.config)
    if most is not None and context_size > most:
        raise ValueError(
            f"context_size is {context_size}, and the model reads {most} tokens at most. Lower it."
        )
    encoded = encoder.tokenizer(data.texts, truncation=True, max_length=context_size)
    rows = [
        dict(zip(encoded, values, strict=True)) for values in zip(*encoded.values(), strict=True)
    ]
    examples = [row | {"labels": i} for row, i in zip(rows, data.labels.tolist(), strict=True)]
    full = [i for i, row in enumerate(rows) if len(row["input_ids"]) == context_size]
    again = encoder.tokenizer([data.texts[i] for i in full])["input_ids"] if full else []
    is_cut = torch.zeros(len(rows), dtype=torch.bool)
    is_cut[full] = torch.tensor([len(ids) > context_size for ids in again], dtype=torch.bool)
    return examples, is_cut


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Random numbers by the seed in the block, and the caller's own after it: Trainer seeds them all."""
    from transformers import set_seed

    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        set_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
