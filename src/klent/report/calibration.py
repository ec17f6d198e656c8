"""Whether a reward model's certainty can be believed, in rows of the report: predicted against observed."""

from collections.abc import Mapping, Sequence

from klent.kit.tables import Row, finite
from klent.kit.text import fixed, plural

_SUMS = {
    "calibration/error": ("Calibration error", ""),
    "calibration/log_loss": ("Log-loss", " nats per pair"),
    "preference/margin": ("Mean difference of scores", ""),
}


def before_after(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Before -> after of a reward model's evaluations, and the last one's reliability table; else nothing."""
    first, last = rows[0], rows[-1]
    bins = last.get("calibration/bins")
    if not isinstance(bins, list):
        return []
    lines = []
    for key, (label, unit) in _SUMS.items():
        before, after = fixed(finite(first.get(key))), fixed(finite(last.get(key)))
        lines.append((label, (f"{before} → {after}" if last is not first else before) + unit))
    return lines + [_bin(b) for b in bins if isinstance(b, Mapping)]


def _bin(b: Mapping[str, object]) -> tuple[str, str]:
    """One bin of the reliability table."""
    low, high, predicted, observed, under, over = (
        fixed(finite(b.get(key)))
        for key in ("low", "high", "predicted", "observed", "observed_low", "observed_high")
    )
    label = f"Scores apart by {low} to {high}, {plural(int(finite(b.get('pairs')) or 0), 'pair')}"
    return label, f"predicted {predicted}, observed {observed} (95%: {under} to {over})"
