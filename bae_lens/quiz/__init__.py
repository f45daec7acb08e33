"""A quiz for people: which class did the model predict, from the view of a concept alone?

The data's way: what was recovered and its examples (``bae_lens.examples``) → ``questions`` (a page and the
key of its answers) → files that readers save → ``scores``.
"""

from typing import TYPE_CHECKING

from bae_lens.checks.lazy_names import lazy_names

if TYPE_CHECKING:
    from bae_lens.quiz.questions import QuizKey, write_quiz
    from bae_lens.quiz.scores import QuizAnswers, QuizResult, score_quiz
    from bae_lens.quiz.settings import QuizSettings

__all__ = [
    "QuizAnswers",
    "QuizKey",
    "QuizResult",
    "QuizSettings",
    "score_quiz",
    "write_quiz",
]

lazy_names(
    __name__,
    {
        "bae_lens.quiz.questions": ("QuizKey", "write_quiz"),
        "bae_lens.quiz.settings": ("QuizSettings",),
        "bae_lens.quiz.scores": ("QuizAnswers", "QuizResult", "score_quiz"),
    },
)
