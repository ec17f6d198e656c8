"""Made-up logs: one that is healthy, and for every signature one that has it and nothing else."""

from typing import Any

N = 30
Columns = dict[str, list[Any]]


def wave(level: float, size: float = 0.05) -> list[float]:
    """A steady series with a little noise that is the same every time."""
    return [level * (1 + size * ((place * 7) % 5 - 2) / 2) for place in range(N)]


def ramp(start: float, end: float, first: int = 0) -> list[float]:
    """``start`` until place ``first``, then a straight line to ``end``."""
    return [
        start + (end - start) * max(0, place - first) / (N - 1 - first) * (1 + 0.0 * place)
        for place in range(N)
    ]


def step(before: float, after: float, first: int, last: int = N) -> list[float]:
    """``after`` from place ``first`` up to ``last``, ``before`` elsewhere."""
    return [after if first <= place < last else before for place in range(N)]


def healthy() -> Columns:
    """A run that learns: reward rises, entropy falls a little, nothing else moves."""
    return {
        "reward/mean": [r + 0.02 * (-1) ** i for i, r in enumerate(ramp(0.2, 0.6))],
        "reward/std": wave(0.4),
        "reward/correct": ramp(0.2, 0.6),
        "reward/format": ramp(0.5, 0.9),
        "reward/unscorable": wave(0.0),
        "completion/length": ramp(100.0, 130.0),
        "completion/truncated": wave(0.05),
        "completion/repetition": wave(0.06),
        "policy/entropy": ramp(1.0, 0.8),
        "policy/entropy_delta_predicted": wave(-0.007),
        "policy/logp_mismatch": wave(0.004),
        "kl/update": wave(0.01),
        "kl/reference": ramp(0.0, 0.3),
        "objective/clip_low": wave(0.01),
        "objective/clip_high": wave(0.02),
        "objective/loss": wave(0.01),
        "group/zero_variance": wave(0.3),
        "mixture/ess": wave(0.7),
        "preference/accuracy": ramp(0.5, 0.8),
        "preference/margin": ramp(0.0, 5.0),
        "preference/chosen": ramp(0.0, 2.0),
        "preference/rejected": ramp(0.0, -3.0),
        "sequence/ess": wave(0.9),
        "sequence/chi2": wave(1e-4),
        "value/explained": ramp(0.0, 0.6),
        "value/gradient_share": wave(0.3),
        "grad/norm": wave(1.0),
        "update/skipped": wave(0.0),
        "tokens/rollout": wave(6400.0),
        "tokens/rollout_per_second": wave(1000.0),
        "tokens/train": wave(7000.0),
        "tokens/train_per_second": wave(3000.0),
        "time/step": wave(9.0),
    }


def collapse(first: int = 0) -> list[float]:
    return [1.0 * 0.9 ** max(0, place - first) for place in range(N)]


SICK: dict[str, Columns] = {
    "entropy_collapse": {"policy/entropy": collapse()},
    "entropy_explosion": {"policy/entropy": ramp(0.6, 3.0, first=8)},
    "kl_blowup": {"kl/update": step(0.01, 1.5, first=12)},
    "zero_variance": {"group/zero_variance": step(0.4, 0.95, first=10)},
    "clip_saturation": {"objective/clip_high": step(0.02, 0.35, first=15)},
    "length_gaming": {"completion/length": ramp(100.0, 400.0, first=5), "reward/mean": wave(0.3)},
    "truncation": {"completion/truncated": step(0.02, 0.6, first=14)},
    "repetition": {"completion/repetition": step(0.05, 0.5, first=11)},
    "format_gaming": {"reward/format": ramp(0.2, 0.95), "reward/correct": wave(0.3)},
    "nonfinite": {"update/skipped": step(0.0, 1.0, first=20), "grad/norm": step(1.0, float("nan"), first=20)},
    "logp_mismatch": {"policy/logp_mismatch": step(0.004, 0.12, first=9)},
    "degenerate_weights": {"mixture/ess": step(0.6, 0.04, first=13)},
    "stale_prefixes": {"sequence/ess": step(0.8, 0.04, first=13)},
    "likelihood_displacement": {
        "preference/chosen": ramp(0.0, -6.0, first=5),
        "preference/rejected": ramp(0.0, -11.0, first=5),
    },
    "unscorable": {"reward/unscorable": step(0.0, 0.3, first=7)},
    "blind_critic": {"value/explained": wave(0.01)},
    "swamped_trunk": {"value/gradient_share": step(0.3, 0.97, first=12)},
    "throughput_decay": {"tokens/rollout_per_second": ramp(1000.0, 300.0, first=6)},
}
"""Signature -> the columns in which its run differs from the healthy one."""

ONSET = {
    "entropy_collapse": (9, 10),
    "entropy_explosion": (13, 17),
    "kl_blowup": (13, 14),
    "zero_variance": (11, 12),
    "clip_saturation": (16, 17),
    "length_gaming": (9, 10),
    "truncation": (15, 16),
    "repetition": (12, 13),
    "format_gaming": (14, 17),
    "nonfinite": (21, 21),
    "logp_mismatch": (10, 11),
    "degenerate_weights": (14, 15),
    "stale_prefixes": (14, 15),
    "likelihood_displacement": (11, 12),
    "unscorable": (8, 8),
    "blind_critic": (11, 12),
    "swamped_trunk": (13, 14),
    "throughput_decay": (19, 24),
}
"""Signature -> the first and last step that may be called its onset."""
