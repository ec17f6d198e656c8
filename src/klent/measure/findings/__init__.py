"""Failure signatures of a run: one function per signature, each giving onset, evidence and remedy."""

from klent.measure.findings.finding import Finding as Finding
from klent.measure.findings.signatures import diagnose as diagnose

__all__ = ["Finding", "diagnose"]
