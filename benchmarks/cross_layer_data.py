"""What ``cross_layer.py`` compares on: models, activations, and how a reconstruction is scored."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from common import CONTEXT_SIZE, collect_pairs
from sae_lens import ActivationsStore
from torch import Tensor

from bae_lens import offline as demo
from bae_lens.activations.paired_activations import ContextStore, PairedStore
from bae_lens.activations.sentence_store import SentenceStore
from bae_lens.activations.special_tokens import special_token_ids
from bae_lens.files.whole import whole_file

EVAL_TOKENS, CE_SEQUENCES = 8192, 8


@dataclass(frozen=True)
class Task:
    """One model and its hook points, and what everything on it has in common."""

    name: str
    title: str
    model_name: str
    hook_name: str
    hook_name_out: str
    d_in: int
    is_encoder: bool
    layer_out: int
    n_codes: int = 512
    d_sae: int = 1024
    ks: tuple[int, ...] = (1, 4, 16)
    steps: int = 400
    batch_size: int = 2048
    lr_token: float = 4e-3
    lr_transformer: float = 3e-3
    lr_topk: float = 3e-3
    decoder_width: int = 256
    n_train: int = 250_000
    n_test: int = 50_000
    n_initialization: int = 32_768
    n_ce: int = 64
    length: int = CONTEXT_SIZE

    @property
    def filename(self) -> str:
        return f"{self.name}-{self.n_train}-{self.n_test}.pt"


TASKS = {
    "smollm2": Task(
        name="smollm2",
        title="SmolLM2-135M, residual after block 10 -> after block 20",
        model_name=demo.MODEL_NAME,
        hook_name="blocks.10.hook_resid_post",
        hook_name_out="blocks.20.hook_resid_post",
        d_in=576,
        is_encoder=False,
        layer_out=20,
    ),
    "minilm": Task(
        name="minilm",
        title="all-MiniLM-L6-v2, residual after block 1 -> after block 4",
        model_name=demo.ENCODER_NAME,
        hook_name="blocks.1.hook_out",
        hook_name_out="blocks.4.hook_out",
        d_in=384,
        is_encoder=True,
        layer_out=4,
    ),
}


@dataclass
class Row:
    """One method, scored on held-out tokens; None where a figure has no meaning.

    ``seconds`` are of one thread's own time: other processes may want the same cores.
    """

    method: str
    seed: int
    ev: float
    seconds: float
    bits: float | None = None
    perplexity: float | None = None
    n_in_use: int | None = None
    n_codes: int | None = None
    ev_shuffled: float | None = None
    ev_zeroed: float | None = None
    ce_zero: float | None = None
    ce_mean: float | None = None
    details: dict[str, float] = field(default_factory=dict)


# Activations


class Split:
    """Tokens of whole sequences with both activations, and the valid ones among them by themselves."""

    def __init__(self, tokens: Tensor, rows: Tensor, d_in: int) -> None:
        self.tokens, self.rows, self.d_in = tokens, rows, d_in
        self.length = tokens.shape[1]
        self.valid = rows[:, -1] > 0
        self.packed = rows[self.valid]
        self.lower, self.upper = self.packed[:, :d_in], self.packed[:, d_in:-1]
        self.ids = tokens.flatten()[self.valid]

    def in_sequences(self, values: Tensor) -> Tensor:
        """``[n_valid, …]`` → ``[n, length, …]``, zero where there is no valid token."""
        spread = values.new_zeros(len(self.valid), *values.shape[1:])
        spread[self.valid] = values
        return spread.unflatten(0, (-1, self.length))


def _store(task: Task, split: Any) -> PairedStore:
    dataset: Any = demo.load_dataset(demo.DATASET_NAME, split=split)
    hooks = [task.hook_name, task.hook_name_out]
    if task.is_encoder:
        model: Any = demo.load_model(task.model_name, "TransformerBridge")
        # [CLS] is kept, as a token of its own.
        special = [model.tokenizer.sep_token_id, model.tokenizer.pad_token_id]
        return SentenceStore(
            model,
            dataset,
            hooks,
            context_size=task.length,
            exclude_special_tokens=special,
        )
    model = language_model(task.model_name)
    store = ActivationsStore.from_config_multi_hook(
        model,
        dataset=dataset,
        hook_names=hooks,
        hook_d_ins=dict.fromkeys(hooks, task.d_in),
        context_size=task.length,
        disable_concat_sequences=True,
    )
    return ContextStore(store, hooks, special_token_ids(model, True))


def prepare(task: Task, folder: Path) -> None:
    """Both splits in a file, unless they are there."""
    path = folder / task.filename
    if path.exists():
        return
    sizes = {"train": task.n_train, "test": task.n_test}
    splits = {
        name: collect_pairs(_store(task, name), n, task.length, f"{task.name} {name}")
        for name, n in sizes.items()
    }
    with whole_file(path) as partial:
        torch.save(splits, partial)


@lru_cache(maxsize=1)
def load(path: Path, d_in: int) -> dict[str, Split]:
    splits = torch.load(path, mmap=True)
    return {name: Split(s["tokens"], s["rows"], d_in) for name, s in splits.items()}


@lru_cache(maxsize=1)
def language_model(name: str) -> Any:
    return demo.load_model(name)


# Scores


def explained_variance(reconstruction: Tensor, target: Tensor) -> float:
    """1 − Σ‖y − ŷ‖² / Σ‖y − mean‖², the mean being that of ``target``."""
    mean = target.mean(0, dtype=torch.float64)
    error, spread = 0.0, 0.0
    for y_hat, y in zip(reconstruction.split(EVAL_TOKENS), target.split(EVAL_TOKENS), strict=True):
        error += (y_hat.double() - y).square().sum().item()
        spread += (y - mean).square().sum().item()
    return 1 - error / spread


def entropy_bits(counts: Tensor) -> float:
    """Of the distribution that the counts are."""
    p = counts.double() / counts.sum()
    return -torch.xlogy(p, p).sum().item() / math.log(2)


class RecoveredLoss:
    """Cross-entropy of the language model that goes on from a reconstruction at the output hook.

    Of the first held-out sequences. Special tokens keep their own activation, in both ablations
    too, and their predictions are not scored.
    """

    @torch.no_grad()
    def __init__(self, model: Any, split: Split, layer: int, n_sequences: int) -> None:
        n = n_sequences * split.length
        self.model, self.layer = model, layer
        self.tokens = split.tokens[:n_sequences]
        self.valid = split.valid[:n]
        self.n_valid = int(self.valid.sum())
        self.upper = split.rows[:n, split.d_in : -1]
        own = self.upper[self.valid]
        self.baselines = {
            "model": self.ce(own),
            "zero": self.ce(torch.zeros_like(own)),
            "mean": self.ce(own.mean(0).expand_as(own)),
        }

    @torch.no_grad()
    def ce(self, reconstruction: Tensor) -> float:
        """From ``[n_valid, d_out]``: nats per token."""
        resid = self.upper.clone()
        resid[self.valid] = reconstruction[: self.n_valid]
        shape = self.tokens.shape
        parts = zip(
            resid.view(*shape, -1).split(CE_SEQUENCES),
            self.tokens.split(CE_SEQUENCES),
            self.valid.view(shape).split(CE_SEQUENCES),
            strict=True,
        )
        losses = []
        for x, tokens, valid in parts:
            loss = self.model(
                x,
                start_at_layer=self.layer + 1,
                tokens=tokens,
                return_type="loss",
                loss_per_token=True,
            )
            losses.append(loss[valid[:, :-1]])
        return torch.cat(losses).mean().item()

    def scores(self, reconstruction: Tensor) -> tuple[float, float]:
        """Share of what zero-ablation and mean-ablation cost that is recovered."""
        ce = self.ce(reconstruction)
        model, *ablated = self.baselines.values()
        zero, mean = ((other - ce) / (other - model) for other in ablated)
        return zero, mean


@lru_cache(maxsize=1)
def recovered_loss(task: Task, folder: Path) -> RecoveredLoss | None:
    if task.is_encoder:
        return None
    split = load(folder / task.filename, task.d_in)["test"]
    return RecoveredLoss(language_model(task.model_name), split, task.layer_out, task.n_ce)


@dataclass
class Trial:
    """What a group of methods is fitted and scored with."""

    task: Task
    seed: int
    train: Split
    test: Split
    loss: RecoveredLoss | None

    def score(
        self,
        method: str,
        seconds: float,
        decode: Callable[[Tensor | None], Tensor],
        codes: Tensor,
        n_codes: int | None = None,
        details: dict[str, float] | None = None,
    ) -> Row:
        """A row, with its controls.

        Args:
            method: its name.
            seconds: of fitting it.
            decode: codes of the valid held-out tokens → their reconstruction; None: zero vectors in
                place of codes.
            codes: of the valid held-out tokens: whatever ``decode`` reads.
            n_codes: how many there are, where codes are numbers; gives the figures on their use.
            details: of the row.
        """
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(len(codes), generator=generator)
        with torch.no_grad():
            own = decode(codes)
            row = Row(method, self.seed, explained_variance(own, self.test.upper), seconds)
            row.ev_shuffled = explained_variance(decode(codes[order]), self.test.upper)
            row.ev_zeroed = explained_variance(decode(None), self.test.upper)
        if n_codes is not None:
            counts = codes.bincount()
            row.bits = entropy_bits(counts)
            row.perplexity = 2**row.bits
            row.n_in_use, row.n_codes = int((counts > 0).sum()), n_codes
        if self.loss is not None:
            row.ce_zero, row.ce_mean = self.loss.scores(own)
        row.details |= details or {}
        return row
