"""Preferences and critics: keys that need each other, and keys that nothing would read."""

from collections.abc import Iterator

from klent.config import binding
from klent.config.checks import streams
from klent.config.problems import Problem
from klent.config.recipe import Recipe
from klent.streams.registry import OF_CRITIC


def pair_problems(recipe: Recipe) -> Iterator[Problem]:
    """A loss of pairs needs pairs, replayed, and a mean over them; and pairs need such a loss."""
    pairs = [name for name in recipe.loss if binding.sides_of(binding.resolve(name))]
    given, over = recipe.task.paired, recipe.reduce.over
    if pairs and not (given or recipe.rollout.pairs):
        reason = f"has no pairs, and the loss ({pairs[0]}) compares two answers to a prompt"
        fix = "set task: {pairs: FILE}, or rollout.pairs: best_worst for pairs of sampled answers"
        yield Problem(("task",), f"{reason}; {fix}, or remove the term")
    if pairs and "cross_entropy" in recipe.loss:
        reason = "imitates the worse answers of pairs too"
        yield Problem(
            ("loss", "cross_entropy"), f"{reason}; write orpo: {{coef: 0}}, which takes the better ones"
        )
    yield from _sampled_problems(recipe, pairs)
    if given and not pairs:
        reason = f"are compared by no term of the loss ({', '.join(recipe.loss)})"
        yield Problem(("task", "pairs"), f"{reason}; add one such as dpo, or set task: {{data: FILE}}")
    if given and recipe.rollout.sampled:
        yield Problem(
            ("rollout", "engine"), "transformers would sample, and pairs are replayed; set engine: dataset"
        )
    if pairs and over != "pairs":
        yield Problem(("reduce", "over"), f"{over} would weigh a pair by its tokens; set over: pairs")
    if over == "pairs" and not pairs:
        yield Problem(("reduce", "over"), "pairs needs a loss of pairs, such as dpo; choose another")


def _sampled_problems(recipe: Recipe, pairs: list[str]) -> Iterator[Problem]:
    """Pairs that are made of what was sampled."""
    if not recipe.rollout.pairs:
        return
    if recipe.task.paired:
        yield Problem(("rollout", "pairs"), "is not used with a task of pairs; remove it")
    if not pairs:
        reason = f"makes pairs that no term of the loss ({', '.join(recipe.loss)}) compares"
        yield Problem(("rollout", "pairs"), f"{reason}; remove it, or add one such as dpo")
    if recipe.reward is None:
        yield Problem(("reward",), "is missing: rollout.pairs compares completions by it; e.g. reward: gym")
    if recipe.group_size < 2:
        reason = "leaves nothing to compare a completion with"
        yield Problem(("group_size",), f"{recipe.group_size} {reason}; set 2 or more, or rollout.pairs: null")
    if "mask" in (recipe.select or {}):
        reason = "chooses the tokens of the loss, and so does rollout.pairs"
        yield Problem(("select", "mask"), f"{reason}; remove one of the two")


def critic_problems(recipe: Recipe) -> Iterator[Problem]:
    """What reads a critic needs one, one needs a reader, and learns from nothing but a loss of its own."""
    estimators = [binding.resolve(name) for name in recipe.advantage or {}]
    reads = streams(recipe) | {stream for function in estimators for stream in binding.streams_of(function)}
    of_critic = sorted(reads & OF_CRITIC)
    if of_critic and recipe.critic is None:
        yield Problem(
            ("critic",), f"is missing: {of_critic[0]} is read; set critic: {{}}, or remove the term"
        )
    if recipe.critic is not None and not of_critic:
        yield Problem(
            ("critic",), "is not used: nothing reads its values; remove it, or set advantage: {gae: {}}"
        )
    if recipe.critic is not None and of_critic and "value" not in reads:
        yield Problem(("loss",), "trains no critic, so that its values stay 0; add value: {coef: 0.5}")
    if recipe.critic is not None and recipe.critic.trunk == "shared" and recipe.critic.model is not None:
        yield Problem(("critic", "model"), "is not used with trunk: shared; remove it, or set trunk: own")
    per_token = [name for name in recipe.advantage or {} if binding.is_per_token(binding.resolve(name))]
    if per_token and getattr(recipe.task, "credit", "episode") == "turn":
        reason = f"gives credit by turn, and {per_token[0]} gives it token by token"
        yield Problem(("task", "credit"), f"{reason}; set credit: episode")
    first, *others = list(recipe.advantage or {}) or [""]
    for name in others:
        if "advantage" not in binding.streams_of(binding.resolve(name)):
            yield Problem(("advantage", name), f"does not change what {first} gives; keep one of the two")
