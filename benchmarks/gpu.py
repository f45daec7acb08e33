"""What training costs on a GPU: steps beside SAELens', the check of every step, whole runs, memory.

    python benchmarks/gpu.py                     # all four parts, some minutes
    python benchmarks/gpu.py --parts steps check # some of them
    python benchmarks/gpu.py --quick --device cpu

Parts:

1. steps: a training step of each architecture, in float32 and under autocast to bfloat16, with the most
   memory that was allocated. Ten steps are queued before the device is waited for, and the median of the
   rounds counts.
2. check: the same steps with and without the check that every step is finite, which waits for the
   device once a step.
3. runs: tokens per second of whole runs, with random weights of SmolLM2's and GPT-2's shape: from the
   first training step to the last, language model included, and with activations replayed.
4. memory: the most that is allocated for a BAE at d_in 4,096, with Adam in float32, against
   d_sae, the line through it, and whether the largest d_sae that the line allows can be trained.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from cross_layer import table
from datasets import Dataset
from sae_lens import (
    BatchTopKTrainingSAEConfig,
    HookedSAETransformer,
    LanguageModelSAERunnerConfig,
    LoggingConfig,
    StandardTrainingSAEConfig,
    TopKTrainingSAEConfig,
)
from sae_lens.registry import get_sae_training_class
from sae_lens.training.sae_trainer import SAETrainer
from speed_timing import available_bytes, take_turns
from tokenizers import Tokenizer, models, pre_tokenizers
from transformer_lens import HookedTransformerConfig
from transformers import PreTrainedTokenizerFast
from writing import add_write_argument, written

from bae_lens import (
    CrossLayerRunnerConfig,
    CrossLayerTrainingRunner,
    ReplayedActivations,
    TrainingBAEConfig,
    TrainingCLVQVAEConfig,
    TrainingRunner,
    TrainingTopKTranscoderConfig,
)
from bae_lens.architectures.packed_rows import pack_rows
from bae_lens.files.whole import write_text
from bae_lens.training.finite_steps import skip_steps_not_finite
from bae_lens.training.fit import trainer_config

PARTS = ("steps", "check", "runs", "memory")
N_ON, QUEUED, LENGTH = 50, 10, 128
GIB = 2**30


def peers(d_in: int, d_sae: int, n_codes: int) -> dict[str, Any]:
    """Configs by name; those of two hook points read and write the same width."""
    shape: dict[str, Any] = {"d_in": d_in, "d_sae": d_sae}
    codes: dict[str, Any] = {"d_in": d_in, "d_sae": n_codes, "d_out": d_in, "top_k": 5}
    bae: dict[str, Any] = {
        **shape,
        "initial_firing_rate": N_ON / d_sae,
        "target_entropy": d_in / 2,
        "normalize_activations": "none",
    }
    return {
        "SAELens standard": StandardTrainingSAEConfig(**shape),
        "SAELens TopK": TopKTrainingSAEConfig(k=N_ON, **shape),
        "SAELens BatchTopK": BatchTopKTrainingSAEConfig(k=N_ON, **shape),
        "BAE": TrainingBAEConfig(**bae),
        "BAE, covariance": TrainingBAEConfig(covariance_coefficient=1e-6, **bae),
        "TopK transcoder": TrainingTopKTranscoderConfig(k=N_ON, d_out=d_in, **shape),
        f"CLVQ-VAE, {n_codes:,} codes, token": TrainingCLVQVAEConfig(decoder="token", **codes),
        f"CLVQ-VAE, {n_codes:,} codes, transformer": TrainingCLVQVAEConfig(
            decoder="transformer", sequence_length=LENGTH, **codes
        ),
    }


def make_trainer(
    cfg: Any, n: int, device: str, autocast: bool, is_checked: bool = True
) -> SAETrainer[Any, Any]:
    """A trainer that has taken its first step, at a learning rate that leaves the code as it is."""
    torch.manual_seed(0)
    x = torch.randn(n, cfg.d_in, device=device)
    d_out = getattr(cfg, "d_out", None)
    rows = x if d_out is None else pack_rows(x, torch.randn(n, d_out, device=device))
    config = trainer_config(10**6, n, 1e-12, device)
    config.autocast = autocast
    sae = get_sae_training_class(cfg.architecture())[0](cfg).to(device)
    if hasattr(sae.cfg, "codebook_init"):
        # How the codebook begins makes no difference to a step's time.
        sae.cfg.codebook_init = "random"
    trainer = SAETrainer(config, sae, ReplayedActivations(rows, n))
    if is_checked:
        skip_steps_not_finite(trainer)
    trainer.step(rows)
    return trainer


def queued_steps(trainer: SAETrainer[Any, Any], n_steps: int) -> Callable[[], None]:
    rows: Any = trainer.data_provider
    batch = rows.activations

    def take() -> None:
        for _ in range(n_steps):
            trainer.step(batch)

    return take


def reset_peak(device: str) -> None:
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_gib(device: str) -> float:
    return torch.cuda.max_memory_allocated(device) / GIB if device.startswith("cuda") else 0.0


# 1. Steps


def steps_part(args: argparse.Namespace) -> list[dict[str, Any]]:
    shapes = [(4096, 768, 24_576, 4096), (4096, 2048, 32_768, 4096)]
    if args.quick:
        shapes = [(256, 32, 256, 64)]
    rows = []
    for n, d_in, d_sae, n_codes in shapes:
        for autocast in (False, True):
            milliseconds, memory = {}, {}
            for name, cfg in peers(d_in, d_sae, n_codes).items():
                reset_peak(args.device)
                call = queued_steps(make_trainer(cfg, n, args.device, autocast), args.queued)
                taken = take_turns({name: call}, args.rounds, args.device)
                milliseconds[name] = 1e3 * taken[name] / args.queued
                memory[name] = peak_gib(args.device)
                del call
            rows.append(
                {"n": n, "d_in": d_in, "d_sae": d_sae, "autocast": autocast}
                | {"milliseconds": milliseconds, "gib": memory}
            )
    return rows


def show_steps(rows: list[dict[str, Any]]) -> None:
    print("\n## Training steps\n")
    lines = []
    for row in rows:
        topk = row["milliseconds"]["SAELens TopK"]
        for name, ms in row["milliseconds"].items():
            lines.append(
                [
                    f"{row['n']:,}, {row['d_in']:,} → {row['d_sae']:,}",
                    "bf16" if row["autocast"] else "fp32",
                    name,
                    f"{ms:.2f}",
                    f"{ms / topk:.2f}",
                    f"{row['n'] / ms * 1e3:,.0f}",
                    f"{row['gib'][name]:.2f}",
                ]
            )
    header = ["tokens, d_in → d_sae", "products", "step", "ms", "× TopK", "tokens/s", "GiB"]
    table(header, lines)


# 2. The check of every step


def check_part(args: argparse.Namespace) -> list[dict[str, Any]]:
    shapes = [(1024, 576, 4608, 512), (4096, 768, 24_576, 4096)]
    if args.quick:
        shapes = [(256, 32, 256, 64)]
    rows = []
    for n, d_in, d_sae, n_codes in shapes:
        for name, cfg in peers(d_in, d_sae, n_codes).items():
            calls = {
                key: queued_steps(make_trainer(cfg, n, args.device, True, is_checked), args.queued)
                for key, is_checked in (("with", True), ("without", False))
            }
            taken = take_turns(calls, 2 * args.rounds, args.device)
            milliseconds = {key: 1e3 * seconds / args.queued for key, seconds in taken.items()}
            rows.append({"n": n, "d_in": d_in, "d_sae": d_sae, "step": name} | milliseconds)
            del calls
            reset_peak(args.device)
    return rows


def show_check(rows: list[dict[str, Any]]) -> None:
    print("\n## The check that every step is finite (autocast)\n")
    lines = [
        [
            f"{row['n']:,}, {row['d_in']:,} → {row['d_sae']:,}",
            row["step"],
            f"{row['with']:.2f}",
            f"{row['without']:.2f}",
            f"{1 - row['without'] / row['with']:.0%}",
        ]
        for row in rows
    ]
    table(["tokens, d_in → d_sae", "step", "with, ms", "without, ms", "share"], lines)


# 3. Whole runs


def language_model(name: str, device: str, is_small: bool) -> HookedSAETransformer:
    """Random weights in a known model's shape; words for tokens."""
    shapes: dict[str, dict[str, Any]] = {
        "SmolLM2-135M": {
            **{"n_layers": 30, "d_model": 576, "n_heads": 9, "n_key_value_heads": 3, "d_head": 64},
            **{"d_mlp": 1536, "d_vocab": 49_152, "act_fn": "silu", "gated_mlp": True},
            **{"normalization_type": "RMS", "positional_embedding_type": "rotary"},
            **{"rotary_dim": 64, "final_rms": True},
        },
        "GPT-2": {
            **{"n_layers": 12, "d_model": 768, "n_heads": 12, "d_head": 64, "d_mlp": 3072},
            **{"d_vocab": 50_257, "act_fn": "gelu_new"},
        },
    }
    shape = shapes[name]
    if is_small:
        shape = {
            **{"n_layers": 2, "d_model": 32, "n_heads": 2, "d_head": 16, "d_mlp": 64},
            **{"d_vocab": 100, "act_fn": "gelu"},
        }
    every: dict[str, Any] = {
        "model_name": "random",
        "n_ctx": 2 * LENGTH,
        "device": device,
        "seed": 0,
    }
    cfg = HookedTransformerConfig(**every, **shape)
    words = ("<bos>", "<eos>", "<pad>", "<unk>", *(f"w{i}" for i in range(cfg.d_vocab - 4)))
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        add_bos_token=True,
        name_or_path="random",
    )
    return HookedSAETransformer(cfg, tokenizer=fast).eval()


def tokenised(n_rows: int, d_vocab: int) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(4, d_vocab, (n_rows, LENGTH), generator=generator)
    rows[:, 0] = 0
    return Dataset.from_dict({"tokens": rows.numpy()})


class _Timed:
    """When the first training step begins, and when the last has ended."""

    def __init__(self, runner: Any, device: str) -> None:
        self.device, self.seconds = device, 0.0
        train = runner.run_trainer_with_interruption_handling

        def train_timed(trainer: Any) -> Any:
            fit = trainer.fit

            def fit_timed() -> Any:
                self.wait()
                start = time.perf_counter()
                found = fit()
                self.wait()
                self.seconds = time.perf_counter() - start
                return found

            trainer.fit = fit_timed
            return train(trainer)

        runner.run_trainer_with_interruption_handling = train_timed

    def wait(self) -> None:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()


def runs_part(args: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for model_name, layer, layer_out in (("SmolLM2-135M", 15, 20), ("GPT-2", 6, 8)):
        model = language_model(model_name, args.device, args.quick)
        if args.quick:
            layer, layer_out = 0, 1
        d = model.cfg.d_model
        # The last third is for batches that are drawn to estimate a scale, and for the mixing.
        text = tokenised(args.run_tokens * 2 // LENGTH, model.cfg.d_vocab)
        all_peers = peers(d, 8 * d, 512)
        for name in (
            "SAELens TopK",
            "BAE",
            "BAE, covariance",
            "CLVQ-VAE, 512 codes, token",
            "CLVQ-VAE, 512 codes, transformer",
        ):
            cfg = all_peers[name]
            for fields in (
                {"replay": False, "autocast_lm": False},
                {"replay": False, "autocast_lm": True},
                {"replay": True, "autocast_lm": True},
            ):
                if not fields["autocast_lm"] and name not in ("SAELens TopK", "BAE"):
                    continue
                if hasattr(cfg, "sequence_length"):
                    cfg.sequence_length = None
                reset_peak(args.device)
                found = run_once(args, model, text, cfg, (layer, layer_out), **fields)
                rows.append({"model": model_name, "sae": name, "d_in": d} | fields | found)
    return rows


def run_once(
    args: argparse.Namespace,
    model: HookedSAETransformer,
    text: Dataset,
    cfg: Any,
    layers: tuple[int, int],
    replay: bool,
    autocast_lm: bool,
) -> dict[str, Any]:
    batch = 4096 if not args.quick else 256
    with tempfile.TemporaryDirectory() as folder:
        fields: dict[str, Any] = {
            "sae": cfg,
            "model_name": "random",
            "hook_name": f"blocks.{layers[0]}.hook_resid_post",
            "dataset_path": "random",
            "is_dataset_tokenized": True,
            "context_size": LENGTH,
            "training_tokens": args.run_tokens,
            "train_batch_size_tokens": batch,
            "store_batch_size_prompts": 64 if not args.quick else 8,
            "n_batches_in_buffer": 512 if not args.quick else 32,
            "n_batches_for_norm_estimate": 8,
            "exclude_special_tokens": True,
            "device": args.device,
            "autocast": True,
            "autocast_lm": autocast_lm,
            "lr": 1e-4,
            "checkpoint_path": None,
            "output_path": f"{folder}/output",
            "logger": LoggingConfig(log_to_wandb=False),
        }
        replay_tokens = args.run_tokens // 4 if replay else None
        start = time.perf_counter()
        if hasattr(cfg, "d_out"):
            hook_out = f"blocks.{layers[1]}.hook_resid_post"
            both = CrossLayerRunnerConfig(
                hook_name_out=hook_out,
                initialization_tokens=8192 if not args.quick else 2048,
                **fields,
            )
            runner: Any = CrossLayerTrainingRunner(both, text, model, replay_tokens=replay_tokens)
        else:
            one = LanguageModelSAERunnerConfig(**fields)
            runner = TrainingRunner(one, text, model, replay_tokens=replay_tokens)
        timed = _Timed(runner, args.device)
        runner.run()
        whole = time.perf_counter() - start
        log = [
            json.loads(line)
            for line in (Path(folder) / "output" / "metrics.jsonl").read_text().splitlines()
        ]
    speeds = {
        part: sorted(x[f"performance/{part}_tokens_per_second"] for x in log)[len(log) // 2]
        for part in ("store", "trainer")
    }
    return speeds | {
        "tokens_per_second": args.run_tokens / timed.seconds,
        "seconds_in_all": whole,
        "gib": peak_gib(args.device),
    }


def show_runs(rows: list[dict[str, Any]]) -> None:
    print("\n## Whole runs, SAE steps under autocast, d_sae 8 × d_in (512 codes), batch 4,096\n")
    lines = [
        [
            row["model"],
            row["sae"].replace(", 512 codes", ""),
            "replayed" if row["replay"] else "bf16" if row["autocast_lm"] else "fp32",
            f"{row['tokens_per_second']:,.0f}",
            f"{row['store']:,.0f}",
            f"{row['trainer']:,.0f}",
            f"{row['seconds_in_all']:.1f}",
            f"{row['gib']:.1f}",
        ]
        for row in rows
    ]
    header = ["shape", "SAE", "language model", "tokens/s", "of the store", "of the trainer"]
    table([*header, "s in all", "GiB"], lines)


# 4. Memory


def memory_part(args: argparse.Namespace) -> list[dict[str, Any]]:
    d_in, widths, batches = 4096, [16_384, 32_768, 65_536], (1024, 4096)
    if args.quick:
        d_in, widths, batches = 64, [128, 256], (64,)
    rows = []
    for n in batches:
        for is_penalised in (False, True):
            points = [(d, peak_of(d_in, d, n, is_penalised, args.device)) for d in widths]
            (d0, y0), (d1, y1) = points[-2:]
            slope = (y1 - y0) / (d1 - d0)
            row: dict[str, Any] = {
                "n": n,
                "covariance": is_penalised,
                "gib": dict(points),
                "bytes_a_latent": slope * GIB,
                "of_weights": 4 * 4 * 2 * d_in,
            }
            if args.device.startswith("cuda"):
                reset_peak(args.device)
                room = available_bytes(args.device) / GIB
                largest = int((d0 + (room - y0) / slope) // 1024 * 1024)
                row |= {"room_gib": room, "predicted": largest}
                # The covariance of so many pairs would take minutes.
                if not is_penalised:
                    row["trained"] = largest_trained(d_in, n, largest, args.device)
            rows.append(row)
    return rows


def peak_of(d_in: int, d_sae: int, n: int, is_penalised: bool, device: str) -> float:
    """GiB allocated at most in three steps in float32."""
    reset_peak(device)
    cfg = peers(d_in, d_sae, 2)["BAE, covariance" if is_penalised else "BAE"]
    cfg.device = device
    trainer = make_trainer(cfg, n, device, False)
    queued_steps(trainer, 2)()
    return peak_gib(device)


def largest_trained(d_in: int, n: int, predicted: int, device: str) -> dict[int, bool]:
    """Whether widths about the predicted one can be trained."""
    found = {}
    for share in (0.9, 0.97, 1.03):
        d_sae = int(predicted * share) // 1024 * 1024
        try:
            peak_of(d_in, d_sae, n, False, device)
            found[d_sae] = True
        except torch.OutOfMemoryError:
            found[d_sae] = False
    return found


def show_memory(rows: list[dict[str, Any]]) -> None:
    print("\n## Memory of a BAE at d_in 4,096, Adam, float32, check on\n")
    lines = []
    for row in rows:
        trained = row.get("trained", {})
        lines.append(
            [
                f"{row['n']:,}",
                "yes" if row["covariance"] else "no",
                ", ".join(f"{d:,}: {gib:.2f}" for d, gib in row["gib"].items()),
                f"{row['bytes_a_latent'] / 1024:.0f}",
                f"{row['of_weights'] / 1024:.0f}",
                f"{row.get('predicted', 0):,}",
                ", ".join(f"{d:,} {'fits' if ok else 'does not'}" for d, ok in trained.items()),
            ]
        )
    header = ["tokens", "covariance", "d_sae: GiB", "KiB a latent", "of these weights, Adam"]
    table([*header, "largest d_sae by the line", "tried"], lines)


RUN: dict[str, tuple[Callable[[argparse.Namespace], Any], Callable[[Any], None]]] = {
    "steps": (steps_part, show_steps),
    "check": (check_part, show_check),
    "runs": (runs_part, show_runs),
    "memory": (memory_part, show_memory),
}


def measure_and_report(args: argparse.Namespace) -> None:
    """Run the parts that the arguments name, and print their tables."""
    found: dict[str, Any] = {"device": args.device, "torch": torch.__version__}
    for part in args.parts:
        found[part] = RUN[part][0](args)
        if args.output is not None:
            write_text(args.output, json.dumps(found, indent=1))
    for part in args.parts:
        RUN[part][1](found[part])


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=3, help="timed calls of each peer")
    parser.add_argument("--queued", type=int, default=QUEUED, help="steps a call")
    parser.add_argument("--run_tokens", type=int, default=1_000_000, help="of a whole run")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="small shapes")
    parser.add_argument("--output", type=Path, help="JSON file")
    add_write_argument(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    with written("gpu", args):
        measure_and_report(args)


if __name__ == "__main__":
    main()
