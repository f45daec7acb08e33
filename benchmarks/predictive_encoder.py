"""Codes of a lower layer that tell most of a higher one: the encoder that predicts, beside its trivial controls.

    python benchmarks/predictive_encoder.py --data ag_news.jsonl --model FOLDER   # a classifier from bae-lens finetune
    python benchmarks/predictive_encoder.py --data ag_news.jsonl                  # MiniLM as it is
    python benchmarks/predictive_encoder.py --data ag_news.jsonl --gradients      # of the quantizer, at the first pair
    python benchmarks/predictive_encoder.py --data ag_news.jsonl --quick

Every method gives each token at the lower block one of K codes, by its activation alone, and each code one vector at the
higher block. What is scored is the explained variance at the higher block, on texts that nothing was fitted to. Intervals
are of differences to the predictive encoder, its mean over seeds, over texts drawn with replacement.

Controls, with scikit-learn: k-means of the lower block with means of the higher one; ridge regression, and an MLP with the
predictive encoder's hidden width, from lower to higher and then k-means of what they predict, with the centers or with
the mean higher activation of each cluster as codes; k-means *at* the higher block, which sees what it is to reconstruct: the
ceiling. They are fitted on as many tokens as the CLVQ-VAEs are initialized with, but for the regressions and means, which see all.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from cross_layer import table
from cross_layer_trials import group_means
from sae_lens.training.sae_trainer import SAETrainer
from sklearn.cluster import KMeans
from sklearn.linear_model import Ridge
from sklearn.neural_network import MLPRegressor
from torch import Tensor
from writing import add_write_argument, written

from bae_lens import CLVQVAE, TrainingCLVQVAE, TrainingCLVQVAEConfig
from bae_lens.activations.replay import ReplayedActivations
from bae_lens.activations.text_batch import TextBatch, read_hooks
from bae_lens.architectures import clvq_vae_training
from bae_lens.architectures.packed_rows import pack_rows
from bae_lens.files.whole import whole_file
from bae_lens.loading.language_models import load_model
from bae_lens.nn import nearest_codes, straight_through
from bae_lens.stats import paired_bootstrap, shown
from bae_lens.training.fit import trainer_config

MAX_LENGTH, TEXTS_AT_ONCE, TOKENS_AT_ONCE = 96, 32, 8192
OURS = "CLVQ-VAE, predictive, hidden layer"
# Squared errors of each held-out text.
Errors = Tensor


@dataclass(frozen=True)
class Tokens:
    """One pair of blocks: activations of training and held-out tokens, and which text each of the latter is of."""

    lower: Tensor
    upper: Tensor
    held_lower: Tensor
    held_upper: Tensor
    text: Tensor

    def per_text(self, values: Tensor) -> Tensor:
        total = torch.zeros(int(self.text.max()) + 1, dtype=torch.float64)
        return total.index_add_(0, self.text, values.double())

    def errors(self, output: Tensor) -> Errors:
        return self.per_text((self.held_upper - output).square().sum(1))

    @property
    def spread(self) -> Tensor:
        return self.errors(self.held_upper.mean(0).expand_as(self.held_upper))


# Activations


@torch.no_grad()
def collect(model: Any, texts: Sequence[str], blocks: Sequence[int]) -> dict[str, Any]:
    """Activations after blocks, [CLS] among them, [SEP] and padding not; and the text of each."""
    tokenizer = model.tokenizer
    parts: dict[int, list[Tensor]] = {block: [] for block in blocks}
    owners: list[Tensor] = []
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        some = list(texts[start : start + TEXTS_AT_ONCE])
        read = tokenizer(
            some, truncation=True, max_length=MAX_LENGTH, padding=True, return_tensors="pt"
        )
        mask = read["attention_mask"].bool()
        valid = mask & (read["input_ids"] != tokenizer.sep_token_id)
        batch = TextBatch(read["input_ids"], valid, mask)
        _, acts = read_hooks(model, batch, [f"blocks.{block}.hook_out" for block in blocks])
        for block, act in zip(blocks, acts, strict=True):
            parts[block].append(act[valid])
        owners.append((start + torch.arange(len(some)))[:, None].expand_as(valid)[valid])
    return {"acts": {b: torch.cat(p) for b, p in parts.items()}, "text": torch.cat(owners)}


def prepare(args: argparse.Namespace, blocks: Sequence[int]) -> dict[str, Any]:
    if args.cache is not None and args.cache.exists():
        return torch.load(args.cache, mmap=True)
    with args.data.open() as file:
        texts = [json.loads(line)["text"] for line in file]
    random.Random(0).shuffle(texts)
    texts = texts[args.skip :]
    model = load_model(args.model, "TransformerBridge")
    bounds = (0, args.n_train), (args.n_train, args.n_train + args.n_test)
    splits = {
        name: collect(model, texts[first:last], blocks)
        for name, (first, last) in zip(("train", "test"), bounds, strict=True)
    }
    if args.cache is not None:
        with whole_file(args.cache) as partial:
            torch.save(splits, partial)
    return splits


# Controls


def centers_of(x: Tensor, args: argparse.Namespace, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    some = x[torch.randperm(len(x), generator=generator)[: args.n_initialization]]
    kmeans = KMeans(args.codes, n_init=1, random_state=seed).fit(some.numpy())  # pyright: ignore[reportArgumentType]
    return torch.from_numpy(kmeans.cluster_centers_).float()


def means_of(codes: Tensor, tokens: Tokens, n: int) -> Tensor:
    return group_means(codes, tokens.upper, n)


def clusters(tokens: Tokens, args: argparse.Namespace, seed: int) -> dict[str, Errors]:
    centers = centers_of(tokens.lower, args, seed)
    own = means_of(nearest_codes(tokens.lower, centers), tokens, args.codes)
    ceiling = centers_of(tokens.upper, args, seed)
    return {
        "k-means at the lower block": tokens.errors(own[nearest_codes(tokens.held_lower, centers)]),
        "k-means at the higher block (ceiling)": tokens.errors(
            ceiling[nearest_codes(tokens.held_upper, ceiling)]
        ),
    }


def regressions(tokens: Tokens, args: argparse.Namespace, seed: int) -> dict[str, Errors]:
    """Ridge and MLP, each as it is and followed by k-means of its prediction, as CLVQ-VAEs."""
    x_mean, y_mean = tokens.lower.mean(0), tokens.upper.mean(0)
    x_scale = tokens.lower.shape[1] ** 0.5 / (tokens.lower - x_mean).norm(dim=1).mean()
    y_scale = (tokens.upper - y_mean).square().mean().sqrt()
    x, y = (tokens.lower - x_mean) * x_scale, (tokens.upper - y_mean) / y_scale
    mlp = MLPRegressor(
        hidden_layer_sizes=(2 * x.shape[1],),
        batch_size=1024,  # pyright: ignore[reportArgumentType]  (a number or "auto")
        learning_rate_init=2e-3,
        max_iter=args.mlp_epochs,
        random_state=seed,
    )
    found: dict[str, Errors] = {}
    for name, model in (("ridge", Ridge(len(x) * 1e-4)), ("MLP", mlp)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # That it has not converged after max_iter.
            model.fit(x.numpy(), y.numpy())
        layers = (
            [(w.T, b) for w, b in zip(model.coefs_, model.intercepts_, strict=True)]
            if isinstance(model, MLPRegressor)
            else [(model.coef_, model.intercept_)]
        )
        # In units of the activations themselves.
        layers = [(torch.as_tensor(w).float(), torch.as_tensor(b).float()) for w, b in layers]
        (first, bias), *_ = layers
        layers[0] = (first * x_scale, bias - first @ x_mean * x_scale)
        last, bias = layers[-1]
        layers[-1] = (last * y_scale, bias * y_scale + y_mean)
        sae = CLVQVAE.from_prediction(layers, torch.zeros(args.codes, len(last)))
        said, held = predictions(sae, tokens.lower), predictions(sae, tokens.held_lower)
        sae.codebook.copy_(centers_of(said, args, seed))
        codes = sae.code_indices(tokens.held_lower)
        means = means_of(nearest_codes(said, sae.codebook), tokens, args.codes)
        found |= {
            f"{name}, not quantized": tokens.errors(held),
            f"{name} + k-means": tokens.errors(sae.codebook[codes]),
            f"{name} + k-means, means of the target": tokens.errors(means[codes]),
        }
    return found


@torch.no_grad()
def predictions(sae: Any, x: Tensor) -> Tensor:
    """Of a predictive encoder, in the target's units."""
    return torch.cat(
        [sae.to_target(sae.encoder(sae.process_sae_in(part))) for part in x.split(TOKENS_AT_ONCE)]
    )


def reconstructions(sae: Any, x: Tensor) -> Tensor:
    return torch.cat([sae(part) for part in x.split(TOKENS_AT_ONCE)])


# Trainings


def config(name: str, d: int, args: argparse.Namespace, seed: int) -> TrainingCLVQVAEConfig:
    own: dict[str, Any] = {"n_codes": args.codes, "codebook_init_seed": seed}
    if name == OURS:
        return TrainingCLVQVAEConfig.predictive(d, **own)
    if name == "CLVQ-VAE, predictive, linear":
        return TrainingCLVQVAEConfig.predictive(d, **own, predictor_hidden=None)
    del own["n_codes"]
    shape = {"decoder": "token", "decoder_layers": 1, "decoder_mlp_width": 2 * d}
    return TrainingCLVQVAEConfig(d_in=d, d_sae=args.codes, **own, **shape)


RATES = {
    OURS: 2e-3,
    "CLVQ-VAE, predictive, linear": 1e-3,
    "CLVQ-VAE, paper's encoder, token decoder": 4e-3,
}


@torch.no_grad()
def trained(name: str, tokens: Tokens, args: argparse.Namespace, seed: int) -> dict[str, Errors]:
    torch.manual_seed(seed)
    rows = pack_rows(tokens.lower, tokens.upper)
    cfg = config(name, tokens.lower.shape[1], args, seed)
    sae = TrainingCLVQVAE(cfg)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    sae.calibrate(rows[order[: args.n_initialization]], args.batch_size)
    trainer = trainer_config(args.steps, args.batch_size, RATES[name])
    trainer.lr_decay_steps = int(0.6 * args.steps)
    with torch.enable_grad():
        SAETrainer(trainer, sae, ReplayedActivations(rows, args.batch_size, seed)).fit()
    sae.eval()
    found = {name: tokens.errors(reconstructions(sae, tokens.held_lower))}
    if cfg.encoder == "predictive":
        found[f"{name}, not quantized"] = tokens.errors(predictions(sae, tokens.held_lower))
    return found


# Gradients of the quantizer


def rotation(z: Tensor, codes: Tensor) -> Tensor:
    """The rotation trick, arXiv 2410.06424: the rotation and stretching of z onto its code, held constant."""
    codes = codes.detach().to(z.dtype)
    norms = [x.detach().norm(dim=-1, keepdim=True).clamp(min=1e-6) for x in (z, codes)]
    a, b = z.detach() / norms[0], codes / norms[1]
    middle = torch.nn.functional.normalize(a + b, dim=-1)
    turned = z - 2 * (z * middle).sum(-1, keepdim=True) * middle
    turned = turned + 2 * (z * a).sum(-1, keepdim=True) * b
    moved = turned * (norms[1] / norms[0])
    return codes + (moved - moved.detach())


def diveq(z: Tensor, codes: Tensor) -> Tensor:
    """DiVeQ, arXiv 2509.26469: z plus a vector whose direction is held constant and whose length is not."""
    codes = codes.detach().to(z.dtype)
    away = codes - z
    length = away.square().sum(-1, keepdim=True).clamp(min=1e-12).sqrt()
    moved = z + length * (away / length).detach()
    return codes + (moved - moved.detach())


GRADIENTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "straight-through": straight_through,
    "rotation trick": rotation,
    "DiVeQ": diveq,
}


def gradients(tokens: Tokens, args: argparse.Namespace, seed: int) -> dict[str, Errors]:
    [(name, _)] = [item for item in RATES.items() if "paper" in item[0]]
    found = {}
    for gradient, function in GRADIENTS.items():
        with patch.object(clvq_vae_training, "straight_through", function):
            [found[gradient]] = trained(name, tokens, args, seed).values()
        progress(gradient, tokens, found[gradient])
    return found


# Reports


def progress(name: str, tokens: Tokens, errors: Errors) -> None:
    """On the error stream, so that it is seen and not kept."""
    ev = 1 - (errors.sum() / tokens.spread.sum()).item()
    print(f"{time.strftime('%H:%M:%S')} {name}: {ev:.4f}", file=sys.stderr, flush=True)


def every_method(tokens: Tokens, args: argparse.Namespace, seed: int) -> dict[str, Errors]:
    found: dict[str, Errors] = {}
    parts: list[Callable[[], dict[str, Errors]]] = [
        *(lambda name=name: trained(name, tokens, args, seed) for name in RATES),
        lambda: clusters(tokens, args, seed),
        lambda: regressions(tokens, args, seed),
    ]
    for part in parts:
        found |= part()
        for name in list(found)[-3:]:
            progress(name, tokens, found[name])
    return found


def report(tokens: Tokens, seeds: Sequence[dict[str, Errors]], reference: str) -> None:
    spread = tokens.spread
    lines = []
    for name in seeds[0]:
        evs = [1 - (found[name].sum() / spread.sum()).item() for found in seeds]
        mean, deviation = (
            torch.tensor(evs).mean().item(),
            torch.tensor(evs).std(correction=0).item(),
        )
        gained = torch.stack([found[name] - found[reference] for found in seeds]).mean(0)
        interval = paired_bootstrap(gained / spread.mean())
        gain = "" if name == reference else shown(interval, 4)
        lines.append([name, f"{mean:.4f}±{deviation:.4f}", gain])
    table(["method", "EV at the higher block", f"{reference}: gain over it"], lines)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help=".jsonl with a field text")
    parser.add_argument(
        "--model", default="bae-lens/minilm-l6", help="name or folder of an encoder"
    )
    parser.add_argument("--pairs", nargs="+", default=["3-5", "1-4"], help="blocks, lower-higher")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--codes", type=int, default=128)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch_size", type=int, default=2048)
    parser.add_argument("--mlp_epochs", type=int, default=5, help="about as many tokens as steps")
    parser.add_argument("--n_initialization", type=int, default=32_768, help="tokens of k-means")
    parser.add_argument(
        "--skip", type=int, default=3200, help="texts that the model was trained on"
    )
    parser.add_argument("--n_train", type=int, default=3200, help="texts")
    parser.add_argument("--n_test", type=int, default=1200, help="texts")
    parser.add_argument("--cache", type=Path, help="file in which activations are kept")
    parser.add_argument(
        "--gradients", action="store_true", help="compare the quantizer's gradients"
    )
    parser.add_argument("--quick", action="store_true")
    add_write_argument(parser)
    args = parser.parse_args(argv)
    if args.data is None and args.cache is None:
        parser.error("--data or --cache: where are the texts, or their activations?")
    if args.quick:
        args.pairs, args.seeds, args.steps, args.mlp_epochs = args.pairs[:1], [0], 5, 1
        args.n_train, args.n_test, args.codes, args.n_initialization = 100, 30, 16, 4096
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    torch.set_num_threads(1)
    pairs = [tuple(int(block) for block in pair.split("-")) for pair in args.pairs]
    blocks = sorted({block for pair in pairs for block in pair})
    splits = prepare(args, blocks)
    with written("predictive_encoder", args):
        for lower, upper in pairs[:1] if args.gradients else pairs:
            acts = [splits[name]["acts"][b] for name in ("train", "test") for b in (lower, upper)]
            x, y, held_x, held_y = (act.clone() for act in acts)
            tokens = Tokens(x, y, held_x, held_y, splits["test"]["text"])
            print(f"\nBlock {lower} → {upper}, K = {args.codes}, {args.steps} steps of {args.batch_size}, "
                  f"{len(tokens.lower):,} tokens, {len(tokens.spread):,} held-out texts, "
                  f"{len(args.seeds)} seeds\n")  # fmt: skip
            measure = gradients if args.gradients else every_method
            found = [measure(tokens, args, seed) for seed in args.seeds]
            report(tokens, found, next(iter(GRADIENTS)) if args.gradients else OURS)


if __name__ == "__main__":
    main()
