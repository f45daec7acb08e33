"""Entropy as an instrument: how many bits a set of hidden states holds, at a stated fidelity."""

from bae_lens.entropy.estimate import STARTS, EntropyEstimate, estimate_entropy

__all__ = ["STARTS", "EntropyEstimate", "estimate_entropy"]
