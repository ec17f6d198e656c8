"""What a loss matches, for completions from one kind of policy."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from klent.audit.fit import Statement

UNKNOWN = Statement("unknown")


@dataclass(frozen=True)
class Match:
    """The candidates that the expected gradient of a loss matches, for completions from one kind of policy.

    Attributes:
        follows: the candidate that the gradient equals on sequences, or ``combination``, ``zero``,
            ``unknown``.
        coefficients: candidate -> weight with which the loss minimises it; negative is maximising.
        relative_error: the share of the gradient left unexplained; for ``zero`` the gradient as a share of
            the gradient of a single sample; for ``unknown`` what the nearest candidate leaves unexplained.
        cosine: candidate -> cosine between its gradient and that of the loss, on sequences. The suffix
            ``@behaviour`` means that prefixes come from the behaviour policy.
        bias: candidate -> distance of the loss's gradient from its gradient, with weight 1, relative to the
            latter, on sequences.
        variance: variance of the gradient of one completion, summed over parameters, mean over worlds.
        prefixes: the policy whose prefixes a candidate ``_token`` runs over, ``policy`` or ``behaviour``.
        one_position: the same statement where a completion is a single token.
        equal_lengths: the same statement where all completions have equal length.
        far_error: relative error of ``one_position`` for policies that hardly agree, with log-ratios up to
            40 nats; large where the loss clips or clamps, inf where it overflows or raises, NaN where there
            is no statement.
    """

    follows: str = "unknown"
    coefficients: Mapping[str, float] = field(default_factory=dict)
    relative_error: float = math.nan
    cosine: Mapping[str, float] = field(default_factory=dict)
    bias: Mapping[str, float] = field(default_factory=dict)
    variance: float = math.nan
    prefixes: str = "policy"
    one_position: Statement = UNKNOWN
    equal_lengths: Statement = UNKNOWN
    far_error: float = math.nan
