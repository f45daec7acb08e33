"""Training on several processes: how fast, how much is sent, and what that makes of many.

    python benchmarks/distributed.py                 # a quarter of an hour on two idle cores
    python benchmarks/distributed.py --quick         # minutes: few tokens
    python benchmarks/distributed.py --parts steps projection

**With the language model.** ``bae-lens train smollm2-bae`` without ``replay_tokens``, so that SmolLM2 runs
throughout, in one process of one thread, in two of one thread each (on the same global batch, and on one
twice as large), and in one process of two threads, started by torchrun. Tokens are counted from one reading
of the text to a later one, so that as many were trained on as were read; all take turns, and of several
rounds the median counts. Another load on the machine makes all of it worthless but the CPU time.

**Steps alone.** Activations drawn at random, the shape of that autoencoder, and more: share of a step in
collectives, and the bytes given to them, against the formula ``payload``.

**Many GPUs.** Seconds of a step by formulas, for a model of 7 billion parameters: an all-reduce in a ring
sends and receives 2·(R − 1)/R of its payload on each link. The arithmetic's rates are assumptions, which it
prints; nothing of it is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cross_layer import table
from distributed_worker import RESULT, Marks, Settings
from writing import add_write_argument, written

PARTS = ("training", "steps", "projection")
WORKER = Path(__file__).with_name("distributed_worker.py")
# Of two processes of one thread over one, language model included.
TARGET = 1.8
# Steps left out: buffers fill, the first batch calibrates, and caches are cold.
N_FIRST = 3
CONTEXT = 128


@dataclass(frozen=True)
class Case:
    """Processes, and what each has."""

    name: str
    processes: int
    threads: int
    batch: int


@dataclass(frozen=True)
class Shape:
    """Of an autoencoder, for the bytes of a step.

    Attributes:
        n_levels: thresholds a latent.
        feedback: whether its encoder has feedback.
    """

    d_in: int
    d_sae: int
    n_levels: int = 1
    feedback: bool = False

    @property
    def parameters(self) -> int:
        per_latent = 2 * self.d_in + 1 + 2 * (self.n_levels - 1) + self.feedback
        return self.d_sae * per_latent + self.d_in

    @property
    def fields(self) -> dict[str, Any]:
        """Of ``TrainingBAEConfig``."""
        steps = 2 if self.feedback else 0
        code = {"n_levels": self.n_levels, "feedback_steps": steps}
        return {"d_sae": self.d_sae, "target_entropy": "d_in", **code}


def payload(shape: Shape) -> int:
    """Bytes that a rank gives to collectives in a step, in float32: the gradient; of each latent how often it
    fires, or passes each threshold, for the loss, and how often it fires, for the trainer's counts. Beside
    them go a few numbers, and with a budget of fidelity ``d_in`` more."""
    return 4 * (shape.parameters + shape.d_sae * (shape.n_levels + 1))


# Running


def run(settings: Settings, processes: int, folder: Path) -> list[list[Marks]]:
    """Train under torchrun, and return each rank's marks."""
    path = folder / "settings.json"
    path.write_text(json.dumps(asdict(settings)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(processes), str(WORKER), str(path)]
    threads = {name: str(settings.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    done = subprocess.run(command, env=os.environ | threads, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")
    found = json.loads((folder / RESULT).read_text())
    return [[Marks(**mark) for mark in own] for own in found["marks"]]


@dataclass(frozen=True)
class Rates:
    """Of one run, over the time that counts.

    Attributes:
        tokens_per_second: of all processes together.
        cpu_seconds: of all processes together, per 1,000 tokens.
        communication: share of the time in collectives, waiting for others included; mean over ranks.
        own_communication: the same of CPU time, which waiting does not take.
        bytes: given to collectives a step, by one rank.
    """

    tokens_per_second: float
    cpu_seconds: float
    communication: float
    own_communication: float
    bytes: float

    @classmethod
    def of(cls, marks: Sequence[Sequence[Marks]]) -> Rates:
        """Between the first mark after ``N_FIRST`` steps and the last but the one at the end."""
        counted = [[mark for mark in own[:-1] if mark.steps >= N_FIRST] for own in marks]
        if min(map(len, counted)) < 2:
            raise ValueError("The training is too short: give it more tokens (--tokens).")
        spans = [(own[0], own[-1]) for own in counted]
        seconds = [b.seconds - a.seconds for a, b in spans]
        cpu = [b.cpu_seconds - a.cpu_seconds for a, b in spans]
        tokens = sum(b.tokens - a.tokens for a, b in spans)
        steps = [max(b.steps - a.steps, 1) for a, b in spans]
        waited = [b.communication_seconds - a.communication_seconds for a, b in spans]
        worked = [b.communication_cpu_seconds - a.communication_cpu_seconds for a, b in spans]
        sent = [b.bytes - a.bytes for a, b in spans]
        mean_seconds = statistics.mean(seconds)
        return cls(
            tokens / mean_seconds,
            1000 * sum(cpu) / max(tokens, 1),
            sum(waited) / sum(seconds),
            sum(worked) / max(sum(cpu), 1e-9),
            statistics.mean(s / n for s, n in zip(sent, steps, strict=True)),
        )


def median(rates: Sequence[Rates]) -> Rates:
    columns = zip(*(asdict(r).values() for r in rates), strict=True)
    return Rates(*(statistics.median(column) for column in columns))


def take_turns(settings: dict[Case, Settings], rounds: int) -> dict[Case, Rates]:
    found: dict[Case, list[Rates]] = {case: [] for case in settings}
    for _ in range(rounds):
        for case, own in settings.items():
            with tempfile.TemporaryDirectory() as folder:
                found[case].append(Rates.of(run(own, case.processes, Path(folder))))
    return {case: median(rates) for case, rates in found.items()}


def cases(batch: int) -> list[Case]:
    return [
        Case("one process, one thread", 1, 1, batch),
        Case("two processes, one thread each", 2, 1, batch),
        Case("the same, twice the batch", 2, 1, 2 * batch),
        Case("one process, two threads", 1, 2, batch),
    ]


# Parts


def report_training(args: argparse.Namespace) -> None:
    batch, tokens = (256, 4096) if args.quick else (1024, args.tokens)
    settings = {}
    for case in cases(batch):
        # As many texts, and tokens in all buffers, of all processes together: all read and train alike.
        reading = {
            "replay_tokens": None,
            "store_batch_size_prompts": (4 if args.quick else 16) // case.processes,
            "n_batches_in_buffer": 4 * batch // CONTEXT // case.processes,
            "n_batches_for_norm_estimate": 2,
            "output_path": None,
            "checkpoint_path": None,
            "lr_decay_steps": 0,
        }
        settings[case] = Settings(case.threads, case.batch, tokens, "smollm2-bae", reading)
    found = take_turns(settings, args.rounds)
    first = found[cases(batch)[0]]
    lines = [
        [
            case.name,
            f"{case.batch:,}",
            f"{rates.tokens_per_second:,.0f}",
            f"{rates.tokens_per_second / first.tokens_per_second:.2f}",
            f"{rates.cpu_seconds:.2f}",
            f"{rates.cpu_seconds / first.cpu_seconds:.2f}",
            f"{rates.communication:.1%}",
            f"{rates.own_communication:.1%}",
        ]
        for case, rates in found.items()
    ]
    print(f"\n## With the language model: SmolLM2, block 15, 576 → 2,304, {tokens:,} tokens\n")
    table(
        ["", "batch", "tokens/s", "×", "CPU s / 1,000 tokens", "×", "in collectives", "of CPU"],
        lines,
    )
    print(
        f'"In collectives" has the waiting for the other process in it. Target: two processes of one thread at '
        f"≥ {TARGET} × one."
    )


def shapes(quick: bool) -> list[tuple[Shape, int]]:
    """Each with its global batch."""
    if quick:
        return [(Shape(64, 256), 256), (Shape(64, 256, 7, True), 256)]
    return [
        (Shape(576, 2304), 1024),
        (Shape(576, 2304, 7, True), 1024),
        (Shape(768, 24_576), 1024),
    ]


def report_steps(args: argparse.Namespace) -> None:
    lines = []
    for shape, batch in shapes(args.quick):
        n_steps = (
            8 if args.quick else max(12, args.tokens // (8 * batch) if shape.d_in < 700 else 0)
        )
        settings = {
            case: Settings(case.threads, batch, n_steps * batch, None, {}, shape.d_in, shape.fields)
            for case in cases(batch)[:2]
        }
        one, two = take_turns(settings, args.rounds).values()
        lines.append(
            [
                f"{shape.d_in} → {shape.d_sae:,}"
                + (f", {shape.n_levels} levels, feedback" if shape.feedback else ""),
                f"{batch:,}",
                f"{one.tokens_per_second:,.0f}",
                f"{two.tokens_per_second:,.0f}",
                f"{two.tokens_per_second / one.tokens_per_second:.2f}",
                f"{two.communication:.1%}",
                f"{two.own_communication:.1%}",
                f"{two.bytes / 1e6:.3f}",
                f"{payload(shape) / 1e6:.3f}",
            ]
        )
    print("\n## Steps alone, without a language model\n")
    table(
        [
            "autoencoder",
            "batch",
            "1 process, tokens/s",
            "2 processes",
            "×",
            "in collectives",
            "of CPU",
            "MB a step and rank",
            "by the formula",
        ],
        lines,
    )


@dataclass(frozen=True)
class Machine:
    """What a projection assumes of a GPU and what joins them.

    Attributes:
        model_flops: of the language model's forward pass, a second.
        step_flops: of an autoencoder's step under autocast: 13.7 ms for 4,096 tokens at 2,048 → 32,768
            in ``results/gpu.md``.
        latency: of one hop of a ring, in seconds.
        bandwidth: of a link, in bytes a second, each way.
    """

    model_flops: float = 400e12
    step_flops: float = 240e12
    latency: float = 10e-6
    bandwidth: float = 25e9


@dataclass(frozen=True)
class Projected:
    """Seconds of a step."""

    model: float
    step: float
    communication: float

    def total(self, overlap: bool) -> float:
        """With overlap the sums are under way while the model reads the next batch."""
        if overlap:
            return self.step + max(self.model, self.communication)
        return self.step + self.model + self.communication

    def share(self, overlap: bool) -> float:
        """Of the time that goes to waiting for sums."""
        return 1 - (self.model + self.step) / self.total(overlap)


def project(
    ranks: int,
    shape: Shape,
    model_parameters: float,
    tokens: int,
    machine: Machine,
    depth: float = 0.5,
) -> Projected:
    """Seconds of a step on each of ``ranks``, of ``tokens`` a rank.

    Args:
        ranks: GPUs.
        shape: of the autoencoder.
        model_parameters: of the language model, of which a forward pass takes 2 operations a token each,
            up to the hook point.
        tokens: a rank and step.
        machine: what is assumed.
        depth: of the hook point, as a share of the model.
    """
    model = 2 * model_parameters * depth * tokens / machine.model_flops
    # Forward and backward passes of two products; BAE's decoder by what is on is no faster on a GPU.
    step = 6 * 2 * shape.d_in * shape.d_sae * tokens / machine.step_flops
    if ranks == 1:
        return Projected(model, step, 0.0)
    ring = 2 * (ranks - 1)
    sent = ring / ranks * payload(shape) / machine.bandwidth
    return Projected(model, step, sent + ring * machine.latency)


def report_projection() -> None:
    shape, machine = Shape(4096, 32_768), Machine()
    print("\n## Many GPUs, by formulas\n")
    print(
        f"A model of 7 billion parameters, hooked in its middle; {shape.d_in:,} → {shape.d_sae:,}, "
        f"{payload(shape) / 1e9:.2f} GB a step. Assumed: {machine.model_flops / 1e12:.0f} TFLOP/s of the model and "
        f"{machine.step_flops / 1e12:.0f} of a step, {machine.latency * 1e6:.0f} µs a hop of a ring.\n"
    )
    lines = []
    for ranks in (1, 8, 64, 512):
        # As many tokens a GPU as one has, and as many in all as eight have.
        for own_tokens in dict.fromkeys((4096, min(4096, 32_768 // ranks))):
            slow, fast = (
                project(ranks, shape, 7e9, own_tokens, Machine(bandwidth=bandwidth))
                for bandwidth in (25e9, 300e9)
            )
            lines.append(
                [
                    str(ranks),
                    f"{own_tokens:,}",
                    f"{ranks * own_tokens:,}",
                    f"{1e3 * slow.model:.1f}",
                    f"{1e3 * slow.step:.1f}",
                    *(
                        f"{1e3 * seconds.communication:.0f}, {seconds.share(False):.0%}, {seconds.share(True):.0%}"
                        for seconds in (slow, fast)
                    ),
                    *(
                        f"{ranks * own_tokens / seconds.total(False) / 1e3:,.0f}"
                        for seconds in (slow, fast)
                    ),
                ]
            )
    table(
        [
            "GPUs",
            "tokens a GPU",
            "global batch",
            "model, ms",
            "step, ms",
            "sums at 25 GB/s: ms, share, share if they overlap",
            "at 300 GB/s",
            "k tokens/s at 25 GB/s",
            "at 300 GB/s",
        ],
        lines,
    )
    print(
        "Sums do not overlap with anything in this package; the shares say what it would gain if the model read "
        "the next batch meanwhile.\n"
    )
    plans = (
        ("SmolLM2-135M", 135e6, Shape(576, 18_432), 1e9, 1, 4096),
        ("Gemma-2-2B", 2.6e9, Shape(2304, 32_768), 4e9, 1, 4096),
        ("Gemma-2-2B", 2.6e9, Shape(2304, 32_768), 4e9, 8, 2048),
        ("Llama-3.1-8B", 8e9, Shape(4096, 32_768), 4e9, 8, 2048),
        ("Llama-3.1-8B", 8e9, Shape(4096, 131_072), 8e9, 8, 2048),
        ("Llama-3.1-8B", 8e9, Shape(4096, 131_072), 8e9, 64, 512),
    )
    lines = []
    for name, parameters, own_shape, wanted, ranks, tokens in plans:
        seconds = project(ranks, own_shape, parameters, tokens, Machine(bandwidth=300e9))
        # Weights in bfloat16; weights, gradients and Adam's moments in float32; and what a step of a BAE took
        # beside them on a GPU, six matrices of codes (``results/gpu.md``: 2.84 GiB at 768 -> 24,576, 4.91 GiB
        # at 2,048 -> 32,768, with 4,096 tokens; by this 2.81 and 5.00).
        gigabytes = (
            2 * parameters + 16 * own_shape.parameters + 6 * 4 * tokens * own_shape.d_sae
        ) / 1e9
        hours = wanted / (ranks * tokens / seconds.total(False)) / 3600
        lines.append(
            [
                name,
                f"{own_shape.d_in:,} → {own_shape.d_sae:,}",
                f"{wanted / 1e9:.0f} billion",
                str(ranks),
                f"{ranks * tokens:,}",
                f"{gigabytes:.0f}",
                f"{hours:.1f}",
                f"{seconds.share(False):.0%}",
            ]
        )
    table(
        [
            "model",
            "autoencoder",
            "tokens",
            "GPUs",
            "global batch",
            "GB a GPU",
            "hours",
            "share of sums",
        ],
        lines,
    )
    print(
        "300 GB/s, as above; GB are the model's weights in bfloat16, 16 bytes a parameter of the autoencoder, "
        "and six matrices of codes. A model that does not fit one GPU has to be cut by other means."
    )


def measure_and_report(args: argparse.Namespace) -> None:
    parts: Iterable[str] = args.parts
    if "training" in parts:
        report_training(args)
    if "steps" in parts:
        report_steps(args)
    if "projection" in parts:
        report_projection()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--tokens", type=int, default=40_960, help="of each training")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="few tokens and small shapes")
    add_write_argument(parser)
    args = parser.parse_args()
    with written("distributed", args):
        measure_and_report(args)


if __name__ == "__main__":
    main()
