"""The off-diagonal covariance penalty, and the ways in which it is computed."""

from bae_lens.nn.covariance.penalty import off_diagonal_covariance

__all__ = ["off_diagonal_covariance"]
