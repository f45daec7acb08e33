"""Entropy as an instrument: how many bits a set of hidden states holds, at a stated fidelity."""

import warnings
from typing import Any

from bae_lens.entropy.estimate import STARTS, EntropyEstimate, estimate_entropy
from bae_lens.entropy.in_context import (
    Prompt,
    in_context_accuracy,
    in_context_entropy,
    k_shot_prompts,
)
from bae_lens.entropy.profile import entropy_profile
from bae_lens.entropy.result import EntropyProfile, ProfileRow
from bae_lens.stats import SeedInterval

__all__ = [
    "STARTS",
    "EntropyEstimate",
    "EntropyProfile",
    "ProfileRow",
    "Prompt",
    "SeedInterval",
    "entropy_profile",
    "estimate_entropy",
    "in_context_accuracy",
    "in_context_entropy",
    "k_shot_prompts",
]


def __getattr__(name: str) -> Any:
    if name != "Interval":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(
        "bae_lens.entropy.Interval is now bae_lens.stats.SeedInterval; the old name goes with the next "
        "release.",
        FutureWarning,
        stacklevel=2,
    )
    return SeedInterval
