"""Which divergence does a loss follow? Its expected gradient, by exact enumeration of small worlds."""

from klent.audit.certificate import Certificate, certify
from klent.audit.fit import Statement
from klent.audit.groups import AdvantageCertificate, certify_advantage
from klent.audit.match import Match
from klent.audit.reduction import Reduction
from klent.audit.rewards import in_reward
from klent.audit.sensitivity import Sensitivity

__all__ = [
    "AdvantageCertificate",
    "Certificate",
    "Match",
    "Reduction",
    "Sensitivity",
    "Statement",
    "certify",
    "certify_advantage",
    "in_reward",
]
