"""klent inside other libraries; each name imports its library when it is first used."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from klent.integrations.logits_processor import MixtureLogitsProcessor, MixtureTrace

__all__ = ["MixtureLogitsProcessor", "MixtureTrace"]


def __getattr__(name: str) -> object:
    if name in __all__:
        return getattr(importlib.import_module("klent.integrations.logits_processor"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
