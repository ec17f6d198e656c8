"""Which divergence does a loss really follow? Expected gradients, by exact enumeration of small worlds."""

from klent.audit.certificate import Certificate, Finding, certify
from klent.audit.fit import Statement
from klent.audit.rewards import in_reward
from klent.audit.sensitivity import Sensitivity

__all__ = ["Certificate", "Finding", "Sensitivity", "Statement", "certify", "in_reward"]
