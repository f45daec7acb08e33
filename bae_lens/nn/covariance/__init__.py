"""The off-diagonal covariance penalty, and the ways in which it is computed."""

from bae_lens.nn.covariance.penalty import off_diagonal_covariance
from bae_lens.nn.covariance.ranks import covariance_on_ranks

__all__ = ["covariance_on_ranks", "off_diagonal_covariance"]
