"""A dictionary within a running model, special tokens passing by it.

``attached`` puts what it decodes in the place of the activation; ``edited`` keeps the activation and changes
it by a function of what the dictionary reads, as steering does.
"""

from bae_lens.attach.edit import edited
from bae_lens.attach.wrapper import attached

__all__ = ["attached", "edited"]
