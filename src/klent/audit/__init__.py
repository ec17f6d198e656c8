"""Which divergence does a loss follow? Its expected gradient, by exact enumeration of small worlds."""

from klent.audit.certificate import Certificate, certify
from klent.audit.fit import Statement
from klent.audit.match import Match
from klent.audit.reduction import Reduction
from klent.audit.rewards import in_reward
from klent.audit.sensitivity import Sensitivity

__all__ = ["Certificate", "Match", "Reduction", "Sensitivity", "Statement", "certify", "in_reward"]
