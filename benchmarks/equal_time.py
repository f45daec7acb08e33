"""What BAE explains in the CPU time that BatchTopK's training takes, at equal bits per token.

    python benchmarks/equal_time.py                  # a quarter of an hour of one core
    python benchmarks/equal_time.py --quick          # minutes: few steps
    python benchmarks/equal_time.py --work DIR       # keeps the activations for a next run

A step of feedback costs what several of BatchTopK's products do. So every architecture is trained as in
``feature_untangling.py`` (SmolLM2 after block 15, 576 -> 1,152, the middle level), and then those that took
longer than BatchTopK once more, with as many steps fewer, and those that took less with as many more; time is
CPU time of one thread, training alone. Bits per token are those of ``feature_untangling.py``; of BatchTopK
they depend on how finely its magnitudes are quantized, and each resolution is printed.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from cross_layer import table
from untangling_trials import (
    MIDDLE,
    NAMES,
    Row,
    Task,
    Trial,
    lm_task,
    load,
    prepare,
    score_code,
    train,
)
from writing import add_write_argument, written

REFERENCE = "batchtopk"
# The rates at which each explains most at 800 steps (``results/feature_untangling.md``).
RATES = {
    REFERENCE: 2e-3,
    "bae": 8e-3,
    "bae_levels": 8e-3,
    "bae_levels_feedback": 8e-3,
    "bae_levels_feedback_no_cap": 8e-3,
}


def measure(arch: str, task: Task, folder: Path) -> tuple[float, Row]:
    """CPU seconds of one training, and its score."""
    splits = load(folder / task.filename)
    trial = Trial(task.name, arch, MIDDLE, RATES[arch], 0)
    begin = time.process_time()
    sae = train(trial, task, splits["train"], "cpu")
    seconds = time.process_time() - begin
    with torch.no_grad():
        return seconds, score_code(trial, task, sae, splits)


def line(arch: str, task: Task, seconds: float, row: Row, reference: float) -> list[str]:
    points = "; ".join(f"{ev:.3f} at {bits:.0f}" for _, bits, ev in row.points if bits > 0)
    return [
        NAMES[arch],
        f"{task.steps:,}",
        f"{seconds:.0f}",
        f"{seconds / task.steps / reference:.2f}",
        f"{row.explained_variance:.3f}",
        points,
        f"{row.code['dead_share']:.1%}",
    ]


def measure_and_report(args: argparse.Namespace) -> None:
    """Train everything twice, and print a table."""
    torch.set_num_threads(1)
    task = lm_task(15)
    if args.quick:
        task = replace(task, steps=20, n_train=20_000, n_validation=4096, n_test=8192)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.work or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        prepare([task], folder, "cpu")
        lines: dict[str, list[list[str]]] = {}
        given = reference = 0.0
        for arch in RATES:
            seconds, row = measure(arch, task, folder)
            if arch == REFERENCE:
                given, reference = seconds, seconds / task.steps
            lines[arch] = [line(arch, task, seconds, row, reference)]
            if arch != REFERENCE:
                steps = max(1, round(task.steps * given / seconds))
                shorter = replace(task, steps=steps)
                seconds, row = measure(arch, shorter, folder)
                lines[arch].append(line(arch, shorter, seconds, row, reference))
    print(f"\n{task.title}, {task.d_in} → {task.d_sae:,}, one seed, one thread\n")
    table(
        ["", "steps", "CPU s", "a step, × BatchTopK's", "EV", "EV at bits per token", "dead"],
        [own for group in lines.values() for own in group],
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="20 steps")
    parser.add_argument("--work", type=Path, help="folder that keeps the activations")
    add_write_argument(parser)
    args = parser.parse_args()
    with written("equal_time", args):
        measure_and_report(args)


if __name__ == "__main__":
    main()
