"""Sampling between a policy and a target: q ∝ policy^alpha · target^(1 - alpha), and how much it gains."""

from klent.mixture.efficiency import (
    ProgressTerms,
    chi_squared,
    progress,
    progress_terms,
    sampling_variance,
    snr_optimal,
    variance_optimal,
)
from klent.mixture.geometric import geometric_mixture
from klent.mixture.mixed import Mixed, mix
from klent.mixture.solve import MixtureSolution, optimal_sampling_distribution, solve_alpha

__all__ = [
    "Mixed",
    "MixtureSolution",
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


def __getattr__(name: str) -> object:
    if name in ("MixtureLogitsProcessor", "MixtureTrace"):
        raise AttributeError(
            f"klent.mixture.{name} has moved: it needs transformers. Use klent.integrations.{name}."
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
