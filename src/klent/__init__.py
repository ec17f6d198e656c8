"""klent: post-train language models with exact control of KL divergence and entropy.

``import klent`` loads nothing heavy: torch comes with the first name that needs it, and transformers with the
first model.
"""

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from klent import audit as audit
    from klent import mixture as mixture
    from klent import objectives as objectives
    from klent.head import TokenStats as TokenStats
    from klent.head import token_stats as token_stats
    from klent.objectives import TokenLoss as TokenLoss
    from klent.objectives import reduce_tokens as reduce_tokens
    from klent.runs.api import Evaluation as Evaluation
    from klent.runs.api import Run as Run
    from klent.runs.api import evaluate as evaluate
    from klent.runs.api import train as train

_HOME = {
    "TokenStats": "klent.head",
    "token_stats": "klent.head",
    "TokenLoss": "klent.objectives",
    "reduce_tokens": "klent.objectives",
    "Evaluation": "klent.runs.api",
    "Run": "klent.runs.api",
    "evaluate": "klent.runs.api",
    "train": "klent.runs.api",
}
_MODULES = ("audit", "mixture", "objectives")
__all__ = [
    "Evaluation",
    "Run",
    "TokenLoss",
    "TokenStats",
    "audit",
    "evaluate",
    "mixture",
    "objectives",
    "reduce_tokens",
    "token_stats",
    "train",
]


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return importlib.import_module(f"klent.{name}")
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'klent' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
