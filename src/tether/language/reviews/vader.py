"""VADER: the sentiment of a text by a lexicon and rules that people made, and nothing was trained.

The PyPI package ``nltk-vader-sentiment`` holds lexicon and rules (Apache-2.0; the lexicon MIT).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tether.errors import UserError

INSTALL: Final = "pip install nltk-vader-sentiment"


def vader_scores(texts: Sequence[str]) -> NDArray[np.float64]:
    """How positive each text is, in [-1, 1]: the compound score, 0 where it knows no word; (N,).

    Nothing here has learned from tether's reviews, and no policy learns from it. It counts words
    with a sign, so it can't tell whether the film is meant.

    Args:
        texts: to score.

    Raises:
        UserError: the package is not installed.

    Source:
        Hutto and Gilbert, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social
        Media Text" (2014).
    """
    try:
        from vader import SentimentIntensityAnalyzer
    except ImportError as error:
        raise UserError(f"the evaluator VADER is not installed; run: {INSTALL}") from error
    analyzer = SentimentIntensityAnalyzer()
    return np.array([analyzer.polarity_scores(text)["compound"] for text in texts], np.float64)
