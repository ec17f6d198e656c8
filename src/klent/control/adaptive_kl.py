"""Adaptive KL: after each step the coefficient of the KL to the reference moves towards a KL that is aimed at.

    e    = clip(KL / target - 1, ±0.2)
    coef ← coef·(1 + e·n / horizon),        n = completions of the step

The rule of Ziegler et al. (arXiv 1909.08593). What it controls is the KL of whole completions, in nats.
"""

import math
from collections.abc import Mapping, Sequence

import torch

from klent.config import AdaptiveKL as Settings
from klent.control.organ import Organ, StepRecord
from klent.streams.batch import Batch
from klent.training.term import Term

LARGEST_ERROR = 0.2


class AdaptiveKL(Organ):
    """A controller of the KL to the reference, proportional in the logarithm of its coefficient.

    Args:
        settings: the recipe's section.
        terms: whose ``coef`` it turns.
        begin_at: the coefficient of the first step.
    """

    name = "adaptive_kl"

    def __init__(self, settings: Settings, terms: Sequence[Term], begin_at: float) -> None:
        self.settings = settings
        self.terms = terms
        self.coef = begin_at

    def before_step(self, number: int) -> None:
        """Set the coefficient of the step that is about to begin."""
        for term in self.terms:
            term.settings["coef"] = self.coef

    def after_update(self, step: StepRecord) -> dict[str, float]:
        """``kl/coef`` of this step and ``kl/completion`` as measured; the next step's coefficient follows."""
        row = {"kl/coef": self.coef}
        kl = completion_kl(step.batch, step.row)
        if kl is None or not math.isfinite(kl):
            return row
        error = min(max(kl / self.settings.target - 1.0, -LARGEST_ERROR), LARGEST_ERROR)
        self.coef *= 1.0 + error * len(step.batch) / self.settings.horizon
        return row | {"kl/completion": kl}

    def state_dict(self) -> dict[str, object]:
        """The coefficient of the next step."""
        return {"coef": self.coef}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Take it back."""
        self.coef = float(str(state["coef"]))


def completion_kl(batch: Batch, row: Mapping[str, float]) -> float | None:
    """KL(policy ‖ reference) of a completion of this step, nats.

    Where a term compares whole vocabularies it is the mean sum of exact divergences over the prefixes that were
    sampled (``kl/sequence``); else the mean sum of ``logp - logp_ref`` of the sampled tokens (k1), which has the
    same mean, more noise, and may be below 0 in a step. None where the step has neither.
    """
    if (exact := row.get("kl/sequence")) is not None:
        return exact
    streams, sampling = batch.streams, batch.at_sampling
    logp = sampling.logp if sampling is not None else streams.logp_old
    if logp is None or streams.logp_ref is None:
        return None
    ratios = torch.where(batch.mask, logp - streams.logp_ref, 0.0)
    return float(ratios.double().sum(dim=1).mean())
