"""The reference policy: where it is kept, and how to ask it."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

from klent.policies.causal_lm.policy import Policy


@dataclass(frozen=True)
class Reference:
    """A policy that is compared with and never trained.

    Attributes:
        policy: answers like the trained policy does.
        active: a context in which it stands for the reference; for an adapter, the one that switches it off.
    """

    policy: Policy
    active: Any

    def __call__(self) -> AbstractContextManager[Policy]:
        return self.active(self.policy)


def separate_model(model: Any, temperature: float) -> Reference:
    """A second model, frozen."""
    model.requires_grad_(False)
    model.eval()

    @contextmanager
    def active(policy: Policy) -> Iterator[Policy]:
        yield policy

    return Reference(Policy(model, temperature=temperature), active)


def adapter_free(model: Any, temperature: float) -> Reference:
    """The trained model itself with its adapters switched off: no second copy of the weights."""

    @contextmanager
    def active(policy: Policy) -> Iterator[Policy]:
        with model.disable_adapter():
            yield policy

    return Reference(Policy(model, temperature=temperature), active)
