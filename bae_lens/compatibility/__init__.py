"""Whether a language model keeps what this package asks of it, found out by trying."""

from bae_lens.compatibility.check import check_model, default_hook
from bae_lens.compatibility.result import Compatibility, Finding

__all__ = ["Compatibility", "Finding", "check_model", "default_hook"]
