"""The mathematics: pure functions of numbers per token, each of one kind (``klent.objectives.kinds``).

Estimators and advantages turn rewards and log-probabilities into what an update needs; selectors choose
tokens, always from detached values; losses give one number per token or per pair; one reduction averages it.
Tensors are ``[B, T]`` unless said, ``mask`` is bool, logarithms are natural (nats). A value off the mask is
never read, and no input is changed.

A module's ``__all__`` says what it adds to this package.
"""

# ruff: noqa: F403 - each module says what it exports

from klent.objectives import (
    advantage,
    covariance,
    diffusion,
    distill,
    effect,
    entropy,
    exploration,
    gaussian,
    importance,
    kl,
    likelihood,
    measures,
    noising,
    preference,
    qsft,
    reduce,
    regret,
    semantic,
    sequence,
    surrogate,
    tokens,
    trust,
    types,
    value,
)
from klent.objectives.advantage import *
from klent.objectives.covariance import *
from klent.objectives.diffusion import *
from klent.objectives.distill import *
from klent.objectives.effect import *
from klent.objectives.entropy import *
from klent.objectives.exploration import *
from klent.objectives.gaussian import *
from klent.objectives.importance import *
from klent.objectives.kl import *
from klent.objectives.likelihood import *
from klent.objectives.measures import *
from klent.objectives.noising import *
from klent.objectives.preference import *
from klent.objectives.qsft import *
from klent.objectives.reduce import *
from klent.objectives.regret import *
from klent.objectives.semantic import *
from klent.objectives.sequence import *
from klent.objectives.surrogate import *
from klent.objectives.tokens import *
from klent.objectives.trust import *
from klent.objectives.types import *
from klent.objectives.value import *

__all__: list[str] = []
__all__ += surrogate.__all__ + trust.__all__ + likelihood.__all__ + exploration.__all__
__all__ += kl.__all__ + distill.__all__ + sequence.__all__ + entropy.__all__ + covariance.__all__
__all__ += tokens.__all__ + effect.__all__
__all__ += diffusion.__all__ + noising.__all__ + preference.__all__ + regret.__all__
__all__ += advantage.__all__ + value.__all__ + importance.__all__ + semantic.__all__ + qsft.__all__
__all__ += measures.__all__ + gaussian.__all__ + reduce.__all__ + types.__all__
