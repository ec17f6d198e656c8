"""Sampling between a policy and a target: q ∝ policy^alpha · target^(1 - alpha), and what it is worth."""

from klent.mixture.geometric import geometric_mixture
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

__all__ = [
    "MixtureSolution",
    "ProgressTerms",
    "chi_squared",
    "geometric_mixture",
    "optimal_sampling_distribution",
    "progress",
    "progress_terms",
    "sampling_variance",
    "snr_optimal",
    "solve_alpha",
    "variance_optimal",
]
