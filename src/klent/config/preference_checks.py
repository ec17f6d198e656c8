"""Preferences and critics: keys that need each other, and keys that nothing would read."""

from collections.abc import Iterator

from klent.config import binding
from klent.config.base import Settings
from klent.config.checks import streams
from klent.config.problems import Problem
from klent.config.recipe import Recipe
from klent.config.task import PairsSettings
from klent.streams.registry import OF_CRITIC, PER_COMPLETION


def pair_problems(recipe: Recipe) -> Iterator[Problem]:
    """A loss of pairs needs pairs, replayed, and a mean over them; and pairs need such a loss."""
    pairs = [name for name in recipe.loss if binding.sides_of(binding.resolve(name))]
    given, over = isinstance(recipe.task, PairsSettings), recipe.reduce.over
    if pairs and not given:
        reason = f"has no pairs, and the loss ({pairs[0]}) compares two answers to a prompt"
        yield Problem(("task",), f"{reason}; set task: {{pairs: FILE}}, or remove the term")
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
    first, *others = list(recipe.advantage or {}) or [""]
    for name in others:
        if "advantage" not in binding.streams_of(binding.resolve(name)):
            yield Problem(("advantage", name), f"does not change what {first} gives; keep one of the two")


OF_WRITERS = ("lora", "critic", "thermostat", "select", "weigh", "reference", "reward")
"""Sections that are about a policy that writes."""


def score_problems(recipe: Recipe) -> Iterator[Problem]:
    """What reads a score needs a reward model, and one is trained by nothing else."""
    reads, policy = streams(recipe), recipe.policy
    kind = ("policy", "kind")
    if not policy.scores:
        if "score" in reads:
            reader = next(n for n in recipe.loss if "score" in binding.streams_of(binding.resolve(n)))
            reason = f"causal_lm gives texts no score, and the loss ({reader}) reads one"
            yield Problem(kind, f"{reason}; set policy: {{kind: reward_model}}")
        if policy.centre_on is not None:
            yield Problem(("policy", "centre_on"), "is not used: causal_lm gives texts no score; remove it")
        return
    if "score" not in reads:
        reason = f"reward_model is trained by a loss of scores, and there is none ({', '.join(recipe.loss)})"
        yield Problem(kind, f"{reason}; set loss: {{bradley_terry: {{}}}}")
    if others := sorted(reads - PER_COMPLETION - {"mask"}):
        yield Problem(
            ("loss",),
            f"reads {others[0]}, and a reward model has no actions; remove that term, or train apart",
        )
    for section in OF_WRITERS:
        if getattr(recipe, section) is not None:
            yield Problem((section,), "is not used: a reward model samples nothing; remove it")
    yield from _eval_problems(recipe)


def _eval_problems(recipe: Recipe) -> Iterator[Problem]:
    """Keys of an evaluation that samples, where pairs are compared."""
    if recipe.eval is None:
        return
    plain: Settings = type(recipe.eval)()
    for key in ("reward", "temperatures", "same", "logits", "early_stop"):
        if getattr(recipe.eval, key) != getattr(plain, key):
            yield Problem(
                ("eval", key), "is not used: a reward model is measured on held-out pairs; remove it"
            )
