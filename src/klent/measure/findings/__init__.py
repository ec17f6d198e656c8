"""What goes wrong in a run: one function a signature, each with onset, evidence and remedy."""

from klent.measure.findings.finding import Finding as Finding
from klent.measure.findings.signatures import diagnose as diagnose

__all__ = ["Finding", "diagnose"]
