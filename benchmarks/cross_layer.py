"""Which reconstruction of a higher layer goes through codes of a lower one.

    python benchmarks/cross_layer.py                    # SmolLM2 and MiniLM, three seeds: hours
    python benchmarks/cross_layer.py --quick            # minutes: little data, few steps, one seed
    python benchmarks/cross_layer.py --model smollm2 --cache bench_output --output cross_layer.json

Every method reads the same training tokens (250,000 of movie reviews; BOS, [SEP] and padding masked,
[CLS] kept) at the lower hook point and is scored on the same 50,000 held-out ones at the higher.

* Trained ones (CLVQ-VAE, single-layer VQ-VAE, decoders on frozen codes, TopK transcoders) get the same
  number of steps, batches of the same size, SAELens' stock trainer and one learning-rate schedule. A
  batch is 2,048 single tokens, or 16 sequences of 128 positions for transformer decoders, of which those
  that are masked do not count: a few less for SmolLM2, and fewer for MiniLM, whose sentences are padded.
* The transformer decoder on frozen codes is CLVQ-VAE's own, of the same size and trained by the same
  code; only encoder and codebook stand still. k-means gets all training tokens and up to 30 iterations,
  CLVQ-VAE's codebook starts from 32,768 of them.
* Nothing is tuned here. CLVQ-VAE's defaults and the learning rates of its two decoders, which VQ-VAE and
  decoders on frozen codes share, come from single runs on SmolLM2 that were scored on these held-out
  tokens. On MiniLM, and for TopK, nothing was chosen. ``--lr_token``, ``--lr_transformer`` and
  ``--lr_topk`` set the rates. The predictive encoder has the values of ``TrainingCLVQVAEConfig.predictive``;
  its control is k-means of what the linear map predicts, which sees both layers as it does.

Scored is the autoencoder that ``save_inference_model`` writes. The two controls say how much of a
reconstruction went through the codes: *shuffled* gives each valid held-out token the code of another
one, drawn at random, and *zeroed* gives the decoder vectors of zeros in place of codes. In the released
design the continuous memory stays with its token in both. CE recovered is of the language model that
goes on from the reconstruction, special tokens left as they are, also in the ablations that are its
zero. Bits per token are the entropy of the codes on held-out tokens, each by itself; for TopK those of
the support (exact for k = 1, else the Chow-Liu bound) and of the magnitudes at the coarsest resolution
that costs at most 0.01 of EV. Seconds are CPU time of one thread, of everything that a row needs to be
fitted, its codes included.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import as_completed
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from cross_layer_data import TASKS, Row, Task, Trial, language_model, load, prepare
from cross_layer_trials import (
    TOKEN,
    TOKEN_OFF,
    TRANSFORMER,
    TRANSFORMER_OFF,
    clvq_config,
    groups,
    initialization_rows,
    run_group,
)
from sae_lens.training.sae_trainer import SAETrainer
from speed_timing import timed
from torch import Tensor
from workers import pool_of
from writing import add_write_argument, written

from bae_lens import TrainingCLVQVAE
from bae_lens.activations.replay import ReplayedActivations
from bae_lens.files.whole import write_text
from bae_lens.nn import EMACodebook
from bae_lens.nn.codebook import Quantized
from bae_lens.training.fit import trainer_config

QUICK: dict[str, Any] = {
    "n_codes": 64,
    "d_sae": 256,
    "steps": 30,
    "n_train": 20_000,
    "n_test": 6_000,
    "n_initialization": 8_192,
    "n_ce": 8,
}
WARM_UP = 3


def settings_of(task: Task) -> dict[str, Any]:
    """The task, and CLVQ-VAE's defaults as they are today."""
    autoencoders = {
        decoder: asdict(clvq_config(task, 0, decoder=decoder))
        for decoder in ("token", "transformer")
    }
    for settings in autoencoders.values():
        del settings["metadata"]
    return asdict(task) | {"autoencoders": autoencoders}


class Results:
    """What each group gave, in a JSON file if there is one, written anew with each."""

    def __init__(self, path: Path | None, tasks: Iterable[Task]) -> None:
        self.path = path
        self.settings = {task.name: json.loads(json.dumps(settings_of(task))) for task in tasks}
        self.groups: dict[str, dict[str, Any]] = {}
        self.figures: dict[str, Any] = {}
        if path is None or not path.exists():
            return
        saved = json.loads(path.read_text())
        for name, settings in saved["settings"].items():
            if self.settings.setdefault(name, settings) != settings:
                raise SystemExit(
                    f"{path} holds results on {name} with other settings; give another file."
                )
        self.groups = saved["groups"]

    def add(self, key: str, rows: list[Row], ce: dict[str, float]) -> None:
        self.groups[key] = {"rows": [asdict(row) for row in rows], "ce": ce}
        self.write()

    def write(self) -> None:
        if self.path is None:
            return
        content = {"settings": self.settings, "groups": self.groups} | self.figures
        write_text(self.path, json.dumps(content, indent=1))

    def rows(self, task: Task, seeds: Sequence[int]) -> list[Row]:
        """Of these seeds, in the order of the table."""
        keys = [key_of(task, group, seed) for group in groups(task) for seed in seeds]
        found = (self.groups[key]["rows"] for key in keys if key in self.groups)
        return [Row(**row) for rows in found for row in rows]

    def ce(self, task: Task) -> dict[str, float]:
        """Of the model itself and of its ablations."""
        for key, group in self.groups.items():
            if key.startswith(task.name + "/"):
                return group["ce"]
        return {}


def key_of(task: Task, group: str, seed: int) -> str:
    return f"{task.name}/{group}/{seed}"


def run_groups(tasks: Iterable[Task], results: Results, args: argparse.Namespace) -> None:
    """Those that are not in the results yet, in processes of one thread each."""
    os.environ["TQDM_DISABLE"] = "1"
    os.environ["OMP_NUM_THREADS"] = "1"
    jobs: dict[Any, str] = {}
    start = time.time()
    with pool_of(args.workers) as pool:
        for task in tasks:
            for seed in args.seeds:
                for i, group in enumerate(groups(task)):
                    # In the first there is nothing to be drawn.
                    wanted = i > 0 or seed == args.seeds[0]
                    wanted = wanted and (args.methods is None or group in args.methods)
                    key = key_of(task, group, seed)
                    if wanted and key not in results.groups:
                        jobs[pool.submit(run_group, task, group, seed, args.cache)] = key
        try:
            for i, job in enumerate(as_completed(jobs)):
                rows, ce = job.result()
                results.add(jobs[job], rows, ce)
                said = "; ".join(f"{row.method} {row.ev:.3f}" for row in rows)
                minutes = (time.time() - start) / 60
                print(f"[{i + 1}/{len(jobs)}, {minutes:.0f} min] {jobs[job]}: {said}", flush=True)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


# One training step, with the quantizer and without


class PassThrough(EMACodebook):
    """In the quantizer's place: what comes in goes out, and nothing is counted."""

    def quantize(self, z: Tensor, *_: Any, **__: Any) -> Quantized:  # pyright: ignore[reportIncompatibleMethodOverride]
        index = torch.zeros(len(z), dtype=torch.int64, device=z.device)
        nothing = torch.zeros(1, device=z.device)
        return Quantized(
            z.detach(), index, index, nothing.expand(len(z)), nothing.expand(len(z), self.n_codes)
        )

    def update(self, *_: Any, **__: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        pass


def without_quantizer(sae: TrainingCLVQVAE) -> TrainingCLVQVAE:
    """A copy whose decoder gets z itself."""
    identity = copy.deepcopy(sae)
    identity.quantizer = PassThrough(sae.quantizer.n_codes, sae.quantizer.d)
    return identity


def step_seconds(trial: Trial, decoder: str, n_steps: int, device: str = "cpu") -> dict[str, float]:
    """Medians of steps that take turns, and their ratio."""
    task = trial.task
    # How the codebook begins makes no difference to a step's time.
    sae = TrainingCLVQVAE(clvq_config(task, trial.seed, decoder=decoder, codebook_init="random"))
    sae.calibrate(initialization_rows(trial), task.batch_size)
    length = sae.cfg.sequence_length or 1
    rows = trial.train.rows if length > 1 else trial.train.packed
    batches = ReplayedActivations(
        rows.to(device), task.batch_size, trial.seed, sequence_length=length
    )
    config = trainer_config(WARM_UP + n_steps, task.batch_size, task.lr_token, device)
    trainers: dict[str, SAETrainer[Any, Any]] = {
        name: SAETrainer(config, model.to(device), batches)
        for name, model in (("quantizer", sae), ("identity", without_quantizer(sae)))
    }
    seconds: dict[str, list[float]] = {name: [] for name in trainers}
    for _ in range(WARM_UP + n_steps):
        batch = next(batches)
        for name, trainer in trainers.items():
            seconds[name].append(timed(lambda t=trainer, b=batch: t.step(b), device))
            trainer.n_training_steps += 1
    medians = {name: statistics.median(times[WARM_UP:]) for name, times in seconds.items()}
    return medians | {"ratio": medians["quantizer"] / medians["identity"]}


def time_steps(task: Task, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    torch.set_num_threads(1)
    splits = load(args.cache / task.filename, task.d_in)
    trial = Trial(task, args.seeds[0], splits["train"], splits["test"], None)
    return {name: step_seconds(trial, name, args.timed_steps) for name in ("token", "transformer")}


# Targets


def targets(
    task: Task, rows: list[Row], steps: dict[str, dict[str, float]]
) -> list[dict[str, Any]]:
    """What was asked of CLVQ-VAE from SmolLM2's block 10 to 20, beside what was measured."""
    found: list[dict[str, Any]] = []

    def add(target: str, measured: float, reached: bool, by_seed: list[float]) -> None:
        entry = {"target": target, "measured": measured, "reached": reached, "by_seed": by_seed}
        found.append(entry)

    for decoder, on, off, least in (
        ("token", TOKEN, TOKEN_OFF, 0.47),
        ("transformer", TRANSFORMER, TRANSFORMER_OFF, 0.51),
    ):
        own = {row.seed: row for row in rows if row.method == on}
        plain = {row.seed: row for row in rows if row.method == off}
        if own:
            shares = [(row.n_in_use or 0) / (row.n_codes or 1) for row in own.values()]
            worst = min(shares)
            add(f"{decoder}: codes in use >= 0.99, worst seed", worst, worst >= 0.99, shares)
            values = [row.perplexity or 0.0 for row in own.values()]
            mean, asked = statistics.mean(values), 0.7 * task.n_codes
            add(f"{decoder}: perplexity >= {asked:.0f} (0.7 K)", mean, mean >= asked, values)
            values = [row.ev for row in own.values()]
            mean = statistics.mean(values)
            add(f"{decoder}: EV >= {least}", mean, mean >= least, values)
        both = [seed for seed in own if seed in plain]
        for name, get in (("EV", lambda r: r.ev), ("perplexity", lambda r: r.perplexity or 0.0)):
            if both:
                values = [get(own[seed]) - get(plain[seed]) for seed in both]
                mean = statistics.mean(values)
                add(f"{decoder}: {name}, sampling on less off >= 0", mean, mean >= 0, values)
        if decoder in steps:
            ratio = steps[decoder]["ratio"]
            add(f"{decoder}: step / step without quantizer <= 1.3", ratio, ratio <= 1.3, [])
    return found


# Tables


def cell(values: Iterable[float | None], fmt: str) -> str:
    """Mean over seeds, with ± standard deviation where there are several."""
    known = [v for v in values if v is not None]
    if not known:
        return "–"
    text = format(statistics.mean(known), fmt)
    if len(known) == 1:
        return text
    return f"{text}±{format(statistics.stdev(known), fmt).replace('0.', '.', 1)}"


def in_use(rows: list[Row]) -> str:
    known = [row.n_in_use for row in rows if row.n_in_use is not None]
    return f"{statistics.mean(known):.0f}/{rows[0].n_codes}" if known else "–"


def table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> None:
    every = [header, *lines]
    widths = [max(len(line[i]) for line in every) for i in range(len(header))]
    rule = ["-" * width for width in widths]
    for line in (header, rule, *every[1:]):
        cells = [line[0].ljust(widths[0])]
        cells += [text.rjust(width) for text, width in zip(line[1:], widths[1:], strict=True)]
        print("| " + " | ".join(cells) + " |")
    print(flush=True)


def report(task: Task, rows: list[Row], ce: dict[str, float]) -> None:
    print(f"\n{task.title}; K = {task.n_codes}, {task.steps} steps of {task.batch_size}\n")
    if ce:
        print(
            f"Cross-entropy of the model itself {ce['model']:.3f}, zero-ablated {ce['zero']:.3f}, "
            f"mean-ablated {ce['mean']:.3f} nats per token.\n"
        )
    by_method: dict[str, list[Row]] = {}
    for row in rows:
        by_method.setdefault(row.method, []).append(row)
    quality: dict[str, tuple[Callable[[Row], float | None], str]] = {
        "EV": (lambda r: r.ev, ".3f"),
        "CE, zero": (lambda r: r.ce_zero, ".3f"),
        "CE, mean": (lambda r: r.ce_mean, ".3f"),
        "bits": (lambda r: r.bits, ".1f"),
        "perplexity": (lambda r: r.perplexity, ".0f"),
    }
    lines = [
        [
            method,
            *(cell(map(get, same), fmt) for get, fmt in quality.values()),
            in_use(same),
            cell((statistics.mean(row.seconds for row in same),), ".0f"),
        ]
        for method, same in by_method.items()
    ]
    table(["explained variance, CE recovered", *quality, "in use", "s"], lines)
    controls: dict[str, tuple[Callable[[Row], float | None], str]] = {
        "EV": (lambda r: r.ev, ".3f"),
        "shuffled": (lambda r: r.ev_shuffled, ".3f"),
        "zeroed": (lambda r: r.ev_zeroed, ".3f"),
        "drawn off nearest": (lambda r: r.details.get("drawn_off_nearest"), ".2f"),
        "alpha": (lambda r: r.details.get("alpha"), ".2f"),
    }
    lines = [
        [method, *(cell(map(get, same), fmt) for get, fmt in controls.values())]
        for method, same in by_method.items()
    ]
    table(["EV with other codes", *controls], lines)


def print_targets(found: list[dict[str, Any]]) -> None:
    lines = [
        [
            entry["target"],
            f"{entry['measured']:.4g}",
            "reached" if entry["reached"] else "MISSED",
            ", ".join(f"{value:.4g}" for value in entry["by_seed"]),
        ]
        for entry in found
    ]
    table(["target", "measured", "", "by seed"], lines)


# Command line


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=list(TASKS), help="one of them; default: both")
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--steps", type=int)
    names = list(groups(next(iter(TASKS.values()))))
    parser.add_argument("--methods", nargs="+", choices=names, help="fit no others")
    for name in ("lr_token", "lr_transformer", "lr_topk"):
        parser.add_argument(f"--{name}", type=float)
    parser.add_argument("--quick", action="store_true", help="little data, few steps, one seed")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--timed_steps", type=int, default=24, help="of each kind, for the ratio")
    parser.add_argument("--output", type=Path, help="JSON file; what it has is not repeated")
    parser.add_argument("--cache", type=Path, help="folder that keeps the activations")
    add_write_argument(parser)
    args = parser.parse_args(argv)
    args.seeds = args.seeds or ([0] if args.quick else [0, 1, 2])
    return args


def make_tasks(args: argparse.Namespace) -> list[Task]:
    options = dict(QUICK) if args.quick else {}
    for name in ("steps", "lr_token", "lr_transformer", "lr_topk"):
        if getattr(args, name) is not None:
            options[name] = getattr(args, name)
    return [replace(TASKS[name], **options) for name in ([args.model] if args.model else TASKS)]


def measure_and_report(args: argparse.Namespace) -> None:
    """Run everything that the arguments ask for, and print its tables."""
    tasks = make_tasks(args)
    results = Results(args.output, tasks)
    with tempfile.TemporaryDirectory() as temporary:
        args.cache = args.cache or Path(temporary)
        args.cache.mkdir(parents=True, exist_ok=True)
        for task in tasks:
            prepare(task, args.cache)
        language_model.cache_clear()
        run_groups(tasks, results, args)
        steps = {task.name: time_steps(task, args) for task in tasks}
    results.figures["step_seconds"] = steps
    for task in tasks:
        rows = results.rows(task, args.seeds)
        report(task, rows, results.ce(task))
        for decoder, times in steps[task.name].items():
            print(
                f"One step, {decoder} decoder: {times['quantizer']:.3f} s, with the quantizer "
                f"replaced by the identity {times['identity']:.3f} s, ratio {times['ratio']:.2f}."
            )
        if task.name == "smollm2":
            found = targets(task, rows, steps[task.name])
            results.figures["targets"] = found
            print()
            print_targets(found)
    results.write()


def main() -> None:
    args = parse()
    with written("cross_layer", args):
        measure_and_report(args)


if __name__ == "__main__":
    main()
