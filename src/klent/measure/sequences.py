"""What the terms about whole sequences report: the divergence, the entropy, and the weights behind them."""

from collections.abc import Mapping

_MEANS = {"sequence_kl": "kl/sequence", "sequence_entropy": "policy/sequence_entropy"}
_WEIGHTS = ("prefix_weight", "prefix_weight_squared", "chi2")
_TERMS = ("sequence_kl", "sequence_kl_loss", "sequence_entropy", "sequence_entropy_loss")

WHOLE_SEQUENCES = frozenset([*_MEANS, *_WEIGHTS, *(f"{term}.{name}" for term in _TERMS for name in _WEIGHTS)])
"""Metrics of the loss that :func:`sequence_metrics` reads; two terms report theirs with the term's name in front."""


def sequence_metrics(means: Mapping[str, float]) -> dict[str, float]:
    """``kl/sequence``, ``policy/sequence_entropy``, ``sequence/ess`` and ``sequence/chi2``, as far as there are any.

    Args:
        means: of the terms' metrics, by name.

    Example:
        >>> sequence_metrics({"sequence_kl": 0.5, "prefix_weight": 1.0, "prefix_weight_squared": 4.0, "chi2": 0.1})
        {'kl/sequence': 0.5, 'sequence/ess': 0.25, 'sequence/chi2': 0.1}
    """
    row = {metric: means[name] for name, metric in _MEANS.items() if name in means}
    weight, squared, chi2 = (_first(means, name) for name in _WEIGHTS)
    if weight is not None and squared:
        row["sequence/ess"] = weight**2 / squared
    if chi2 is not None:
        row["sequence/chi2"] = chi2
    return row


def _first(means: Mapping[str, float], name: str) -> float | None:
    """A term's number; terms that report the same weights have the same numbers."""
    return next((value for key, value in means.items() if key == name or key.endswith(f".{name}")), None)
