"""How glad a text sounds, by VADER's word list and rules: a reward whose values nobody has to label.

Hutto and Gilbert, VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text, 2014. Needs
`pip install vaderSentiment`, which holds its word list and asks no network.
"""

from functools import cache
from typing import Any

from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer


@cache
def _analyser() -> SentimentIntensityAnalyzer:
    return SentimentIntensityAnalyzer()


def sentiment(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
    """VADER's compound score of each answer, from -1 (sad, angry) to 1 (glad)."""
    return [float(_analyser().polarity_scores(text)["compound"]) for text in completions]
