"""Who answers questions about latents: a model behind an endpoint, embeddings without a network, or a judge of yours.

``judge`` is the one interface: questions in, answers out. An ``endpoint`` has its place and limits in
``endpoint_settings`` and ``budget``, is spoken to by ``chat`` (the protocol) over ``exchange`` (one request, in time),
keeps its answers in an ``answer_cache``, and what it repeats of the key is taken out by ``redaction``. ``embedding``
knows nothing but vectors of another model.
"""

from bae_lens.scoring.judges.budget import Limits
from bae_lens.scoring.judges.embedding import EmbeddingJudge, ModelEncoder
from bae_lens.scoring.judges.endpoint import DryRun, EndpointJudge, EndpointSettings
from bae_lens.scoring.judges.judge import (
    Judge,
    JudgeUnavailable,
    LimitReached,
    MarkedText,
    Question,
)

__all__ = [
    "DryRun",
    "EmbeddingJudge",
    "EndpointJudge",
    "EndpointSettings",
    "Judge",
    "JudgeUnavailable",
    "LimitReached",
    "Limits",
    "MarkedText",
    "ModelEncoder",
    "Question",
]
