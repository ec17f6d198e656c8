"""Worlds that answer: the protocol of an environment, and the one-turn world of a plain prompt."""
