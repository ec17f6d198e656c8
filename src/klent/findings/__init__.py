"""What goes wrong in a run: one function a signature, each with onset, evidence and remedy."""

from klent.findings.finding import Finding as Finding
from klent.findings.signatures import diagnose as diagnose

__all__ = ["Finding", "diagnose"]
