"""Which passes a step needs: the one place that knows.

The dry run, the parts of a run and the loop all ask here, so that no pass is announced that does not happen,
and none happens that nothing reads.
"""

from collections.abc import Collection
from dataclasses import dataclass

from klent.training.objective import Objective

COMPARED = ("divergence", "kl", "distance")
"""The streams that the policy computes against another distribution: its target, its reference, its sampler."""

ON_REQUEST = frozenset({"distance"})
"""Of these, those that come with a recipe's key and not with a term, which can do without."""


COLLISION = frozenset({"collision", "collision_logp"})
"""The streams that the policy sums over squared probabilities, in the pass that gives its other numbers."""

OF_HEADS = frozenset({"value", "logit_second", "score"})
"""The streams that a head of its own gives: a critic's, or a reward model's."""

BESIDE = frozenset({"logit", "logp_dummy", "logp_mean", "logp_observed"})
"""The streams that the policy's own head gives beside the action's log-probability."""

OF_NOISE = frozenset({"denoising", "denoising_kl", "denoising_data"})
"""The streams that a denoiser gives of noised images."""


@dataclass(frozen=True)
class Requirements:
    """The forward passes of a step beside those of the update itself.

    Attributes:
        old: before the update, for ``logp_old`` or ``entropy_old``, for rewards per token, or for an organ.
        value_old: in that pass, the critic's values too.
        reference: of a reference model, for ``logp_ref``.
        reselect: before each optimizer step but the first, because selectors read the policy as it stands.
        also: which of :data:`COMPARED`, :data:`COLLISION`, :data:`OF_HEADS`, :data:`BESIDE` and :data:`OF_NOISE` each
            forward pass of the update gives beside log-probability and entropy. Each of the first is another model's.
        whole_groups: whether a term reads all completions of a prompt together.
        rewards: whether completions have to be scored for the update.
    """

    old: bool
    value_old: bool
    reference: bool
    reselect: bool
    also: frozenset[str]
    whole_groups: bool
    rewards: bool

    @property
    def actions(self) -> bool:
        """Whether the policy is asked about actions; a reward model is asked for the score of texts, and has none."""
        return "score" not in self.also


def requirements(
    objective: Objective, *, optimizer_steps: int, asked: Collection[str] = (), ahead: bool = False
) -> Requirements:
    """What an objective needs in a step of so many optimizer steps.

    With one optimizer step, ``logp_old`` and ``entropy_old`` are what the update's own forward pass gives; where
    sampling runs ahead, they are the sampler's.

    Args:
        objective: what is minimised.
        optimizer_steps: of a step.
        asked: streams that are wanted beside those: an organ reads them, or a term takes them where they are.
        ahead: whether ratios are to an older policy that sampled, whose numbers are known.
    """
    several = optimizer_steps > 1
    reads_old = objective.reads("logp_old") or objective.reads("entropy_old")
    at_start = bool(objective.token_rewards) or (several and reads_old)
    value_old = objective.reads("value_old")
    compared = {
        name for name in COMPARED if name in asked or (objective.reads(name) and name not in ON_REQUEST)
    }
    collision = COLLISION if any(COLLISION & term.streams for term in objective.terms) else frozenset()
    return Requirements(
        old=value_old or "logp_old" in asked or (not ahead and at_start),
        value_old=value_old,
        reference=objective.reads("logp_ref"),
        reselect=several and objective.selection.reads_policy,
        also=frozenset(
            {*compared, *collision, *(name for name in OF_HEADS | BESIDE | OF_NOISE if objective.reads(name))}
        ),
        whole_groups=any("group" in term.streams for term in objective.terms),
        rewards=objective.reads("advantage"),
    )
