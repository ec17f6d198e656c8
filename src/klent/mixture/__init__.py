"""Sampling between a policy and a target: q ∝ policy^alpha · target^(1 - alpha), and what it is worth."""

import importlib
from typing import TYPE_CHECKING, Any

from klent.mixture.geometric import geometric_mixture
from klent.mixture.mixing import Mixed, mix
from klent.mixture.progress import (
    ProgressTerms,
    chi_squared,
    progress,
    progress_terms,
    sampling_variance,
    snr_optimal,
    variance_optimal,
)
from klent.mixture.solve import MixtureSolution, optimal_sampling_distribution, solve_alpha

if TYPE_CHECKING:
    from klent.integrations.logits_processor import MixtureLogitsProcessor, MixtureTrace

__all__ = [
    "Mixed",
    "MixtureLogitsProcessor",
    "MixtureSolution",
    "MixtureTrace",
    "ProgressTerms",
    "chi_squared",
    "geometric_mixture",
    "mix",
    "optimal_sampling_distribution",
    "progress",
    "progress_terms",
    "sampling_variance",
    "snr_optimal",
    "solve_alpha",
    "variance_optimal",
]


def __getattr__(name: str) -> Any:
    """What needs transformers is imported when it is asked for."""
    if name in ("MixtureLogitsProcessor", "MixtureTrace"):
        return getattr(importlib.import_module("klent.integrations.logits_processor"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
