"""The entropy of one cell of a profile (one hook, one position or condition), over seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from sae_lens.training import activation_scaler, sae_trainer
from torch import Tensor
from tqdm.auto import tqdm

from bae_lens.architectures.bae import TrainingBAEConfig
from bae_lens.checks.fields import Device, ListOf, Number, check_fields, positive, shown, whole
from bae_lens.entropy.estimate import estimate_entropy
from bae_lens.entropy.pruning import check_prunable
from bae_lens.entropy.result import GAUSSIAN, ProfileRow


@dataclass(frozen=True, eq=False)
class Cell:
    """Hidden states that one entropy is taken of.

    Attributes:
        hook, label, at, control: see ``ProfileRow``.
        states: ``[n_texts, per_text, d_in]``. Texts are split as a whole, so that no text is on both
            sides of the split.
    """

    hook: str
    label: str
    at: float
    control: str | None
    states: Float[Tensor, "n_texts per_text d_in"]


@dataclass(frozen=True)
class Settings:
    """How each cell is measured; for the fields see ``entropy_profile`` and ``estimate_entropy``.

    Raises:
        ValueError: if a value is of another type or outside its range, there are no seeds or the
            same one twice, or ``cfg`` has several levels a latent or feedback.
    """

    max_unexplained: float
    held_out_share: float
    seeds: Sequence[int]
    cfg: TrainingBAEConfig | None
    starts: Sequence[float]
    steps: int
    batch_size: int
    lr: float
    device: str

    def __post_init__(self) -> None:
        check_fields(
            self,
            {
                "max_unexplained": Number(above=0, below=1),
                "held_out_share": Number(above=0, below=1),
                "seeds": ListOf(whole(0), distinct=True),
                "starts": ListOf(Number(above=0, below=1)),
                "steps": whole(1),
                "batch_size": whole(1),
                "lr": positive(),
                "device": Device(),
            },
        )
        if not isinstance(self.cfg, (TrainingBAEConfig, type(None))):
            raise ValueError(f"cfg must be a TrainingBAEConfig or None; got {shown(self.cfg)}.")
        if self.cfg is not None:
            check_prunable(self.cfg)

    def config_for(self, d_in: int) -> TrainingBAEConfig:
        """What is trained on vectors of this width.

        Raises:
            ValueError: if ``cfg`` is for another width.
        """
        if self.cfg is None:
            return TrainingBAEConfig(
                d_in=d_in,
                d_sae=2 * d_in,
                max_density=None,
                target_entropy=None,
                target_unexplained_variance=self.max_unexplained,
            )
        if self.cfg.d_in != d_in:
            raise ValueError(
                f"cfg.d_in is {self.cfg.d_in}, but the hidden states have width {d_in}. Set "
                f"cfg.d_in to {d_in}, or profile hooks of different widths one at a time."
            )
        return self.cfg

    def n_held_out(self, n_texts: int) -> int:
        """Texts that are held out of so many."""
        return min(max(1, round(self.held_out_share * n_texts)), n_texts - 1)

    def check_size(self, n_texts: int, per_text: int, d_in: int) -> None:
        """Refuse what cannot be measured, before the language model reads any text.

        Raises:
            ValueError: if the training vectors of a cell are fewer than a batch or than two a bit,
                or ``cfg`` is for another width.
        """
        n_train = (n_texts - self.n_held_out(n_texts)) * per_text
        d_sae = self.config_for(d_in).d_sae
        for needed, what in ((self.batch_size, "batch_size"), (2 * d_sae, "2 × cfg.d_sae")):
            if n_train < needed:
                raise ValueError(
                    f"A cell has {n_train} training vectors ({n_texts} texts, {per_text} a text, "
                    f"{self.held_out_share:g} of them held out), fewer than {what} = {needed}. Give "
                    "more texts or wider ranges of positions, or lower that."
                )


def measure(
    cells: Iterable[Cell], settings: Settings, gaussian_control: bool, verbose: bool = False
) -> Iterator[ProfileRow]:
    """Rows of a profile: each cell, then its Gaussian control, at each seed."""
    with tqdm(desc="Estimating", unit="fit", disable=not verbose) as bar, _no_bars_of_saelens():
        for cell in cells:
            for seed in settings.seeds:
                train, held_out = _split(cell.states, settings, seed)
                yield _row(cell, train, held_out, settings, seed)
                bar.update()
                if gaussian_control:
                    stand_ins = gaussian_like(train, len(train) + len(held_out), seed)
                    control = replace(cell, control=GAUSSIAN)
                    n = len(train)
                    yield _row(control, stand_ins[:n], stand_ins[n:], settings, seed)
                    bar.update()


def gaussian_like(x: Float[Tensor, "n d_in"], n: int, seed: int) -> Float[Tensor, "m d_in"]:
    """``n`` vectors from the Gaussian with the mean and covariance of these."""
    mean = x.double().mean(0)
    # Of a covariance that is singular, as it is with fewer vectors than dimensions, there is no
    # Cholesky factor.
    values, axes = torch.linalg.eigh(torch.cov(x.double().T).reshape(x.shape[1], -1))
    noise = torch.randn(
        n, x.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    return (mean + noise * values.clamp(min=0).sqrt() @ axes.T).to(x.dtype)


def variance_and_rank(x: Float[Tensor, "n d_in"]) -> tuple[float, float]:
    """Trace of the covariance, and participation ratio (Σλ)²/Σλ² of its eigenvalues λ."""
    covariance = torch.cov(x.double().T).reshape(x.shape[1], -1)
    trace, squares = covariance.trace().item(), covariance.square().sum().item()
    return trace, trace**2 / squares if squares > 0 else math.nan


def gaussian_rate(x: Float[Tensor, "n d_in"], unexplained: float) -> float:
    """Bits a vector that suffice for any source with this covariance, in closed form.

    It is the rate–distortion function of the Gaussian with the covariance of ``x`` (reverse
    water-filling: each principal direction keeps a variance of at most θ, and takes ½·log₂(λ/θ) bits
    if it has more). No source with that covariance needs more, long blocks of vectors allowed. The
    covariance is that of a sample: with few vectors for the dimensions its small eigenvalues are too
    small, and the rate with them.

    Args:
        x: vectors.
        unexplained: share of the variance that is left; from 1 on there is nothing to describe.
    """
    values = torch.linalg.eigvalsh(torch.cov(x.double().T).reshape(x.shape[1], -1)).clamp(min=0)
    if unexplained >= 1 or values.sum() == 0:
        return 0.0
    if unexplained <= 0:
        return math.inf
    # With the largest k directions above θ, the rest and k times θ are what is left.
    values = values.flip(0)
    rest = values.sum() - values.cumsum(0)
    k = torch.arange(1, len(values) + 1, dtype=values.dtype, device=values.device)
    levels = (unexplained * values.sum() - rest) / k
    level = levels[(levels > 0) & (levels <= values)][-1]
    return 0.5 * torch.log2((values / level).clamp(min=1)).sum().item()


@contextmanager
def _no_bars_of_saelens() -> Iterator[None]:
    """Do without SAELens' own progress bars, two for each of a hundred trainings."""
    modules: tuple[Any, ...] = (sae_trainer, activation_scaler)
    bars = [module.tqdm for module in modules]
    try:
        for module in modules:
            module.tqdm = partial(tqdm, disable=True)
        yield
    finally:
        for module, bar in zip(modules, bars, strict=True):
            module.tqdm = bar


def _split(states: Tensor, settings: Settings, seed: int) -> tuple[Tensor, Tensor]:
    """Training and held-out vectors; the texts of each are the same in every cell."""
    order = torch.randperm(len(states), generator=torch.Generator().manual_seed(seed))
    n_held_out = settings.n_held_out(len(states))
    return states[order[n_held_out:]].flatten(0, 1), states[order[:n_held_out]].flatten(0, 1)


def _row(cell: Cell, train: Tensor, held_out: Tensor, settings: Settings, seed: int) -> ProfileRow:
    for vectors in (train, held_out):
        if bool((vectors == vectors[0]).all()):
            raise ValueError(
                f"The hidden states of {cell.hook!r} at {cell.label} are all the same, so there is "
                "no variance to explain. Leave that out."
            )
    estimate = estimate_entropy(
        train,
        held_out,
        settings.max_unexplained,
        settings.config_for(train.shape[1]),
        starts=settings.starts,
        steps=settings.steps,
        batch_size=settings.batch_size,
        lr=settings.lr,
        seed=seed,
        device=settings.device,
    )
    variance, effective_rank = variance_and_rank(train)
    numbers: dict[str, Any] = estimate.to_dict()
    rate = gaussian_rate(train, estimate.unexplained_variance)
    return ProfileRow(
        *(cell.hook, cell.label, cell.at, cell.control, seed),
        variance=variance,
        effective_rank=effective_rank,
        gaussian_rate=rate,
        estimate=numbers,
    )
