"""What a person, or a model, reads to say what a latent or code stands for.

The data's way: ``reading`` (a corpus → blocks of tokens) with ``coder`` (activations → what fires) →
``reservoir`` (examples), ``background``, ``token_counts`` and ``pair_counts``, filled by ``collect`` → ``evidence``.

Scores of it: ``subjects`` (texts in which a latent fires, tokens at which it is silent) → ``prompts``
(questions) → ``judges`` (``endpoint`` with ``answer_cache`` and ``budget``, ``embedding`` without a
network) → ``comsem``, ``intruder``, ``ranking``, with ``intervals``. An endpoint has its place and limits
in ``endpoint_settings``, is spoken to by ``chat`` (the protocol) over ``exchange`` (one request, in time),
and what it repeats of the key is taken out by ``redaction``.

What it tells of predictions: ``views`` (words and contexts of a concept) → ``plain_reader`` (a
classifier of words) → ``recoverability`` → ``recovery``.
"""

from bae_lens.interp.budget import Limits
from bae_lens.interp.collect import collect_evidence
from bae_lens.interp.comsem import comsem_test
from bae_lens.interp.comsem_result import ComSemResult, ComSemSettings, protocol_distance
from bae_lens.interp.embedding import EmbeddingJudge, ModelEncoder
from bae_lens.interp.endpoint import DryRun, EndpointJudge, EndpointSettings
from bae_lens.interp.evidence import (
    BackgroundToken,
    Count,
    Evidence,
    EvidenceSettings,
    Example,
    LatentEvidence,
    Neighbour,
)
from bae_lens.interp.intruder import IntruderResult, IntruderSettings, intruder_test
from bae_lens.interp.judges import Judge, JudgeUnavailable, LimitReached, MarkedText, Question
from bae_lens.interp.ranking import Ranking, RankingSettings, rank_dictionaries
from bae_lens.interp.recoverability import RecoveryTask
from bae_lens.interp.recovery import Recovery, RecoverySettings
from bae_lens.interp.views import View, view_of

__all__ = [
    "BackgroundToken",
    "ComSemResult",
    "ComSemSettings",
    "Count",
    "DryRun",
    "EmbeddingJudge",
    "EndpointJudge",
    "EndpointSettings",
    "Evidence",
    "EvidenceSettings",
    "Example",
    "IntruderResult",
    "IntruderSettings",
    "Judge",
    "JudgeUnavailable",
    "LatentEvidence",
    "LimitReached",
    "Limits",
    "MarkedText",
    "ModelEncoder",
    "Neighbour",
    "Question",
    "Ranking",
    "RankingSettings",
    "Recovery",
    "RecoverySettings",
    "RecoveryTask",
    "View",
    "collect_evidence",
    "comsem_test",
    "intruder_test",
    "protocol_distance",
    "rank_dictionaries",
    "view_of",
]
