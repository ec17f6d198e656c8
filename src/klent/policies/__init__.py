"""What is trained: each policy turns a batch into the log-probability and entropy of every action."""

from klent.policies.policy import Policy

__all__ = ["Policy"]
