"""The list of signatures, and :func:`diagnose`, which applies them all to a log."""

from collections.abc import Callable

from klent.kit.tables import Table
from klent.measure.findings.critic import blind_critic, swamped_trunk
from klent.measure.findings.finding import Finding
from klent.measure.findings.machine import nonfinite, throughput_decay
from klent.measure.findings.policy import (
    clip_saturation,
    degenerate_weights,
    entropy_collapse,
    entropy_explosion,
    kl_blowup,
    logp_mismatch,
    stale_prefixes,
)
from klent.measure.findings.preference import likelihood_displacement
from klent.measure.findings.reward import (
    format_gaming,
    length_gaming,
    repetition,
    truncation,
    unscorable,
    zero_variance,
)

SIGNATURES: tuple[Callable[[Table], Finding | None], ...] = (
    entropy_collapse,
    entropy_explosion,
    kl_blowup,
    zero_variance,
    clip_saturation,
    length_gaming,
    truncation,
    repetition,
    format_gaming,
    nonfinite,
    logp_mismatch,
    degenerate_weights,
    stale_prefixes,
    likelihood_displacement,
    unscorable,
    blind_critic,
    swamped_trunk,
    throughput_decay,
)


def diagnose(table: Table) -> list[Finding]:
    """Problems of a run, the most severe first; a signature whose columns are missing reports nothing.

    Example:
        >>> entropy = [2.0, 1.5, 1.1, 0.8, 0.6, 0.45, 0.33, 0.25]
        >>> [finding.name for finding in diagnose(Table.of({"policy/entropy": entropy}))]
        ['entropy_collapse']
    """
    findings = [finding for signature in SIGNATURES if (finding := signature(table)) is not None]
    return sorted(findings, key=lambda finding: -finding.severity)
