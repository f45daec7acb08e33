"""The methods of ``cross_layer.py``, and how each is fitted."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from cross_layer_data import (
    EVAL_TOKENS,
    Row,
    Split,
    Task,
    Trial,
    explained_variance,
    load,
    recovered_loss,
)
from sae_lens import SAE
from sae_lens.training.sae_trainer import SAETrainer
from sklearn.cluster import KMeans
from torch import Tensor

from bae_lens import (
    TrainingCLVQVAE,
    TrainingCLVQVAEConfig,
    TrainingTopKTranscoder,
    TrainingTopKTranscoderConfig,
)
from bae_lens.activations.replay import ReplayedActivations
from bae_lens.evals import CodeStatistics, MagnitudeQuantizer
from bae_lens.evals.magnitudes import magnitude_entropy
from bae_lens.nn import nearest_codes
from bae_lens.training.fit import trainer_config

TOKEN, TOKEN_OFF = "CLVQ-VAE, token", "CLVQ-VAE, token, no sampling"
PREDICTIVE, LINEAR_KMEANS = "CLVQ-VAE, predictive", "linear map + k-means"
# What ``TrainingCLVQVAEConfig.predictive`` says; nothing was chosen here.
LR_PREDICTIVE = 2e-3
TRANSFORMER, TRANSFORMER_OFF = "CLVQ-VAE, transformer", "CLVQ-VAE, transf., no sampling"
# Resolutions that are tried for the magnitudes of a TopK code: it is given the cheapest that costs
# no more than the tolerance in explained variance.
RESOLUTIONS, TOLERANCE = (0, 1, 2, 3, 4, 6, 8), 0.01
N_QUANTISER = 16_384  # training tokens that a quantizer is fitted on
EVAL_SEQUENCES = 64
# Of the linear map, in units of the mean variance of the lower activation.
RIDGE = 1e-4
# Share of the steps over which the learning rate falls, linearly, to a tenth.
DECAY = 0.6
# Of k-means.
MAX_ITER = 30
# σ of it is 0: an encoder that passes its input on.
_NO_ENCODER = -1e4


# Closed forms


def group_means(keys: Tensor, values: Tensor, n: int) -> Tensor:
    """Mean of the values of each key ``[n, d]``; the mean of all where a key has none."""
    sums = torch.zeros(n, values.shape[1], dtype=torch.float64)
    for some_keys, some_values in zip(
        keys.split(EVAL_TOKENS), values.split(EVAL_TOKENS), strict=True
    ):
        sums.index_add_(0, some_keys, some_values.double())
    counts = keys.bincount(minlength=n)[:, None]
    return torch.where(counts > 0, sums / counts.clamp(min=1), sums.sum(0) / len(keys)).float()


def means_row(
    trial: Trial, method: str, codes: Sequence[Tensor], n_codes: int, start: float
) -> Row:
    """Codes of training and held-out tokens, decoded as the mean upper activation of each code."""
    table = group_means(codes[0], trial.train.upper, n_codes)
    mean = trial.train.upper.mean(0)

    def decode(own: Tensor | None) -> Tensor:
        return mean.expand(len(codes[1]), -1) if own is None else F.embedding(own, table)

    return trial.score(method, time.process_time() - start, decode, codes[1], n_codes)


def fit_closed_forms(trial: Trial) -> list[Row]:
    """The mean by token identity and the linear map, in which nothing is drawn."""
    start = time.process_time()
    ids = trial.train.ids, trial.test.ids
    row = means_row(trial, "token identity", ids, int(torch.cat(ids).max()) + 1, start)
    seen = ids[0].unique()
    row.n_codes, row.n_in_use = len(seen), int(torch.isin(seen, ids[1]).sum())
    return [row, linear_row(trial)]


def linear_map(trial: Trial, ridge: float) -> Callable[[Tensor], Tensor]:
    """Least squares of the upper activation from the lower one.

    Args:
        trial: where to fit.
        ridge: in units of the mean variance of the lower activation.
    """
    x_mean, y_mean = trial.train.lower.mean(0), trial.train.upper.mean(0)
    xx, xy = (
        torch.zeros(trial.task.d_in, d, dtype=torch.float64) for d in (len(x_mean), len(y_mean))
    )
    for rows in trial.train.packed.split(EVAL_TOKENS):
        x = rows[:, : len(x_mean)] - x_mean
        xx += x.T @ x
        xy += x.T @ (rows[:, len(x_mean) : -1] - y_mean)
    xx.diagonal().add_(ridge * xx.diagonal().mean())
    weight = torch.linalg.solve(xx, xy).float()
    return lambda lower: (lower - x_mean) @ weight + y_mean


def linear_row(trial: Trial, ridge: float = RIDGE) -> Row:
    """The linear map of the continuous activation: what a decoder could say that leaks all of it."""
    start = time.process_time()
    predict = linear_map(trial, ridge)
    seconds = time.process_time() - start
    reconstruction = predict(trial.test.lower)
    row = Row(
        "full linear map",
        trial.seed,
        explained_variance(reconstruction, trial.test.upper),
        seconds,
    )
    if trial.loss is not None:
        row.ce_zero, row.ce_mean = trial.loss.scores(reconstruction)
    return row


# Trainings


def clvq_config(task: Task, seed: int, **options: Any) -> TrainingCLVQVAEConfig:
    is_token = options["decoder"] == "token"
    shape: dict[str, Any] = (
        {"decoder_layers": 1, "decoder_mlp_width": 2 * task.d_in}
        if is_token
        else {"decoder_layers": 2, "decoder_width": task.decoder_width}
    )
    return TrainingCLVQVAEConfig(
        d_in=task.d_in,
        d_sae=options.pop("d_sae", task.n_codes),
        sequence_length=None if is_token else task.length,
        codebook_init_seed=seed,
        **(shape | options),
    )


def train(
    trial: Trial,
    sae: TrainingCLVQVAE | TrainingTopKTranscoder,
    lr: float,
    tokens: Tensor | None = None,
) -> None:
    """By the stock trainer: whole sequences where the autoencoder asks for them, else single tokens."""
    task = trial.task
    length = getattr(sae.cfg, "sequence_length", None) or 1
    rows = trial.train.rows if length > 1 else trial.train.packed if tokens is None else tokens
    batches = ReplayedActivations(rows, task.batch_size, trial.seed, sequence_length=length)
    config = trainer_config(task.steps, task.batch_size, lr)
    config.lr_decay_steps = int(DECAY * task.steps)
    SAETrainer(config, sae, batches).fit()


def initialization_rows(trial: Trial) -> Tensor:
    generator = torch.Generator().manual_seed(trial.seed)
    order = torch.randperm(len(trial.train.packed), generator=generator)
    return trial.train.packed[order[: trial.task.n_initialization]]


def saved(sae: Any) -> Any:
    """Saved and loaded again: the autoencoder that a user would get."""
    with tempfile.TemporaryDirectory() as folder:
        sae.save_inference_model(folder)
        return SAE.load_from_disk(folder).eval()


@torch.no_grad()
def codes_of(sae: Any, split: Split) -> Tensor:
    """Of the valid tokens."""
    return torch.cat([sae.code_indices(x) for x in split.lower.split(EVAL_TOKENS)])


def code_decoder(sae: Any, split: Split) -> Callable[[Tensor | None], Tensor]:
    """A CLVQ-VAE's decoder, in context; where it has a memory, each token's own, whatever its code."""
    valid = split.in_sequences(torch.ones_like(split.ids, dtype=torch.bool))
    lower = split.in_sequences(split.lower) if sae.cfg.decoder_memory == "encoder" else None

    def decode(codes: Tensor | None) -> Tensor:
        indices = split.in_sequences(torch.zeros_like(split.ids) if codes is None else codes)
        parts = []
        for start in range(0, len(valid), EVAL_SEQUENCES):
            part = slice(start, start + EVAL_SEQUENCES)
            vectors = F.embedding(indices[part], sae.codebook)
            if codes is None:
                vectors = torch.zeros_like(vectors)
            memory = None if lower is None else sae.encoder(sae.process_sae_in(lower[part]))
            parts.append(sae._decode_vectors(vectors, valid[part], memory)[valid[part]])
        return torch.cat(parts)

    return decode


def clvq_row(trial: Trial, method: str, sae: TrainingCLVQVAE, start: float) -> Row:
    alpha: Tensor | None = getattr(sae.encoder, "alpha", None)
    details = {} if alpha is None else {"alpha": alpha.item()}
    if sae.cfg.top_k > 1:
        with torch.no_grad():
            z = sae.encoder(sae.process_sae_in(trial.test.lower[:EVAL_TOKENS]))
            drawn = sae.quantizer.quantize(z, None, sae.cfg.top_k, sae.cfg.temperature)
        details["drawn_off_nearest"] = (drawn.indices != drawn.nearest).float().mean().item()
    seconds = time.process_time() - start
    inference = saved(sae)
    codes, decode = codes_of(inference, trial.test), code_decoder(inference, trial.test)
    return trial.score(method, seconds, decode, codes, trial.task.n_codes, details=details)


def fit_clvq(trial: Trial, method: str, **options: Any) -> list[Row]:
    task, start = trial.task, time.process_time()
    sae = TrainingCLVQVAE(clvq_config(task, trial.seed, **options))
    sae.calibrate(initialization_rows(trial), task.batch_size)
    train(trial, sae, task.lr_token if options["decoder"] == "token" else task.lr_transformer)
    return [clvq_row(trial, method, sae, start)]


def fit_predictive(trial: Trial) -> list[Row]:
    task, start = trial.task, time.process_time()
    sae = TrainingCLVQVAE(
        TrainingCLVQVAEConfig.predictive(
            task.d_in, n_codes=task.n_codes, codebook_init_seed=trial.seed
        )
    )
    sae.calibrate(initialization_rows(trial), task.batch_size)
    train(trial, sae, LR_PREDICTIVE)
    return [clvq_row(trial, PREDICTIVE, sae, start)]


def freeze_codes(sae: TrainingCLVQVAE, encoder: dict[str, Tensor], codebook: Tensor) -> None:
    """From here on training changes the decoder alone."""
    sae.encoder.load_state_dict(encoder)
    sae.encoder.requires_grad_(False)
    sae.quantizer.set_codebook(codebook, torch.ones(len(codebook)), torch.ones(()))
    sae.quantizer.update = lambda *_, **__: None
    sae.is_calibrated = True


def fit_frozen(
    trial: Trial, method: str, start: float, source: TrainingCLVQVAE | None, codebook: Tensor
) -> Row:
    """A transformer decoder for codes that are there: an autoencoder's, or of the activations."""
    task = trial.task
    cfg = clvq_config(task, trial.seed, decoder="transformer", top_k=1, commitment_coefficient=0.0)
    sae = TrainingCLVQVAE(cfg)
    sae.fit_units(initialization_rows(trial))
    if source is None:
        encoder = sae.encoder.state_dict() | {"a": torch.tensor(_NO_ENCODER)}
        codebook = (codebook - sae.input_mean) * sae.input_scale
    else:
        encoder = source.encoder.state_dict()
        sae.input_mean.copy_(source.input_mean)
        sae.input_scale.copy_(source.input_scale)
    freeze_codes(sae, encoder, codebook)
    train(trial, sae, task.lr_transformer)
    return clvq_row(trial, method, sae, start)


def fit_kmeans(trial: Trial) -> list[Row]:
    """k-means on all training tokens; its codes with their means and with a fitted decoder."""
    start = time.process_time()
    kmeans = KMeans(
        trial.task.n_codes,
        n_init=1,  # pyright: ignore[reportArgumentType]  (a number or "auto")
        max_iter=MAX_ITER,
        random_state=trial.seed,
        copy_x=False,  # it is given a copy
    )
    kmeans.fit(trial.train.lower.clone(memory_format=torch.contiguous_format).numpy())
    codebook = torch.from_numpy(kmeans.cluster_centers_)
    codes = [
        torch.cat([nearest_codes(x, codebook) for x in split.lower.split(EVAL_TOKENS)])
        for split in (trial.train, trial.test)
    ]
    seconds = time.process_time() - start
    means = means_row(trial, "k-means, cluster means", codes, trial.task.n_codes, start)
    means.details["iterations"] = kmeans.n_iter_
    start = time.process_time() - seconds
    return [means, fit_frozen(trial, "k-means, transformer decoder", start, None, codebook)]


def fit_linear_kmeans(trial: Trial) -> list[Row]:
    """k-means of what the linear map predicts, on all training tokens: the predictive encoder's control."""
    start = time.process_time()
    predict = linear_map(trial, RIDGE)
    predicted = [
        torch.cat([predict(x) for x in split.lower.split(EVAL_TOKENS)])
        for split in (trial.train, trial.test)
    ]
    kmeans = KMeans(
        trial.task.n_codes,
        n_init=1,  # pyright: ignore[reportArgumentType]  (a number or "auto")
        max_iter=MAX_ITER,
        random_state=trial.seed,
    ).fit(predicted[0].numpy())
    codebook = torch.from_numpy(kmeans.cluster_centers_)
    codes = [
        torch.cat([nearest_codes(x, codebook) for x in own.split(EVAL_TOKENS)]) for own in predicted
    ]
    return [means_row(trial, LINEAR_KMEANS, codes, trial.task.n_codes, start)]


def fit_vqvae(trial: Trial) -> list[Row]:
    """CLVQ-VAE with the lower hook twice; then its codes, frozen, for the upper one."""
    task, start = trial.task, time.process_time()
    sae = TrainingCLVQVAE(clvq_config(task, trial.seed, decoder="token"))
    lower = trial.train.lower.contiguous()
    sae.calibrate(initialization_rows(trial)[:, : task.d_in], task.batch_size)
    train(trial, sae, task.lr_token, lower)
    sae.eval()
    codes = [codes_of(sae, split) for split in (trial.train, trial.test)]
    seconds = time.process_time() - start
    means = means_row(trial, "VQ-VAE, cluster means", codes, task.n_codes, start)
    start = time.process_time() - seconds
    codebook = sae.codebook.clone()
    return [means, fit_frozen(trial, "VQ-VAE, transformer decoder", start, sae, codebook)]


def fit_topk(trial: Trial, k: int) -> list[Row]:
    task, start = trial.task, time.process_time()
    cfg = TrainingTopKTranscoderConfig(d_in=task.d_in, d_sae=task.d_sae, k=k)
    training = TrainingTopKTranscoder(cfg)
    training.calibrate(initialization_rows(trial))
    train(trial, training, task.lr_topk)
    seconds = time.process_time() - start
    sae = saved(training)

    # To it a token's code is a function of the token, so that activations can be shuffled for codes.
    def decode(lower: Tensor | None) -> Tensor:
        if lower is None:
            nothing = sae.decode(torch.zeros(1, task.d_sae))
            return nothing.expand(len(trial.test.upper), -1)
        return torch.cat([sae.decode(sae.encode(x)) for x in lower.split(EVAL_TOKENS)])

    figures = topk_code(sae, trial, k)
    row = trial.score(f"TopK transcoder, k = {k}", seconds, decode, trial.test.lower)
    vars(row).update(figures)
    return [row]


@torch.no_grad()
def topk_code(sae: Any, trial: Trial, k: int) -> dict[str, Any]:
    """Bits of support and magnitudes per held-out token, at the cheapest resolution that will do."""
    fitted_on = sae.encode(initialization_rows(trial)[:N_QUANTISER, : trial.task.d_in])
    quantizers = [MagnitudeQuantizer.fit(fitted_on, sae.W_dec, bits) for bits in RESOLUTIONS]
    cells = [torch.zeros_like(q.restored, dtype=torch.int64) for q in quantizers]
    statistics = CodeStatistics(sae.cfg.d_sae, pair_counts=True)
    plain: list[Tensor] = []
    quantized: list[list[Tensor]] = [[] for _ in quantizers]
    target = trial.test.upper[:N_QUANTISER]
    n = 0
    for x in trial.test.lower.split(EVAL_TOKENS):
        acts = sae.encode(x)
        statistics.update(acts)
        for quantizer, cell in zip(quantizers, cells, strict=True):
            cell += quantizer.count(acts)
        if n < len(target):
            plain.append(sae.decode(acts))
            for quantizer, parts in zip(quantizers, quantized, strict=True):
                parts.append(sae.decode(quantizer.quantize(acts)))
        n += len(x)
    summary = statistics.compute()
    # A code of one latent has as many values as there are latents, which can be counted.
    support = summary.plug_in_entropy if k == 1 else summary.support_entropy
    assert support is not None
    enough = explained_variance(torch.cat(plain)[: len(target)], target) - TOLERANCE
    evs = [explained_variance(torch.cat(parts)[: len(target)], target) for parts in quantized]
    best = next((i for i, ev in enumerate(evs) if ev >= enough), len(evs) - 1)
    magnitudes = magnitude_entropy(cells[best], summary.n_tokens)
    return {
        "bits": support + magnitudes,
        "n_in_use": round((1 - summary.dead_share) * sae.cfg.d_sae),
        "n_codes": sae.cfg.d_sae,
        "details": {
            "support_bits": support,
            "magnitude_bits": magnitudes,
            "resolution": RESOLUTIONS[best],
            "ev_lost_to_resolution": enough + TOLERANCE - evs[best],
            "l0": summary.l0,
        },
    }


# Groups of methods: what one process fits at a time


def groups(task: Task) -> dict[str, Callable[[Trial], list[Row]]]:
    """By name, in the order of the table; the first has nothing random in it."""

    def clvq(method: str, **options: Any) -> Callable[[Trial], list[Row]]:
        return lambda trial: fit_clvq(trial, method, **options)

    def topk(k: int) -> Callable[[Trial], list[Row]]:
        return lambda trial: fit_topk(trial, k)

    return {
        "closed forms": fit_closed_forms,
        "k-means": fit_kmeans,
        "vq-vae": fit_vqvae,
        "linear k-means": fit_linear_kmeans,
        "predictive": fit_predictive,
        "token": clvq(TOKEN, decoder="token"),
        "token, off": clvq(TOKEN_OFF, decoder="token", top_k=1),
        "transformer": clvq(TRANSFORMER, decoder="transformer"),
        "transformer, off": clvq(TRANSFORMER_OFF, decoder="transformer", top_k=1),
        "released": clvq(
            "decoder sees z (release's leak)", decoder="transformer", decoder_memory="encoder"
        ),
        **{f"topk {k}": topk(k) for k in task.ks},
    }


def run_group(
    task: Task, group: str, seed: int, folder: Path
) -> tuple[list[Row], dict[str, float]]:
    """Fit and score; what a worker process does. Also the cross-entropies of the model."""
    torch.set_num_threads(1)
    splits = load(folder / task.filename, task.d_in)
    loss = recovered_loss(task, folder)
    torch.manual_seed(seed)
    trial = Trial(task, seed, splits["train"], splits["test"], loss)
    return groups(task)[group](trial), {} if loss is None else loss.baselines
