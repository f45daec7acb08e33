"""Training by transformers' Trainer, which TransformerLens' own dependencies (accelerate) are enough for."""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from tqdm import tqdm
from transformers import (
    DataCollatorWithPadding,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from bae_lens.finetuning.parts import Parts
from bae_lens.finetuning.settings import FinetuningSettings
from bae_lens.loading.encoders_to_train import EncoderToTrain

_WARM_UP = 0.1  # of the steps
_WEIGHT_DECAY = 0.01


def train(
    encoder: EncoderToTrain,
    examples: list[dict[str, Any]],
    parts: Parts,
    settings: FinetuningSettings,
    device: str,
    verbose: bool,
) -> int:
    """Train the model in place.

    Args:
        encoder: the model, which is on the CPU in the end, in evaluation mode.
        examples: token ids, attention mask and label of each text.
        parts: which of them are for what.
        settings: of the training.
        device: ``"cpu"``, or the kind of accelerator that the Trainer finds.
        verbose: show a progress bar.

    Returns:
        How many held-out texts the model gives their own class.

    Raises:
        ValueError: if training did not stay finite.
    """
    with (
        tempfile.TemporaryDirectory() as folder
    ):  # In which nothing is written with these arguments.
        arguments = TrainingArguments(
            folder,
            num_train_epochs=settings.epochs,
            learning_rate=settings.learning_rate,
            per_device_train_batch_size=settings.batch_size,
            per_device_eval_batch_size=settings.batch_size,
            warmup_steps=_WARM_UP,
            weight_decay=_WEIGHT_DECAY,
            # Batches of texts of about one length: a third of the tokens would else be padding.
            train_sampling_strategy="group_by_length",
            seed=settings.seed,
            use_cpu=torch.device(device).type == "cpu",
            dataloader_pin_memory=False,
            disable_tqdm=True,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
        )
        trainer = Trainer(
            encoder.model,
            arguments,
            train_dataset=[examples[i] for i in parts.train.tolist()],  # pyright: ignore[reportArgumentType]
            data_collator=DataCollatorWithPadding(encoder.tokenizer),
        )
        # They print to stdout.
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(_Bar(verbose))
        trainer.train()
        held_out: Any = [examples[i] for i in parts.held_out.tolist()]
        output: Any = trainer.predict(held_out)
        # Its own order: texts to be predicted are grouped by length too.
        logits, labels = torch.tensor(output.predictions), torch.tensor(output.label_ids)
    if not logits.isfinite().all():
        raise ValueError(
            f"Training did not stay finite with learning_rate = {settings.learning_rate:g}: the logits are "
            "NaN or infinite. Lower it."
        )
    encoder.model.cpu().eval()
    return int((logits.argmax(-1) == labels).sum())


class _Bar(TrainerCallback):
    """A progress bar of the steps, on stderr."""

    def __init__(self, shown: bool) -> None:
        self.shown = shown
        self.bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        self.bar = tqdm(total=state.max_steps, desc="Fine-tuning", disable=not self.shown)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        self.bar.update(state.global_step - self.bar.n)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        self.bar.close()
