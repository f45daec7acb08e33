"""Scores of what latents mean: can a judge tell where a latent fires from what it was shown?

The data's way: ``tested_latents`` (texts in which a latent fires, tokens at which it does not) → ``prompts`` (questions) →
``judges`` (answers) → ``comsem``, ``intruder``, ``ranking``.

What a dictionary tells of a model's predictions: ``words_and_contexts`` (words and contexts of a concept) →
``bag_of_words`` (a classifier of words) → ``recoverability``; ``codes_of_words`` (of all words, salient or not) →
``nmi``.

How well a few latents tell the class of a text: ``sparse_probing``.
"""

from typing import TYPE_CHECKING

from bae_lens.checks.lazy_names import lazy_names

if TYPE_CHECKING:
    from bae_lens.scoring.codes_of_words import WordCodes, word_codes
    from bae_lens.scoring.comsem import comsem_test
    from bae_lens.scoring.comsem_result import ComSemResult, ComSemSettings, protocol_distance
    from bae_lens.scoring.intruder import intruder_test
    from bae_lens.scoring.intruder_result import IntruderResult, IntruderSettings
    from bae_lens.scoring.judges import (
        DryRun,
        EmbeddingJudge,
        EndpointJudge,
        EndpointSettings,
        Judge,
        JudgeUnavailable,
        LimitReached,
        Limits,
        MarkedText,
        ModelEncoder,
        Question,
    )
    from bae_lens.scoring.nmi import (
        PredictionNMI,
        prediction_nmi,
        prediction_nmi_difference,
    )
    from bae_lens.scoring.probing import probe_latents, sparse_probing
    from bae_lens.scoring.probing_result import SparseProbingResult
    from bae_lens.scoring.probing_settings import SparseProbingSettings
    from bae_lens.scoring.probing_task import SparseProbingTask
    from bae_lens.scoring.ranking import Ranking, RankingSettings, rank_dictionaries
    from bae_lens.scoring.recoverability import RecoverabilityTask
    from bae_lens.scoring.recoverability_result import Recoverability, RecoverabilitySettings
    from bae_lens.scoring.words_and_contexts import WordsAndContexts, words_and_contexts_of

__all__ = [
    "ComSemResult",
    "ComSemSettings",
    "DryRun",
    "EmbeddingJudge",
    "EndpointJudge",
    "EndpointSettings",
    "IntruderResult",
    "IntruderSettings",
    "Judge",
    "JudgeUnavailable",
    "LimitReached",
    "Limits",
    "MarkedText",
    "ModelEncoder",
    "PredictionNMI",
    "Question",
    "Ranking",
    "RankingSettings",
    "Recoverability",
    "RecoverabilitySettings",
    "RecoverabilityTask",
    "SparseProbingResult",
    "SparseProbingSettings",
    "SparseProbingTask",
    "WordCodes",
    "WordsAndContexts",
    "comsem_test",
    "intruder_test",
    "prediction_nmi",
    "prediction_nmi_difference",
    "probe_latents",
    "protocol_distance",
    "rank_dictionaries",
    "sparse_probing",
    "word_codes",
    "words_and_contexts_of",
]

lazy_names(
    __name__,
    {
        "bae_lens.scoring.codes_of_words": ("WordCodes", "word_codes"),
        "bae_lens.scoring.comsem": ("comsem_test",),
        "bae_lens.scoring.comsem_result": ("ComSemResult", "ComSemSettings", "protocol_distance"),
        "bae_lens.scoring.intruder": ("intruder_test",),
        "bae_lens.scoring.intruder_result": ("IntruderResult", "IntruderSettings"),
        "bae_lens.scoring.judges": (
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
        ),
        "bae_lens.scoring.nmi": ("PredictionNMI", "prediction_nmi", "prediction_nmi_difference"),
        "bae_lens.scoring.ranking": ("Ranking", "RankingSettings", "rank_dictionaries"),
        "bae_lens.scoring.recoverability": ("RecoverabilityTask",),
        "bae_lens.scoring.recoverability_result": ("Recoverability", "RecoverabilitySettings"),
        "bae_lens.scoring.probing": ("probe_latents", "sparse_probing"),
        "bae_lens.scoring.probing_result": ("SparseProbingResult",),
        "bae_lens.scoring.probing_settings": ("SparseProbingSettings",),
        "bae_lens.scoring.probing_task": ("SparseProbingTask",),
        "bae_lens.scoring.words_and_contexts": ("WordsAndContexts", "words_and_contexts_of"),
    },
)
