"""What the penalties, the quantizer and their training steps cost, beside their peers in the same run.

    python benchmarks/speed.py                            # all five parts
    python benchmarks/speed.py --parts covariance steps   # some of them
    python benchmarks/speed.py --quick                    # minutes: small shapes
    python benchmarks/speed.py --device cuda              # the same on a GPU, at a GPU's shapes
    python benchmarks/speed.py --costs                    # the cost model's constants
    python benchmarks/speed.py --output speed.json

Parts:

1. covariance: the penalty, forward and backward, by each method and by autograd through ``torch.cov``.
2. steps: a BAE's training step, both penalties on, beside SAELens' architectures at the same shape.
3. quantizer: a CLVQ-VAE's step beside the same step with the identity in the quantizer's place, that of a
   predictive encoder beside that of the paper's, and the sampler beside ``torch.topk`` alone and a loop over tokens.
4. growth: time and memory of the penalty against d_sae, at 50 bits on; the slope of the logarithms.
5. end_to_end: a BAE on activations of SmolLM2 (block 15), to a given explained variance, beside the plain
   objective: dense products and ``torch.cov``.

Peers take turns, and every figure is a median or a ratio of medians of one run. Memory is
the most that a call needs beyond what there was before it, its result included. Bits of a code are drawn
independently, each with a rate of its own, uniform between 0 and twice the mean.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args
from unittest.mock import patch

import torch
from cross_layer import step_seconds, table
from cross_layer_data import TASKS, Split, Trial
from cross_layer_trials import clvq_config
from sae_lens import (
    BatchTopKTrainingSAEConfig,
    StandardTrainingSAEConfig,
    TopKTrainingSAEConfig,
    TrainingSAEConfig,
)
from sae_lens.registry import get_sae_training_class
from sae_lens.training.sae_trainer import SAETrainer
from speed_timing import available_bytes, peak_megabytes, take_turns, timed
from torch import Tensor
from writing import add_write_argument, written

from bae_lens import TrainingBAE, TrainingBAEConfig, TrainingCLVQVAE, TrainingCLVQVAEConfig
from bae_lens.activations.replay import ReplayedActivations
from bae_lens.architectures import bae_penalties
from bae_lens.files.whole import write_text
from bae_lens.nn import covariance_on_ranks, off_diagonal_covariance, sample_codes
from bae_lens.nn.covariance import penalty as covariance
from bae_lens.nn.sparse_code import BitCounts
from bae_lens.training.fit import trainer_config

PARTS = ("covariance", "steps", "quantizer", "growth", "end_to_end")
METHODS = get_args(covariance.Method)
N_ON = 50
# A call that the cost model expects to take longer is left out of the tables.
LONGEST = 6.0
# Nanoseconds of torch.cov's autograd a token and pair of bits, roughly, and matrices that it holds.
COV_COST, COV_MATRICES = 0.05, 5


def draw_code(n: int, d: int, n_on: float, device: str, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    rate = (2 * n_on / d * torch.rand(d, generator=generator)).clamp(max=1)
    return (torch.rand(n, d, generator=generator) < rate).float().to(device)


def by_torch_cov(codes: Tensor, **_: Any) -> Tensor:
    """The definition, with a d_sae × d_sae matrix, as released."""
    c = torch.cov(codes.T)
    return (c - torch.diag(c.diagonal())).abs().sum()


def penalty_calls(codes: Tensor, methods: Sequence[str]) -> dict[str, Callable[[], object]]:
    """Forward and backward of those methods that end in reasonable time and memory."""

    def run(penalty: Callable[[Tensor], Tensor]) -> Tensor:
        leaf = codes.detach().requires_grad_()
        return torch.autograd.grad(penalty(leaf), leaf)[0]

    n, d = codes.shape
    is_cpu = codes.device.type == "cpu"
    costs = {name: x * 1e-9 for name, x in expected(codes).items()}
    costs["torch.cov"] = COV_COST * n * d**2 * 1e-9
    costs["auto"] = min(costs[name] for name in get_args(covariance.Method)[1:])
    calls: dict[str, Callable[[], object]] = {}
    for name in methods:
        fits = name != "torch.cov" or COV_MATRICES * 4 * d**2 < available_bytes(str(codes.device))
        # Pairs are SciPy's wherever the code is.
        if fits and (costs[name] < LONGEST or not (is_cpu or name == "pairs")):
            penalty: Any = by_torch_cov if name == "torch.cov" else off_diagonal_covariance
            kwargs = {} if name == "torch.cov" else {"method": name, "is_binary": True}
            calls[name] = lambda penalty=penalty, kwargs=kwargs: run(lambda x: penalty(x, **kwargs))
    return calls


def expected(codes: Tensor) -> dict[str, float]:
    """Nanoseconds by the cost model."""
    return {**covariance.expected_costs(BitCounts.of(codes).counts, len(codes))}


def time_penalty(codes: Tensor, methods: Sequence[str], rounds: int) -> dict[str, Any]:
    device = str(codes.device)
    calls = penalty_calls(codes, methods)
    return {
        "seconds": take_turns(calls, rounds, device),
        "megabytes": {name: peak_megabytes(call, device) for name, call in calls.items()},
        "method": covariance.cheapest(BitCounts.of(codes).counts, len(codes)),
    }


# 1. The covariance penalty


def covariance_part(args: argparse.Namespace) -> list[dict[str, Any]]:
    shapes = [(512, 2048), (1024, 8192), (4096, 8192), (1024, 32_768), (4096, 65_536)]
    if args.quick:
        shapes = [(128, 512), (256, 2048)]
    rows = []
    for n, d in shapes:
        for name, n_on in (("half on", d / 2), ("4 % on", 0.04 * d), ("50 on", 50), ("16 on", 16)):
            # The larger ones as trained codes only.
            if n * d > 2**23 and n_on > N_ON:
                continue
            codes = draw_code(n, d, n_on, args.device)
            timed = time_penalty(codes, ("torch.cov", *METHODS), args.rounds)
            rows.append({"n": n, "d_sae": d, "code": name} | timed)
            print(_penalty_line(rows[-1]), flush=True)
    return rows


def _penalty_line(row: dict[str, Any]) -> str:
    seconds = row["seconds"]
    said = ", ".join(f"{name} {value:.3f} s" for name, value in seconds.items())
    return f"[n = {row['n']}, d_sae = {row['d_sae']}, {row['code']}] {said}"


def show_covariance(rows: list[dict[str, Any]]) -> None:
    print("\n## Covariance penalty, forward and backward\n")
    header = ["n", "d_sae", "code", "torch.cov, s", *(f"{m}, ×" for m in METHODS), "auto takes"]
    lines, memory = [], []
    for row in rows:
        cov = row["seconds"].get("torch.cov")
        start = [f"{row['n']}", f"{row['d_sae']:,}", row["code"]]
        # Where torch.cov cannot run, seconds.
        times = [
            "–"
            if (s := row["seconds"].get(m)) is None
            else f"{cov / s:.1f}"
            if cov
            else f"{s:.2f} s"
            for m in METHODS
        ]
        lines.append([*start, f"{cov:.2f}" if cov else "–", *times, row["method"]])
        megabytes = [row["megabytes"].get(m) for m in ("torch.cov", *METHODS)]
        memory.append([*start, *("–" if x is None else f"{x:,.0f}" for x in megabytes)])
    table(header, lines)
    print("\nTimes as fast as torch.cov; seconds where it takes too long or does not fit.\n")
    table(["n", "d_sae", "code", *(f"{m}, MB" for m in ("torch.cov", *METHODS))], memory)


# 2. Training steps


def step_peers(d_in: int, d_sae: int) -> dict[str, TrainingSAEConfig]:
    shape: dict[str, Any] = {"d_in": d_in, "d_sae": d_sae}
    sparse: dict[str, Any] = shape | {
        "initial_firing_rate": N_ON / d_sae,
        "target_entropy": d_in / 2,
    }
    both: dict[str, Any] = shape | {"covariance_coefficient": 1e-6, "target_entropy": d_in / 2}
    return {
        "SAELens standard": StandardTrainingSAEConfig(**shape),
        "SAELens TopK": TopKTrainingSAEConfig(k=N_ON, **shape),
        "SAELens BatchTopK": BatchTopKTrainingSAEConfig(k=N_ON, **shape),
        "BAE, both penalties, 4 % on (the start)": TrainingBAEConfig(**both),
        "BAE, both penalties, 50 bits on": TrainingBAEConfig(
            initial_firing_rate=N_ON / d_sae, **both
        ),
        "BAE, no covariance, 50 bits on": TrainingBAEConfig(**sparse),
        "BAE of 7 levels, about 50 on": TrainingBAEConfig(n_levels=7, **sparse),
        "BAE of 7 levels, 2 feedback steps": TrainingBAEConfig(
            n_levels=7, feedback_steps=2, **sparse
        ),
    }


def steps_part(args: argparse.Namespace) -> list[dict[str, Any]]:
    shapes = [(1024, 576, 2304), (512, 2048, 8192)]
    if args.device.startswith("cuda"):
        shapes = [(4096, 2048, 32_768)]
    if args.quick:
        shapes = [(128, 64, 512)]
    rows = []
    for n, d_in, d_sae in shapes:
        steps, on = {}, {}
        for name, cfg in step_peers(d_in, d_sae).items():
            torch.manual_seed(0)
            batch = torch.randn(n, d_in, device=args.device)
            # At a learning rate of nothing the code stays as it is.
            config = trainer_config(10**6, n, 1e-12, args.device)
            config.autocast = args.device.startswith("cuda")
            sae = get_sae_training_class(cfg.architecture())[0](cfg).to(args.device)
            trainer = SAETrainer(config, sae, ReplayedActivations(batch, n))
            output = trainer.step(batch)
            on[name] = (output.feature_acts != 0).float().sum(-1).mean().item()
            steps[name] = lambda trainer=trainer, batch=batch: trainer.step(batch)
        clock = time.process_time if args.cpu_time else time.perf_counter
        seconds = take_turns(steps, args.rounds, args.device, clock)
        megabytes = {name: peak_megabytes(call, args.device) for name, call in steps.items()}
        rows.append(
            {"n": n, "d_in": d_in, "d_sae": d_sae, "on": on}
            | {"seconds": seconds, "megabytes": megabytes}
        )
    return rows


def show_steps(rows: list[dict[str, Any]]) -> None:
    print("\n## Training steps\n")
    lines = []
    for row in rows:
        standard, batchtopk = (
            row["seconds"][f"SAELens {name}"] for name in ("standard", "BatchTopK")
        )
        for name, seconds in row["seconds"].items():
            memory = row["megabytes"][name]
            lines.append(
                [
                    f"{row['n']}, {row['d_in']} → {row['d_sae']:,}",
                    name,
                    f"{row['on'][name]:.0f}",
                    f"{seconds:.3f}",
                    f"{seconds / standard:.2f}",
                    f"{seconds / batchtopk:.2f}",
                    "–" if memory is None else f"{memory:,.0f}",
                ]
            )
    table(["tokens, d_in → d_sae", "step", "on", "s", "× standard", "× BatchTopK", "MB"], lines)


# 3. The quantizer


def quantizer_part(args: argparse.Namespace) -> dict[str, Any]:
    task, n_sequences = TASKS["smollm2"], 64
    found: dict[str, Any] = {"steps": {}, "sampler": []}
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(n_sequences * task.length, 2 * task.d_in, generator=generator)
    rows = torch.cat([rows, torch.ones(len(rows), 1)], 1)
    split = Split(torch.zeros(n_sequences, task.length), rows, task.d_in)
    trial = Trial(task, 0, split, split, None)
    for decoder in ("token", "transformer"):
        found["steps"][decoder] = step_seconds(trial, decoder, args.rounds * 3, args.device)
    found["encoders"] = encoder_seconds(trial, args.rounds * 3, args.device)
    for n_codes in (512,) if args.quick else (512, 4096):
        distances = torch.rand(4096, n_codes, generator=generator).to(args.device)
        calls = {
            "torch.topk": lambda d=distances: d.topk(5, largest=False),
            "sample_codes": lambda d=distances: sample_codes(d, 5, 1.0),
            "loop over tokens": lambda d=distances: sample_one_by_one(d, 5, 1.0),
        }
        seconds = take_turns(calls, args.rounds * 3, args.device)
        found["sampler"].append({"n_codes": n_codes, "seconds": seconds})
    return found


def encoder_seconds(trial: Trial, rounds: int, device: str) -> dict[str, float]:
    """Medians of whole training steps with single tokens: of the paper's encoder, and of those that predict."""
    task = trial.task
    shape = {"d_in": task.d_in, "n_codes": task.n_codes, "codebook_init": "random"}
    cfgs = {
        "residual, token decoder": clvq_config(
            task, trial.seed, decoder="token", codebook_init="random"
        ),
        "predictive, linear": TrainingCLVQVAEConfig.predictive(**shape, predictor_hidden=None),
        "predictive, hidden layer of 2·d_in": TrainingCLVQVAEConfig.predictive(**shape),
    }
    steps: dict[str, Callable[[], object]] = {}
    for name, cfg in cfgs.items():
        sae = TrainingCLVQVAE(cfg)
        sae.calibrate(trial.train.packed, task.batch_size)
        batches = ReplayedActivations(trial.train.packed.to(device), task.batch_size, trial.seed)
        trainer = SAETrainer(
            trainer_config(10**6, task.batch_size, task.lr_token, device), sae.to(device), batches
        )
        batch = next(batches)
        steps[name] = lambda t=trainer, b=batch: t.step(b)
    return take_turns(steps, rounds, device)


def sample_one_by_one(distances: Tensor, top_k: int, temperature: float) -> Tensor:
    """As the release does it."""
    codes = []
    for row in distances:
        nearest, indices = row.topk(top_k, largest=False)
        drawn = torch.multinomial((-nearest / temperature).softmax(0), 1)
        codes.append(indices[drawn])
    return torch.cat(codes)


def show_quantizer(found: dict[str, Any]) -> None:
    print("\n## Quantizer\n")
    lines = [
        [decoder, f"{t['quantizer']:.3f}", f"{t['identity']:.3f}", f"{t['ratio']:.2f}",
         f"{1 - 1 / t['ratio']:.0%}"]
        for decoder, t in found["steps"].items()
    ]  # fmt: skip
    header = ["step of 2,048 tokens, decoder", "with quantizer, s", "identity, s", "ratio", "share"]
    table(header, lines)
    print()
    first = next(iter(found["encoders"].values()))
    table(
        ["step of 2,048 tokens, encoder", "s", "ratio"],
        [[name, f"{s:.3f}", f"{s / first:.2f}"] for name, s in found["encoders"].items()],
    )
    print()
    lines = []
    for row in found["sampler"]:
        topk = row["seconds"]["torch.topk"]
        lines += [
            [f"{row['n_codes']:,}", name, f"{1e3 * s:.1f}", f"{s / topk:.2f}"]
            for name, s in row["seconds"].items()
        ]
    table(["codes", "draw for 4,096 tokens", "ms", "× torch.topk"], lines)


# 4. Growth


def growth_part(args: argparse.Namespace) -> list[dict[str, Any]]:
    n, widths = 1024, [2048, 4096, 8192, 16_384, 32_768, 65_536]
    if args.quick:
        n, widths = 128, [512, 1024, 2048]
    methods = ("torch.cov", "tiles", "strips", "pairs", "auto")
    return [
        {"n": n, "d_sae": d}
        | time_penalty(draw_code(n, d, N_ON, args.device), methods, args.rounds)
        for d in widths
    ]


def show_growth(rows: list[dict[str, Any]]) -> None:
    print(f"\n## Growth with d_sae, {rows[0]['n']} tokens, {N_ON} bits on\n")
    methods = list(dict.fromkeys(name for row in rows for name in row["seconds"]))
    lines = []
    for name in methods:
        points = [(row["d_sae"], row["seconds"][name]) for row in rows if name in row["seconds"]]
        shown = {d: f"{s:.3f}" for d, s in points}
        cells = [shown.get(row["d_sae"], "–") for row in rows]
        lines.append([name, *cells, f"{slope(points):.2f}"])
    table(["seconds", *(f"{row['d_sae']:,}" for row in rows), "slope"], lines)
    print()
    lines = []
    for name in methods:
        known = [(row["d_sae"], row["megabytes"].get(name)) for row in rows]
        points = [(d, mb) for d, mb in known if mb]
        cells = ["–" if mb is None else f"{mb:,.0f}" for _, mb in known]
        lines.append([name, *cells, f"{slope(points):.2f}"])
    table(["MB", *(f"{row['d_sae']:,}" for row in rows), "slope"], lines)


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Of log y on log x, from the upper half of the points, least squares."""
    kept = points[len(points) // 2 :] if len(points) > 3 else points
    x = torch.tensor([math.log(a) for a, _ in kept])
    y = torch.tensor([math.log(b) for _, b in kept])
    x, y = x - x.mean(), y - y.mean()
    return (x @ y / x.square().sum()).item()


# 5. End to end


class PlainBAE(TrainingBAE):
    """The same objective as one would write it down: dense products, gradients by autograd."""

    def encode_with_hidden_pre(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden_pre = self.hook_sae_acts_pre(self.process_sae_in(x) @ self.W_enc + self.b_enc)
        return self.hook_sae_acts_post(self.activation_fn(hidden_pre) * self.scale), hidden_pre

    def decode(self, feature_acts: Tensor) -> Tensor:
        return self.hook_sae_recons(feature_acts @ self.W_dec + self.b_dec)


def end_to_end_part(args: argparse.Namespace) -> dict[str, Any]:
    from common import D_IN, collect

    layer, n_train, expansion, most = 15, 60_000, 8, 400
    if args.quick:
        n_train, expansion, most = 6_000, 2, 20
    batch_size, target = 1024, args.target_ev
    splits = {
        "train": collect([layer], "train", n_train, args.device)[layer],
        "test": collect([layer], "test", 4096, args.device)[layer],
    }
    mean = splits["train"].mean(0)
    norm = (splits["train"] - mean).norm(dim=1)
    # The few tokens of a hundred times the length would be all of the variance.
    kept = {k: x[(x - mean).norm(dim=1) < 10 * norm.median()] for k, x in splits.items()}
    factor = D_IN**0.5 / kept["train"].norm(dim=1).mean()
    train, test = (kept[k].to(args.device) * factor for k in ("train", "test"))
    runs = {}
    for name, kind in (("bae-lens", TrainingBAE), ("plain", PlainBAE)):
        torch.manual_seed(0)
        cfg = TrainingBAEConfig(
            d_in=D_IN,
            d_sae=expansion * D_IN,
            target_entropy="d_in",
            covariance_coefficient=1e-6,
            normalize_activations="none",
        )
        data = ReplayedActivations(train, batch_size, seed=0)
        config = trainer_config(10**6, batch_size, 2e-3, args.device)
        runs[name] = (SAETrainer(config, kind(cfg).to(args.device), data), data)
    seconds = dict.fromkeys(runs, 0.0)
    history: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    reached: dict[str, float] = {}
    step = 0
    while step < most and len(reached) < len(runs):
        step += 1
        for name, (trainer, data) in runs.items():
            batch = next(data)
            with plain_covariance(name == "plain"):
                seconds[name] += timed(lambda t=trainer, b=batch: t.step(b), args.device)
            trainer.n_training_steps += 1
            if step % 10 == 0:
                ev = explained_variance(trainer.sae, test)
                history[name].append((seconds[name], ev))
                if ev >= target:
                    reached.setdefault(name, seconds[name])
    return {
        "target": target,
        "steps": step,
        "batch_size": batch_size,
        "d_sae": expansion * D_IN,
        "seconds": seconds,
        "to_target": reached,
        "ev": {name: points[-1][1] for name, points in history.items()},
    }


def plain_covariance(is_plain: bool) -> Any:
    penalty = by_torch_cov if is_plain else covariance_on_ranks
    return patch.object(bae_penalties, "covariance_on_ranks", penalty)


@torch.no_grad()
def explained_variance(sae: Any, x: Tensor) -> float:
    error = sae(x) - x
    return 1 - (error.square().sum() / (x - x.mean(0)).square().sum()).item()


def show_end_to_end(found: dict[str, Any]) -> None:
    print(f"\n## A BAE of 576 → {found['d_sae']:,} to EV {found['target']}, both penalties\n")
    tokens = found["steps"] * found["batch_size"]
    lines = [
        [
            name,
            f"{tokens / seconds:,.0f}",
            f"{found['to_target'][name]:.0f}" if name in found["to_target"] else "–",
            f"{found['ev'][name]:.3f}",
        ]
        for name, seconds in found["seconds"].items()
    ]
    ratio = found["seconds"]["plain"] / found["seconds"]["bae-lens"]
    table(["training", "tokens/s", "seconds to it", f"EV after {found['steps']} steps"], lines)
    print(f"\nbae-lens is {ratio:.2f} times as fast.")


# The cost model


def show_costs(device: str) -> None:
    """Nanoseconds an operation, as the cost model counts them, at shapes of every kind."""
    lines = []
    for n, d, n_on in (
        (512, 2048, 50),
        (512, 2048, 500),
        (1024, 8192, 16),
        (1024, 8192, 50),
        (1024, 8192, 330),
        (4096, 8192, 330),
        (1024, 32_768, 16),
        (4096, 32_768, 50),
    ):
        codes = draw_code(n, d, n_on, device)
        timed = time_penalty(codes, METHODS[1:], 2)["seconds"]
        costs = expected(codes)
        ratios = [f"{timed[m] / costs[m] * 1e9:.2f}" if m in timed else "–" for m in METHODS[1:]]
        best = min(timed, key=lambda m: timed[m])
        chosen = covariance.cheapest(BitCounts.of(codes).counts, n)
        lines.append([f"{n}", f"{d:,}", f"{n_on}", *ratios, best, chosen])
    print("\n## Measured time as a multiple of the cost model's\n")
    table(["n", "d_sae", "on", *METHODS[1:], "fastest", "chosen"], lines)


RUN: dict[str, tuple[Callable[[argparse.Namespace], Any], Callable[[Any], None]]] = {
    "covariance": (covariance_part, show_covariance),
    "steps": (steps_part, show_steps),
    "quantizer": (quantizer_part, show_quantizer),
    "growth": (growth_part, show_growth),
    "end_to_end": (end_to_end_part, show_end_to_end),
}


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=3, help="timed calls of each peer")
    parser.add_argument(
        "--cpu_time",
        action="store_true",
        help="steps: by the CPU time of all threads, where another load is possible",
    )
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch on the CPU")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--target_ev", type=float, default=0.8, help="of the end-to-end run")
    parser.add_argument("--quick", action="store_true", help="small shapes")
    parser.add_argument("--costs", action="store_true", help="check the cost model, nothing else")
    parser.add_argument("--output", type=Path, help="JSON file")
    add_write_argument(parser)
    return parser.parse_args(argv)


def measure_and_report(args: argparse.Namespace) -> None:
    """Run everything that the arguments ask for, and print its tables."""
    torch.set_num_threads(args.threads)
    if args.costs:
        show_costs(args.device)
        return
    found: dict[str, Any] = {
        "device": args.device,
        "threads": args.threads,
        "torch": torch.__version__,
    }
    for part in args.parts:
        found[part] = RUN[part][0](args)
        if args.output is not None:
            write_text(args.output, json.dumps(found, indent=1))
    for part in args.parts:
        RUN[part][1](found[part])


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    with written("speed", args):
        measure_and_report(args)


if __name__ == "__main__":
    main()
