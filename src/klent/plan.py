"""What a recipe will do at each step, worked out before anything is loaded."""

from dataclasses import dataclass

from klent.binding import resolve, streams_of
from klent.config import DatasetRollout, DataSettings, Recipe, streams

_GIVEN = {"mask", "rewards", "group"}


@dataclass(frozen=True)
class Plan:
    """The work of a run.

    Attributes:
        completions: in each step.
        updates: optimizer steps in each step.
        terms: every function of the recipe with its settings, as ``kind: name(setting=value) reads a, b``.
        needs_reference: whether log-probs of a reference model are computed.
        needs_old: whether log-probs at the start of the step are computed apart from those of the update.
            With one update a step they are the same numbers.
        eval_completions: in each evaluation, 0 where there is none.
    """

    completions: int
    updates: int
    terms: tuple[str, ...]
    needs_reference: bool
    needs_old: bool
    eval_completions: int


def make_plan(recipe: Recipe) -> Plan:
    """The plan of a recipe."""
    reads = streams(recipe)
    updates = recipe.update.epochs * recipe.update.minibatches
    return Plan(
        completions=recipe.prompts_per_step * recipe.group_size,
        updates=updates,
        terms=tuple(_terms(recipe)),
        needs_reference="logp_ref" in reads,
        needs_old="logp_old" in reads and updates > 1,
        eval_completions=recipe.eval.problems * recipe.eval.samples if recipe.eval else 0,
    )


def _terms(recipe: Recipe) -> list[str]:
    lines = []
    for kind in ("advantage", "token_reward", "loss"):
        for name, settings in (getattr(recipe, kind) or {}).items():
            values = ", ".join(f"{key}={value}" for key, value in settings.items())
            reads = ", ".join(sorted(streams_of(resolve(name)) - _GIVEN)) or "rewards"
            lines.append(f"{kind}: {name}({values}) reads {reads}")
    return lines


def describe_plan(recipe: Recipe) -> list[str]:
    """The plan in sentences, for ``--dry-run`` and for the first lines of a run."""
    plan = make_plan(recipe)
    source = recipe.task.data if isinstance(recipe.task, DataSettings) else recipe.task.gym
    if isinstance(recipe.rollout, DatasetRollout):
        made = f"{plan.completions} completions read from {source}"
    else:
        made = f"{recipe.prompts_per_step} prompts of {source} x {recipe.group_size} completions"
    budget = f"at most {recipe.rollout.max_tokens} tokens each"
    reference = recipe.reference or "the policy as it was at the start"
    lines = [
        f"each step: {made}, {budget}",
        *plan.terms,
        f"reduce: over {recipe.reduce.over}",
        f"update: {_count(plan.updates, 'optimizer step')}, learning rate {recipe.optimizer.lr:g}",
        f"reference model: {reference if plan.needs_reference else 'none (no term reads logp_ref)'}",
    ]
    if plan.needs_old:
        lines.append("log-probs at the start of the step: one more forward pass (several updates reuse them)")
    if recipe.eval is not None:
        when = f" and every {recipe.eval.every} steps" if recipe.eval.every else ""
        solved = f"{recipe.eval.problems} held-out problems x {recipe.eval.samples}"
        lines.append(f"evaluation: {solved}, before, after{when}")
    lines.append(f"in all: {recipe.steps} steps, {recipe.steps * plan.completions} completions")
    return lines


def _count(number: int, what: str) -> str:
    return f"1 {what}" if number == 1 else f"{number} {what}s"
