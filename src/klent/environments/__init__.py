"""Worlds that answer: the protocol of an environment."""

from klent.environments.environment import Environment, Step

__all__ = ["Environment", "Step"]
