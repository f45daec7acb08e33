"""Act on a model with the latents of a dictionary, and see what they do to the next token.

``steer`` adds latents to the activation or holds them at a value, ``ablate_latents`` takes them out,
``usual_strengths`` measures what they usually are where they fire, and ``logit_effects`` tells which tokens
a latent makes more and less likely through the residual stream alone. ``task_vector`` makes a vector of the latents that
demonstrations of a task change, and ``add_direction`` adds it, or its controls.
"""

from bae_lens.steering.contexts import ablate_latents, add_direction, steer
from bae_lens.steering.strengths import usual_strengths
from bae_lens.steering.task_vectors import TaskLatent, TaskVector, task_vector
from bae_lens.steering.unembedding import LogitEffects, TokenEffect, logit_effects

__all__ = [
    "LogitEffects",
    "TaskLatent",
    "TaskVector",
    "TokenEffect",
    "ablate_latents",
    "add_direction",
    "logit_effects",
    "steer",
    "task_vector",
    "usual_strengths",
]
