"""klent: post-train language models with exact control of KL divergence and entropy.

``import klent`` loads nothing heavy: torch comes with the first name that needs it, and transformers with the
first model.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from klent import audit as audit
    from klent import mixture as mixture
    from klent import objectives as objectives
    from klent.head import TokenStats as TokenStats
    from klent.head import token_stats as token_stats
    from klent.objectives import TokenLoss as TokenLoss
    from klent.objectives import reduce_tokens as reduce_tokens

_HOME = {
    "TokenStats": "klent.head",
    "token_stats": "klent.head",
    "TokenLoss": "klent.objectives",
    "reduce_tokens": "klent.objectives",
}
_MODULES = ("audit", "mixture", "objectives")
__all__ = ["TokenLoss", "TokenStats", "audit", "mixture", "objectives", "reduce_tokens", "token_stats"]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"klent.{name}")
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'klent' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
