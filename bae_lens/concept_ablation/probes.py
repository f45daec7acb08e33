"""Probes that predict a label from a vector, and folds to judge them by."""

from __future__ import annotations

import copy
import math
from typing import get_args

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, train_test_split
from torch import Tensor, nn

from bae_lens.concept_ablation.settings import ProbeKind

_INNER_SHARE = 0.2  # of the training data, to choose by
_STRENGTHS = tuple(10.0**k for k in range(-4, 1))  # sklearn's C, the strongest penalty first
# Below this share of its mean, a column's standard deviation is float32's rounding.
_CONSTANT = 1e-6

# The paper's MLP.
_HIDDEN, _DROPOUT = 64, 0.2
_LEARNING_RATE, _BATCH = 1e-3, 32
_MAX_EPOCHS, _PATIENCE, _MIN_DELTA = 100, 5, 1e-3


class Probe(nn.Module):
    """A classifier of vectors, float32, differentiable in what it reads.

    Args:
        mean: of the training vectors.
        std: of the training vectors; what they are divided by, so none of it is zero.
        net: from standardized vectors to logits.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Float[Tensor, " d"], std: Float[Tensor, " d"], net: nn.Module) -> None:
        super().__init__()
        self.register_buffer("mean", mean.float())
        self.register_buffer("std", std.float())
        self.net = net

    def forward(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch C"]:
        """Logits."""
        return self.net((x.float() - self.mean) / self.std)

    @torch.no_grad()
    def predict(self, x: Float[Tensor, "*batch d"]) -> Int[Tensor, "*batch"]:
        """The likeliest class."""
        return self(x).argmax(-1)


def fit_probe(
    x: Float[Tensor, "n d"],
    labels: Int[Tensor, " n"],
    n_classes: int,
    kind: ProbeKind = "logistic",
    seed: int = 0,
) -> Probe:
    """A probe that is fitted to these examples and chosen on a fifth of them.

    * ``"logistic"``: scikit-learn's logistic regression; of five strengths of its L2 penalty the
      one with the least loss on the fifth, fitted again to all examples.
    * ``"mlp"``: a hidden layer of 64 ReLUs with dropout 0.2; Adam on the other four fifths until
      the loss on the fifth has not fallen by 0.001 for five epochs, then the weights of the best
      epoch. (The release stops on the fold that it tests on, and its best weights are a reference
      to the current ones, so that it keeps the last. Here test data is never seen, and the weights
      are copied.) It is trained on the CPU, so that a device makes no difference.

    Either is deterministic in ``seed`` and leaves torch's random state alone.

    Args:
        x: one vector an example; any floating dtype.
        labels: 0 … ``n_classes`` − 1.
        n_classes: C.
        kind: one of the two.
        seed: of the inner split, the weights, dropout and the order of examples.

    Returns:
        The probe on the device of ``x``, in eval mode, its weights without gradients.

    Raises:
        ValueError: if ``kind`` is neither, shapes or labels do not fit, a value is NaN or infinite,
            or there are less than two examples of a class: one to fit and one to choose by.
    """
    _check(x, labels, n_classes, kind)
    vectors = x.detach().double().cpu()
    mean, std = vectors.mean(0), vectors.std(0, correction=0)
    # A column that says nothing here is not blown up where it says something.
    std = torch.where(std > _CONSTANT * mean.abs(), std, 1.0)
    z, y = (vectors - mean) / std, labels.long().cpu()
    n_held_out = max(math.ceil(_INNER_SHARE * len(y)), n_classes)
    split = train_test_split(
        np.arange(len(y)), test_size=n_held_out, stratify=y.numpy(), random_state=seed
    )
    fit_on, choose_on = (torch.from_numpy(part) for part in split)
    fit = _logistic if kind == "logistic" else _mlp
    net = fit(z, y, fit_on, choose_on, n_classes, seed)
    return Probe(mean, std, net).to(x.device).eval().requires_grad_(False)


def stratified_folds(labels: Int[Tensor, " n"], n_folds: int, seed: int = 0) -> Int[Tensor, " n"]:
    """Number of the fold that each example is in; each has the classes' shares as near as can be.

    Args:
        labels: classes.
        n_folds: how many folds.
        seed: of the shuffle.

    Raises:
        ValueError: if there are fewer than two folds, or fewer examples of a class than folds.
    """
    counts = labels.unique(return_counts=True)[1].tolist()
    if n_folds < 2 or min(counts, default=0) < n_folds:
        raise ValueError(
            f"There have to be two folds at least, and an example of each class for every fold; "
            f"got {n_folds} folds and classes of {', '.join(map(str, counts)) or 'no'} examples."
        )
    folds = torch.empty(len(labels), dtype=torch.long)
    splits = StratifiedKFold(n_folds, shuffle=True, random_state=seed).split(
        np.zeros(len(labels)), labels.cpu().numpy()
    )
    for i, (_, held_out) in enumerate(splits):
        folds[torch.from_numpy(held_out)] = i
    return folds.to(labels.device)


def _check(x: Tensor, labels: Tensor, n_classes: int, kind: str) -> None:
    if kind not in get_args(ProbeKind):
        raise ValueError(f"kind must be one of {', '.join(get_args(ProbeKind))}; got {kind!r}.")
    if x.ndim != 2 or labels.shape != x.shape[:1]:
        raise ValueError(
            "x has to be one vector an example and labels one class an example; got shapes "
            f"{tuple(x.shape)} and {tuple(labels.shape)}."
        )
    if not x.isfinite().all():
        n_bad = int((~x.isfinite()).any(1).sum())
        raise ValueError(f"{n_bad} of {len(x)} vectors have NaN or infinite values.")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < n_classes:
        raise ValueError(
            f"labels have to be 0 … {n_classes - 1}; got {int(labels.min())} … {int(labels.max())}."
        )
    counts = torch.bincount(labels.long(), minlength=n_classes).tolist()
    if n_classes < 2 or min(counts) < 2:
        raise ValueError(
            "A probe needs two classes at least and two examples of each, one to fit and one to "
            f"choose by; got {', '.join(map(str, counts)) or 'no'} examples of {n_classes} classes."
        )


def _logistic(
    z: Tensor, y: Tensor, fit_on: Tensor, choose_on: Tensor, n_classes: int, seed: int
) -> nn.Linear:
    del seed  # lbfgs draws nothing

    def fitted(strength: float, rows: Tensor | slice) -> nn.Linear:
        model = LogisticRegression(C=strength, max_iter=2000)
        model.fit(z[rows].numpy(), y[rows].numpy())
        weight, bias = torch.from_numpy(model.coef_), torch.from_numpy(model.intercept_)
        if n_classes == 2:  # sklearn has one logit, the difference of ours
            weight, bias = (torch.cat([-half, half]) for half in (weight / 2, bias / 2))
        return _linear(weight, bias)

    losses = {C: _loss(fitted(C, fit_on), z[choose_on], y[choose_on]) for C in _STRENGTHS}
    return fitted(min(losses, key=lambda C: losses[C]), slice(None))


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    # On "meta" first, since otherwise it draws weights from torch's global generator.
    linear = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    linear.weight, linear.bias = nn.Parameter(weight.float()), nn.Parameter(bias.float())
    return linear


def _mlp(
    z: Tensor, y: Tensor, fit_on: Tensor, choose_on: Tensor, n_classes: int, seed: int
) -> nn.Sequential:
    z = z.float()
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would seed every accelerator, too.
        torch.default_generator.manual_seed(seed)
        net = nn.Sequential(
            nn.Linear(z.shape[1], _HIDDEN),
            nn.ReLU(),
            nn.Dropout(_DROPOUT),
            nn.Linear(_HIDDEN, n_classes),
        )
        optimizer = torch.optim.Adam(net.parameters(), lr=_LEARNING_RATE)
        best, best_weights, n_waited = math.inf, copy.deepcopy(net.state_dict()), 0
        for _ in range(_MAX_EPOCHS):
            net.train()
            for rows in fit_on[torch.randperm(len(fit_on))].split(_BATCH):
                optimizer.zero_grad()
                F.cross_entropy(net(z[rows]), y[rows]).backward()
                optimizer.step()
            net.eval()
            loss = _loss(net, z[choose_on], y[choose_on])
            if loss < best - _MIN_DELTA:
                # state_dict() alone refers to the weights, which go on changing.
                best, best_weights, n_waited = loss, copy.deepcopy(net.state_dict()), 0
                continue
            n_waited += 1
            if n_waited == _PATIENCE:
                break
    net.load_state_dict(best_weights)
    return net


@torch.no_grad()
def _loss(net: nn.Module, z: Tensor, y: Tensor) -> float:
    return F.cross_entropy(net(z.float()), y).item()
