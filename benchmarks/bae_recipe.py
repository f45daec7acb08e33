"""What each part of the default BAE recipe does: take it away, train again, at two layers.

    python benchmarks/bae_recipe.py            # about twenty minutes on two cores
    python benchmarks/bae_recipe.py --quick    # minutes: fewer tokens and steps

Every row is one training of SAELens' own trainer on the same activations of SmolLM2-135M, scored on
held-out reviews.
"""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal
from unittest.mock import patch

import torch
from sae_lens import ActivationsStore
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor
from tqdm.auto import tqdm

from bae_lens import TrainingBAE, TrainingBAEConfig, demo
from bae_lens.evals import CodeSummary, summarise_code
from bae_lens.nn import entropy, off_diagonal_covariance
from bae_lens.training.replay import ReplayedActivations

D_IN, D_SAE, BATCH = 576, 2304, 1024

_PUSH = "push on silent bits"  # not a field of the config: the package has no such option

VARIANTS: dict[str, dict[str, Any]] = {
    "default recipe": {},
    "without calibration": {"initial_firing_rate": None},
    "without budget (fixed coefficient)": {"target_entropy": None},
    "without density cap": {"max_density": None},
    "with a push on silent bits": {_PUSH: True},
    "with covariance penalty 6e-5 (the release's)": {"covariance_coefficient": 1e-7 * D_IN},
    "with covariance penalty 1e-2": {"covariance_coefficient": 1e-2},
    "surrogate identity": {"surrogate": "identity"},
    "surrogate paper": {"surrogate": "paper"},
    "without budget, cap, calibration": {
        "target_entropy": None,
        "max_density": None,
        "initial_firing_rate": None,
    },
}


@dataclass
class Row:
    """One training, scored."""

    code: CodeSummary
    explained_variance: float
    covariance: float


def collect(layers: list[int], split: Literal["train", "test"], n_tokens: int) -> dict[int, Tensor]:
    """Activations ``[n_tokens, 576]`` after each layer's block, from one pass, BOS left out."""
    hooks = {layer: f"blocks.{layer}.hook_resid_post" for layer in layers}
    model: Any = demo.load_model(demo.MODEL_NAME)
    dataset: Any = demo.load_dataset(demo.DATASET_NAME, split=split)
    store = ActivationsStore.from_config_multi_hook(
        model,
        dataset=dataset,
        hook_names=list(hooks.values()),
        hook_d_ins=dict.fromkeys(hooks.values(), D_IN),
        context_size=128,
        disable_concat_sequences=True,
    )
    parts: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    n = 0
    with tqdm(total=n_tokens, desc=f"Collecting {split}", unit="tok") as bar:
        while n < n_tokens:
            acts = store.get_multi_hook_activations(store.get_batch_tokens())
            for layer, hook in hooks.items():
                parts[layer].append(acts[hook][:, 1:].reshape(-1, D_IN))
            n += len(parts[layers[0]][-1])
            bar.update(len(parts[layers[0]][-1]))
    return {layer: torch.cat(part)[:n_tokens] for layer, part in parts.items()}


def pushed_silent_bits() -> Any:
    """Let the entropy push bits that are silent in a batch, by log2 of 2n - 1 (p = half a count).

    The release pushes them by 33 bits; this is the least that a clamped p gives.
    """

    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (p,) = ctx.saved_tensors
        p = p.clamp(0.5 / ctx.n, 1 - 0.5 / ctx.n)
        return (grad * torch.log2((1 - p) / p) / ctx.n).to(ctx.dtype).expand(ctx.n, -1)

    return patch.object(entropy._MarginalEntropy, "backward", staticmethod(backward))


def train(
    overrides: dict[str, Any],
    train_acts: Tensor,
    test_acts: Tensor,
    steps: int,
    lr: float,
    seed: int,
) -> Row:
    """Train one variant and score it."""
    torch.manual_seed(seed)
    fields = {name: value for name, value in overrides.items() if name != _PUSH}
    sae = TrainingBAE(TrainingBAEConfig(d_in=D_IN, d_sae=D_SAE, **fields))
    config = SAETrainerConfig(
        n_checkpoints=0,
        checkpoint_path=None,
        save_final_checkpoint=False,
        total_training_samples=steps * BATCH,
        device="cpu",
        autocast=False,
        lr=lr,
        lr_end=lr / 10,
        lr_scheduler_name="constant",
        lr_warm_up_steps=0,
        adam_beta1=0.9,
        adam_beta2=0.999,
        lr_decay_steps=steps // 5,
        n_restart_cycles=1,
        train_batch_size_samples=BATCH,
        dead_feature_window=64,
        feature_sampling_window=10**9,
        logger=LoggingConfig(log_to_wandb=False),
        n_batches_for_norm_estimate=8,
    )
    with pushed_silent_bits() if _PUSH in overrides else nullcontext():
        SAETrainer(config, sae, ReplayedActivations(train_acts, BATCH, seed=seed)).fit()
    code, explained_variance, _ = summarise_code(sae, test_acts.split(4096))
    with torch.no_grad():
        rows = test_acts[: 8 * BATCH].split(BATCH)
        bits = [(sae.encode(x) != 0).float() for x in rows if len(x) > 1]
        covariance = sum(off_diagonal_covariance(b).item() for b in bits) / len(bits)
    return Row(code, explained_variance, covariance)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--layers", type=int, nargs="+", default=[8, 15])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--tokens", type=int, default=200_000)
    parser.add_argument("--held_out_tokens", type=int, default=65_536)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--quick", action="store_true", help="20,000 tokens, 100 steps, layer 15")
    args = parser.parse_args()
    if args.quick:
        args.layers, args.steps, args.tokens, args.held_out_tokens = [15], 100, 20_000, 8_192

    train_acts = collect(args.layers, "train", args.tokens)
    test_acts = collect(args.layers, "test", args.held_out_tokens)
    print(
        f"\n{args.steps} steps of {BATCH} tokens, lr {args.lr:g}, {D_IN} -> {D_SAE}, "
        f"{args.held_out_tokens:,} held-out tokens, seed {args.seed}\n"
    )
    print("| after block | variant | EV | bits on | entropy | covariance | > 10 % | dead |")
    print("|---|---|---|---|---|---|---|---|")
    for layer in args.layers:
        for name in args.variants:
            row = train(
                VARIANTS[name], train_acts[layer], test_acts[layer], args.steps, args.lr, args.seed
            )
            print(
                f"| {layer} | {name} | {row.explained_variance:.3f} | {row.code.l0:.0f} "
                f"| {row.code.marginal_entropy:.0f} | {row.covariance:.0f} "
                f"| {row.code.dense_share_10:.1%} | {row.code.dead_share:.1%} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
