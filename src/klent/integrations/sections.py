"""The part of a recipe that says what is minimised, for a trainer that has the rest: checked as a recipe is."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from klent.config import make_recipe
from klent.config.binding import is_per_token
from klent.errors import ConfigError
from klent.runs.objective import build_objective
from klent.streams.batch import Batch, Stats
from klent.training.objective import Objective
from klent.training.reduction import Reduction
from klent.training.requirements import Requirements, requirements

SECTIONS = ("method", "loss", "advantage", "token_reward", "select", "weigh", "reduce")
"""Of a recipe, what another trainer can be given."""

_REST = {"name": "of-another-trainer", "model": "of-another-trainer", "steps": 1, "eval": None}


@dataclass(frozen=True)
class Part:
    """An objective, and what it needs of a trainer.

    Attributes:
        objective: what is minimised.
        reduction: how it is averaged.
        needs: of a step.
        optimizer_steps: that one batch of samples is used for.
    """

    objective: Objective
    reduction: Reduction
    needs: Requirements
    optimizer_steps: int

    @property
    def advantages(self) -> bool:
        """Whether a term reads ``advantage``."""
        return self.objective.reads("advantage")

    @property
    def reads_start(self) -> bool:
        """Whether the policy has to be measured once more before the update."""
        selection = self.objective.selection
        of_start = self.needs.old and (self.optimizer_steps > 1 or bool(self.objective.token_rewards))
        return of_start or selection.reads_policy

    def chosen(self, batch: Batch, start: Stats | None, *, seed: int) -> Batch:
        """The batch with its advantages, choices and weights.

        Args:
            batch: every completion of a step; its ``episodes`` may be missing.
            start: the policy's numbers at the start of the update, where :attr:`reads_start` asks for them.
            seed: of the step.
        """
        self.objective.estimate_advantage(batch)
        if not self.objective.selection.functions:
            return batch
        rows = list(range(len(batch.mask)))
        return self.objective.selection.choose(batch, rows, start, seed=seed)

    def counted(self, mask: Tensor, choices: Mapping[str, Tensor]) -> Tensor:
        """The tokens that the average is over, ``[B, T]`` bool."""
        chosen = choices.get("mask")
        return mask if chosen is None or self.reduction.count == "all" else chosen

    def divisor(self, counted: Tensor) -> float:
        """What these tokens add to the divisor of their optimizer step."""
        return self.reduction.divisor(counted)


def objective_of(
    given: str | Mapping[str, Any], *, group_size: int, max_tokens: int, optimizer_steps: int, host: str
) -> Part:
    """The objective that these sections describe.

    Args:
        given: the sections, or the name of a method.
        group_size: completions per prompt.
        max_tokens: the longest completion; what ``reduce.over: constant`` divides by unless it says otherwise.
        optimizer_steps: that one batch of samples is used for.
        host: the trainer's name, for messages.

    Raises:
        ConfigError: other sections, a fault in one, or a need that the trainer cannot meet.
    """
    sections = {"method": given} if isinstance(given, str) else dict(given)
    if other := sorted(set(sections) - set(SECTIONS)):
        raise ConfigError(
            f"objective has {', '.join(other)}, which {host} decides, not klent. Remove it; objective may have "
            f"{', '.join(SECTIONS)}"
        )
    rest = {
        **_REST,
        "task": {"data": "of-another-trainer.jsonl"},
        "reward": "last_number",
        "group_size": group_size,
    }
    recipe = make_recipe({**rest, "rollout": {"max_tokens": max_tokens}, **sections})
    objective = build_objective(recipe)
    needs = requirements(objective, optimizer_steps=optimizer_steps)
    _refuse_unmet(objective, needs, optimizer_steps, host)
    reduction = Reduction(
        over=recipe.reduce.over,
        denominator=recipe.reduce.denominator or max_tokens,
        count=recipe.reduce.count,
    )
    return Part(objective, reduction, needs, optimizer_steps)


def _refuse_unmet(objective: Objective, needs: Requirements, optimizer_steps: int, host: str) -> None:
    """Refuse what a trainer that gives log-probability and entropy of each token cannot do.

    Raises:
        ConfigError: the objective needs more.
    """
    why = {
        "whole distributions, critics or heads": sorted(needs.also),
        "the completions of a prompt in one micro-batch": ["a loss of pairs or groups"]
        if needs.whole_groups
        else [],
        "an advantage per token": [e.name for e in objective.estimators if is_per_token(e.function)][:1],
    }
    for missing, of in why.items():
        if of:
            raise ConfigError(
                f"objective needs {', '.join(of)}, and {host} does not give {missing}. Use `klent train` for it"
            )
    if objective.selection.functions and optimizer_steps > 1:
        raise ConfigError(
            f"objective selects or weighs tokens at every optimizer step, and {host} is to take {optimizer_steps} "
            "with one batch of samples. Let it take one, as with TRL's steps_per_generation equal to "
            "gradient_accumulation_steps and num_iterations of 1"
        )
