"""A classifier that knows the words of a text, and nothing else of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold

# Inverse strengths of the L2 penalty that are tried, and folds that they are tried on.
_STRENGTHS, _N_FOLDS = (0.1, 1.0, 10.0, 100.0), 3
CANNOT_TELL = -1


@dataclass(frozen=True, eq=False)
class PlainReader:
    """Logistic regression on the words of a text, weighted by tf-idf (scikit-learn's both).

    Attributes:
        words: from texts to weights of words.
        classifier: from these to classes.
    """

    words: Any
    classifier: Any

    @classmethod
    def fit(cls, texts: Sequence[str], classes: Sequence[int], seed: int = 0) -> PlainReader:
        """Each class weighs the same; the penalty has the best balanced accuracy on held-out folds.

        A class of fewer than three texts is not learned, and so never told.

        Raises:
            ValueError: if there are fewer than two classes of three texts at least.
        """
        names, counts = np.unique(np.asarray(classes), return_counts=True)
        common = names[counts >= _N_FOLDS].tolist()
        if len(common) < 2:
            raise ValueError(
                f"A reader learns from {_N_FOLDS} texts at least of each of two classes at least; got "
                f"classes of {', '.join(map(str, counts)) or 'no'} texts. Give more reference texts."
            )
        known = [i for i, own in enumerate(classes) if own in common]
        texts, classes = [texts[i] for i in known], [classes[i] for i in known]
        words = TfidfVectorizer(sublinear_tf=True)
        features = words.fit_transform(texts)
        search = GridSearchCV(
            LogisticRegression(class_weight="balanced", max_iter=2000),
            {"C": _STRENGTHS},
            scoring="balanced_accuracy",
            cv=StratifiedKFold(_N_FOLDS, shuffle=True, random_state=seed),
        )
        return cls(words, search.fit(features, np.asarray(classes)).best_estimator_)

    def read(self, texts: Sequence[str]) -> tuple[int, ...]:
        """The class of each text; ``CANNOT_TELL`` where no word of it is known."""
        features = self.words.transform(texts)
        said = self.classifier.predict(features)
        return tuple(
            int(own) if n_known else CANNOT_TELL
            for own, n_known in zip(said, np.diff(features.indptr), strict=True)
        )
