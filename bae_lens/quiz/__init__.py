"""A quiz for people: which class did the model predict, from the view of a concept alone?

The data's way: what was recovered and its examples (``bae_lens.examples``) → ``questions`` (a page and the
key of its answers) → files that readers save → ``scores``.
"""

from bae_lens.quiz.questions import QuizKey, QuizSettings, write_quiz
from bae_lens.quiz.scores import QuizAnswers, QuizResult, score_quiz

__all__ = [
    "QuizAnswers",
    "QuizKey",
    "QuizResult",
    "QuizSettings",
    "score_quiz",
    "write_quiz",
]
