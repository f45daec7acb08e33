"""Dictionaries ranked by a judge who sees examples only: the second axis of arXiv 2506.20040, with a control.

    python benchmarks/judging.py --base_url https://…/v1 --model NAME    # any OpenAI-compatible endpoint
    python benchmarks/judging.py --base_url … --model NAME --dry_run     # what would be asked; nothing is sent
    python benchmarks/judging.py --serve                                 # a small local model, see below

The key is read from OPENAI_API_KEY. Answers are kept in --answers: what has been answered is not asked, or
paid for, again.

CLVQ-VAE, VQ-VAE, k-means and TopK SAE are trained on MiniLM's activations of movie reviews as
``concept_ablation.py`` trains them, and described by the same text. A judge sees random examples of two
latents side by side, in both orders, and says which group has more specifically one thing in common.

The control is "examples dealt out": k-means' examples, dealt out to its codes at random, which have nothing
in common. **A judge who does not rank it last, clear of the others' intervals, says nothing about them.**

--serve has transformers' own server (``transformers serve``, ``pip install "transformers[serving]"``) serve
SmolLM2-135M on this machine. That is to see that everything works from end to end: a model of that size
cannot judge, and its ranking means nothing.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from concept_ablation_trials import Plan, collect, fit, load_dictionary, load_model
from writing import add_write_argument, written

from bae_lens import offline as demo
from bae_lens.examples import ExampleSettings, LatentRecords, collect_examples
from bae_lens.offline.smollm2 import load_transformers, save_transformers
from bae_lens.scoring import Ranking, RankingSettings, rank_dictionaries
from bae_lens.scoring.judges import DryRun, EndpointJudge, EndpointSettings, Limits
from bae_lens.stats import shown

MODEL = "minilm"
METHODS = ("CLVQ-VAE", "VQ-VAE", "k-means", "TopK SAE")
DEALT_FROM, CONTROL = "k-means", "examples dealt out"
# Seconds for a server to load its model.
_PATIENCE = 300.0


def describe(
    plan: Plan, methods: Sequence[str], n_tokens: int, work: Path
) -> dict[str, LatentRecords]:
    """Examples of each dictionary, which is trained if the folder has none, and the control's."""
    collect(plan, MODEL, work)
    model = load_model(MODEL)
    texts = list(demo.load_dataset(demo.DATASET_NAME, "test")["text"])  # pyright: ignore[reportOptionalSubscript]
    settings = ExampleSettings(
        n_tokens=n_tokens, n_strongest=1, n_random=20, n_neighbors=0, n_corpus_tokens=0
    )
    records = {}
    for method in methods:
        fit(plan, MODEL, method, plan.seed, work)
        dictionary = load_dictionary(plan, work, MODEL, method, plan.seed)
        records[method] = collect_examples(model, dictionary, texts, settings)
    return records | {CONTROL: dealt_out(records[DEALT_FROM], plan.seed)}


def dealt_out(records: LatentRecords, seed: int) -> LatentRecords:
    """The same latents, each with as many random examples as it had, drawn from those of all."""
    every = [example for latent in records.latents for example in latent.random]
    order = iter(np.random.default_rng(seed).permutation(len(every)))
    latents = tuple(
        replace(latent, random=tuple(every[next(order)] for _ in latent.random))
        for latent in records.latents
    )
    return replace(records, dictionary=CONTROL, latents=latents)


def verdict(ranking: Ranking, judge: str) -> str:
    """Whether the judge can tell the control from the dictionaries at all."""
    names = [name for name in ranking.names if name != CONTROL]
    rates = {name: ranking.win_rate(CONTROL, name, judge) for name in names}
    if all(rate is None for rate in rates.values()):
        return f"{judge} gave no usable answer."
    control = shown(ranking.win_rate(CONTROL, judge=judge), 2)
    alike = [name for name, rate in rates.items() if rate is None or rate.high >= 0.5]
    if alike:
        return (
            f"{judge} does not tell {', '.join(alike)} from {CONTROL} (win rate {control}): its ranking "
            "says nothing about them."
        )
    return f"{judge} prefers every dictionary to {CONTROL}, whose win rate is {control}."


# A local server


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """SmolLM2 behind transformers' own server on loopback; gives the address up to ``/chat/completions``.

    Raises:
        SystemExit: if the server's packages are missing, or it does not come up.
    """
    missing = [
        name for name in ("fastapi", "uvicorn", "openai") if importlib.util.find_spec(name) is None
    ]
    if missing:
        raise SystemExit(
            f'--serve needs {", ".join(missing)}: pip install "transformers[serving]", best in an '
            "environment of its own."
        )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [Path(sys.executable).parent / "transformers", "serve", folder.name]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    log = folder.parent / "server.log"

    def leave(*_: object) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    # A signal that ends this process would leave the server.
    before = signal.signal(signal.SIGTERM, leave)
    with log.open("w", encoding="utf-8") as file:
        # Where it starts, the folder's name is the model's.
        server = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, cwd=folder.parent)
    try:
        _wait_for(server, f"http://127.0.0.1:{port}/health", log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(timeout=30)
        signal.signal(signal.SIGTERM, before)


def _wait_for(server: subprocess.Popen[bytes], address: str, log: Path) -> None:
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(1)
    raise SystemExit(f"The server did not come up:\n{log.read_text(encoding='utf-8')[-2000:]}")


def save_small_model(folder: Path) -> None:
    """The offline language model as a folder that any server reads."""
    model, tokenizer = load_transformers()
    save_transformers(model, tokenizer, folder)


# Command line


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base_url", help="of an endpoint, up to and without /chat/completions")
    parser.add_argument("--model", help="as the endpoint calls it")
    parser.add_argument(
        "--serve", action="store_true", help="serve a small model here and ask that"
    )
    parser.add_argument("--dry_run", action="store_true", help="count questions, send nothing")
    parser.add_argument("--max_calls", type=int, help="requests that may be sent")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument(
        "--n_pairs", type=int, default=100, help="of latents, of each two dictionaries"
    )
    parser.add_argument(
        "--n_tokens", type=int, default=60_000, help="of text that examples are from"
    )
    parser.add_argument("--answers", type=Path, help="file of answers, with which a run goes on")
    parser.add_argument("--work", type=Path, help="folder that keeps activations and dictionaries")
    parser.add_argument("--quick", action="store_true", help="little of everything")
    add_write_argument(parser)
    args = parser.parse_args(argv)
    if args.serve == (args.base_url is not None):
        parser.error("give --base_url with --model, or --serve")
    if args.base_url is not None and args.model is None:
        parser.error("--base_url needs --model: what the endpoint calls it")
    if DEALT_FROM not in args.methods:
        args.methods = [*args.methods, DEALT_FROM]  # The control is of its examples.
    if args.quick:
        args.n_pairs, args.n_tokens = min(args.n_pairs, 4), min(args.n_tokens, 6000)
    return args


def make_plan(args: argparse.Namespace) -> Plan:
    plan = Plan(data=None, datasets=("movies",))
    return replace(plan, n_train=12_000, steps=30, n_codes=64, d_sae=256) if args.quick else plan


def ask(
    args: argparse.Namespace, base_url: str, model: str, records: dict[str, LatentRecords]
) -> None:
    """Rank, and print the ranking with what the control says of the judge."""
    settings = EndpointSettings(
        base_url=base_url,
        model=model,
        api_key=None if args.serve else os.environ.get("OPENAI_API_KEY"),
        limits=Limits(max_calls=args.max_calls),
        # A model on this machine answers one at a time, and slowly.
        **({"n_parallel": 1, "timeout": 600.0, "n_reminders": 0} if args.serve else {}),
    )
    asked = EndpointJudge(settings, args.answers)
    judge: Any = DryRun(asked) if args.dry_run else asked
    ranking = rank_dictionaries(records, judge, RankingSettings(n_pairs=args.n_pairs))
    if args.dry_run:
        print(f"To ask: {judge.expected}; known already: {judge.n_cached}.")
        return
    print(ranking.table())
    for name in ranking.judges:
        print(f"\n{verdict(ranking, name)}")
    if args.serve:
        print(
            "\nThe judge was a model of 135 million parameters: that everything works is what this shows."
        )


def main() -> None:
    args = parse()
    with written("judging", args), tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        records = describe(make_plan(args), args.methods, args.n_tokens, work)
        folder = Path(temporary) / "smollm2"
        if args.serve:
            save_small_model(folder)
        with served(folder) if args.serve else nullcontext(args.base_url) as base_url:
            ask(args, base_url, folder.name if args.serve else args.model, records)


if __name__ == "__main__":
    main()
