"""Entropy as an instrument: how many bits a set of hidden states holds, at a stated fidelity."""

from bae_lens.entropy.estimate import STARTS, EntropyEstimate, estimate_entropy
from bae_lens.entropy.in_context import (
    Prompt,
    in_context_accuracy,
    in_context_entropy,
    k_shot_prompts,
)
from bae_lens.entropy.profile import entropy_profile
from bae_lens.entropy.result import EntropyProfile, Interval, ProfileRow

__all__ = [
    "STARTS",
    "EntropyEstimate",
    "EntropyProfile",
    "Interval",
    "ProfileRow",
    "Prompt",
    "entropy_profile",
    "estimate_entropy",
    "in_context_accuracy",
    "in_context_entropy",
    "k_shot_prompts",
]
