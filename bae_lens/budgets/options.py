"""What a sweep is of: the field that is a config's budget, the values that are tried, and how long."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from sae_lens import BatchTopKTrainingSAEConfig

from bae_lens.checks.fields import (
    Rule,
    check_fields,
    positive,
    shown,
    whole,
)
from bae_lens.nn import check_budget

# Shares of d_in, in bits per token: 40 of 576 is what the benchmark reads best at, one bit per dimension reconstructs.
_SHARES = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)
# Latents on per token, up to half of them.
_KS = (4, 8, 16, 32, 64, 128)
# Budgets within such a factor are as good as one: what lies between them is the noise of a training.
NEAR = 1.5
# Fields that are a budget, the first that a config has.
FIELDS = ("target_entropy", "k")


@dataclass(frozen=True)
class SweepSettings:
    """Settings of ``sweep_budgets``.

    Args:
        budgets (Sequence[float] | None): Values that are tried, in bits per token or, where the field is ``k``, latents on per
            token, the largest at least 1.5 times the smallest. None: for bits 1/32, 1/16, 1/8, 1/4, 1/2 and 1 per input
            dimension, for k 4, 8, 16, 32, 64 and 128, as far as the latents allow.
        n_tokens (int): Tokens that the language model reads for training and for the figures, of which the last fifth
            is held out.
        minutes (float): How long all may take, from the moment that the model is loaded: so many steps are trained as
            fit, 50 at least and those of the config at most.
        n_steps (int | None): Steps of each training, so that they do not depend on the machine; None: by ``minutes``.
        n_judged (int): Latents of each that take an intruder test; 0: none do.
        n_judged_tokens (int): Tokens of text that their examples are from, and that no training reads. Fewer where the
            text ends before.
        seed (int): Of weights, shuffles and the latents that are tested.

    Raises:
        ValueError: if a value is outside its range, there are not two different budgets, or all are about the same.
    """

    budgets: Sequence[float] | None = None
    n_tokens: int = 50_000
    minutes: float = 5
    n_steps: int | None = None
    n_judged: int = 50
    n_judged_tokens: int = 12_000
    seed: int = 0

    def __post_init__(self) -> None:
        rules: Mapping[str, Rule] = {
            "n_tokens": whole(1),
            "minutes": positive(),
            "n_steps": whole(1, 10**9, or_none=True),
            "n_judged": whole(0),
            "n_judged_tokens": whole(1),
            "seed": whole(0, 2**32 - 1),
        }
        check_fields(self, rules)
        if self.budgets is not None:
            object.__setattr__(self, "budgets", checked_budgets(self.budgets))


def checked_budgets(budgets: Any) -> tuple[float, ...]:
    """In ascending order.

    Raises:
        ValueError: if they are not two different positive numbers at least, or are within a factor of 1.5, so that nothing
            could be told apart.
    """
    rule = positive()
    if isinstance(budgets, str) or not isinstance(budgets, Sequence):
        raise ValueError(f"budgets must be a list of positive numbers; got {shown(budgets)}.")
    try:
        found = sorted({float(rule.read(value)) for value in budgets})
    except ValueError:
        found = []
    if not found or len(found) < 2:
        raise ValueError(
            "budgets must be two different positive numbers at least, in bits per token (of k: latents on per token); got "
            f"{shown(list(budgets))}."
        )
    if found[-1] < (1 - 1e-9) * NEAR * found[0]:  # 0.15 is to be 1.5 times 0.1.
        raise ValueError(
            f"budgets must be apart, the largest {NEAR:g} times the smallest at least, or nothing could be told between them; "
            f"got {shown(list(budgets))}. Try {found[0]:g} and {2 * found[0]:g}."
        )
    return tuple(found)


def budget_field(cfg: Any) -> str:
    """The field of a training config that is its budget.

    Raises:
        ValueError: if it has none.
    """
    names = {field.name for field in fields(cfg)}
    for name in FIELDS:
        if name in names:
            return name
    raise ValueError(
        f"The architecture {cfg.architecture()!r} has no budget that could be swept: only {' and '.join(FIELDS)} are (bae, topk, "
        "batchtopk, matryoshka_batchtopk). Its sparsity is a penalty: train a few of its coefficients, and compare them "
        "with bae-lens eval. Or give another config, such as smollm2-read."
    )


def budgets_of(cfg: Any, field: str, given: Sequence[float] | None) -> tuple[float, ...]:
    """The values to try with a training config.

    Raises:
        ValueError: if a value is none for it: more bits than all latents can carry, a k above their number, or, but for
            BatchTopK, no whole one; or none is given and there is one latent only, which has no two values of k.
    """
    if field == "k":
        if given is None:
            return _default_ks(cfg.d_sae)
        # BatchTopK's is a mean.
        is_mean = isinstance(cfg, BatchTopKTrainingSAEConfig)
        wrong = [k for k in given if k > cfg.d_sae or not (is_mean or k == int(k))]
        if wrong:
            raise ValueError(
                f"budgets of k must be {'numbers' if is_mean else 'whole numbers'} of latents, d_sae = {cfg.d_sae} at "
                f"most; got {wrong[0]:g}."
            )
        return tuple(given)
    if given is None:
        # Of the latents where they are so few that no two shares of the dimensions fit.
        whole_of = cfg.d_in if _SHARES[1] * cfg.d_in <= cfg.d_sae else cfg.d_sae
        bits = (share * whole_of for share in _SHARES)
        return tuple(float(f"{some:.3g}") for some in bits if some <= cfg.d_sae)
    for bits in given:
        check_budget(bits, cfg.d_sae, None, cfg.n_levels)
    return tuple(given)


def _default_ks(d_sae: int) -> tuple[float, ...]:
    """Those of ``_KS`` up to half of the latents; the two largest powers of two that there are latents for where that is
    not two."""
    if d_sae < 2:
        raise ValueError(
            f"d_sae is {d_sae}, and of one latent there are no two values of k to compare. Raise d_sae."
        )
    found = [k for k in _KS if k <= d_sae // 2]
    if len(found) < 2:
        most = 2 ** (d_sae.bit_length() - 1)
        found = [most // 2, most]
    return tuple(float(k) for k in found)
