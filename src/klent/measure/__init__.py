"""The numbers of a step and of a run: metrics, what an update changed, diagnostics, the law, findings."""
