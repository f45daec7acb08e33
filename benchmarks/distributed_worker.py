"""One process of ``distributed.py``: a training that counts its tokens, its time and its traffic.

    torchrun --nproc-per-node 2 benchmarks/distributed_worker.py SETTINGS.json

SETTINGS has the fields of ``Settings``; what was measured is written beside it, as ``RESULT.json`` in its
folder, by rank 0.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from sae_lens.training.sae_trainer import SAETrainer

from bae_lens import TrainingBAEConfig
from bae_lens.activations.text_store import TextStore
from bae_lens.distributed import all_gather_objects, n_ranks, rank
from bae_lens.distributed.processes import start_process_group
from bae_lens.training.config_file import load_config
from bae_lens.training.fit import fit_activations

RESULT = "result.json"
# Collectives that this package calls on tensors; those on objects are few and before training.
_COLLECTIVES = (
    "all_reduce",
    "all_gather",
    "all_gather_into_tensor",
    "all_to_all_single",
    "reduce_scatter_tensor",
    "broadcast",
)


@dataclass(frozen=True)
class Settings:
    """What is trained.

    Attributes:
        threads: of PyTorch, in each process.
        batch: tokens of the global batch.
        tokens: to train on, of all processes together.
        config: name of a shipped config, whose language model is run throughout; None: activations drawn
            at random, ``d_in`` wide, so that there is nothing but steps.
        overrides: of the config.
        d_in, sae: of steps alone; ``sae`` has the fields of ``TrainingBAEConfig``.
    """

    threads: int
    batch: int
    tokens: int
    config: str | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    d_in: int = 0
    sae: dict[str, Any] = field(default_factory=dict)


@dataclass
class Marks:
    """When, after how many steps, and with how much behind it."""

    seconds: float
    cpu_seconds: float
    steps: int
    tokens: int
    communication_seconds: float
    communication_cpu_seconds: float
    bytes: int


class Meter:
    """Counts of this process, and marks of them."""

    def __init__(self) -> None:
        self.steps = self.tokens = self.bytes = 0
        self.communication = self.communication_cpu = 0.0
        self.marks: list[Marks] = []

    def mark(self) -> None:
        self.marks.append(
            Marks(
                time.perf_counter(),
                time.process_time(),
                self.steps,
                self.tokens,
                self.communication,
                self.communication_cpu,
                self.bytes,
            )
        )

    def watch_collectives(self) -> None:
        """Count the bytes that are given to collectives, and the time until they are done."""
        for name in _COLLECTIVES:
            setattr(dist, name, self._timed(getattr(dist, name)))
        self._watch(dist.Work, "wait")

    def _timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(call)
        def timed(*args: Any, **kwargs: Any) -> Any:
            tensors = [x for x in args if isinstance(x, torch.Tensor)]
            # Of a gather, or an exchange, the tensor that goes in is the last.
            self.bytes += tensors[-1].nbytes if tensors else 0
            return self._within(call, args, kwargs)

        return timed

    def _watch(self, owner: type, name: str) -> None:
        method = getattr(owner, name)
        setattr(owner, name, lambda *args, **kwargs: self._within(method, args, kwargs))

    def _within(self, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        begin, cpu = time.perf_counter(), time.process_time()
        try:
            return call(*args, **kwargs)
        finally:
            self.communication += time.perf_counter() - begin
            self.communication_cpu += time.process_time() - cpu

    def watch_steps(self, *, marks_each: bool) -> None:
        step = SAETrainer.step

        def counted(trainer: Any, batch: torch.Tensor) -> Any:
            if marks_each:
                self.mark()
                self.tokens += len(batch)
            self.steps += 1
            return step(trainer, batch)

        SAETrainer.step = counted  # pyright: ignore[reportAttributeAccessIssue]

    def watch_reading(self) -> None:
        """A mark whenever the language model is about to run; the tokens are those that it gives."""
        read = TextStore.get_filtered_llm_batch

        def counted(store: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
            self.mark()
            rows = read(store, *args, **kwargs)
            self.tokens += len(rows)
            return rows

        TextStore.get_filtered_llm_batch = counted  # pyright: ignore[reportAttributeAccessIssue]


def measure(settings: Settings) -> list[Marks]:
    """Train, and return the marks of this process."""
    torch.set_num_threads(settings.threads)
    meter = Meter()
    meter.watch_collectives()
    meter.watch_steps(marks_each=settings.config is None)
    if settings.config is not None:
        meter.watch_reading()
        overrides = settings.overrides | {
            "training_tokens": settings.tokens,
            "train_batch_size_tokens": settings.batch,
        }
        load_config(settings.config, overrides).run()
    else:
        start_process_group()
        generator = torch.Generator().manual_seed(0)
        activations = torch.randn(16 * settings.batch, settings.d_in, generator=generator)
        cfg = TrainingBAEConfig(d_in=settings.d_in, **settings.sae)
        fit_activations(cfg, activations, settings.tokens // settings.batch, settings.batch)
    meter.mark()
    return meter.marks


def main() -> None:
    path = Path(sys.argv[1])
    settings = Settings(**json.loads(path.read_text()))
    os.environ["TQDM_DISABLE"] = "1"
    with redirect_stdout(sys.stderr):
        own = measure(settings)
        every = all_gather_objects([asdict(mark) for mark in own])
    if rank() == 0:
        found = {"ranks": n_ranks(), "marks": every}
        path.with_name(RESULT).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
