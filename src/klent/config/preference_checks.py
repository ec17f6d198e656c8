"""Preferences, critics and an adaptive KL: keys that need each other, and keys that nothing would read."""

from collections.abc import Iterator

from klent.config import binding
from klent.config.base import Settings
from klent.config.checks import streams
from klent.config.problems import Problem
from klent.config.recipe import Recipe
from klent.streams.sets import OF_CRITIC, PER_COMPLETION


def pair_problems(recipe: Recipe) -> Iterator[Problem]:
    """A loss of pairs needs whole pairs, and a mean over them; and pairs need such a loss."""
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
    yield from _part_problems(recipe, pairs)
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


def _part_problems(recipe: Recipe, pairs: list[str]) -> Iterator[Problem]:
    """What chooses or weighs tokens, where two answers are compared whole."""
    if not pairs or recipe.policy.scores:
        return
    compares = f"and {pairs[0]} compares whole answers"
    if "mask" in (recipe.select or {}) and not recipe.rollout.pairs:
        yield Problem(("select", "mask"), f"takes tokens out, {compares}; remove it")
    for name in pairs:
        if name in (recipe.weigh or {}):
            yield Problem(("weigh", name), f"weighs tokens, and {name} compares whole answers; remove it")
    mixture = recipe.rollout.mixture
    if recipe.rollout.mismatch is not None:
        yield Problem(("rollout", "mismatch"), f"weighs or drops tokens, {compares}; remove it")
    if mixture is not None and mixture.weights is not None:
        yield Problem(("rollout", "mixture", "weights"), f"weighs tokens, {compares}; set weights: null")


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
    yield from _estimator_problems(recipe)


def _estimator_problems(recipe: Recipe) -> Iterator[Problem]:
    """The first estimator rates what happened, and each other one changes what it gives."""
    if not recipe.advantage:
        return
    first, *others = recipe.advantage
    function = binding.resolve(first)
    if "advantage" in binding.streams_of(function):
        reason = "changes advantages, and nothing before it gives any"
        example = f"{{group_advantage: {{}}, {first}: {{}}}}"
        yield Problem(("advantage", first), f"{reason}; put an estimator before {first}, e.g. {example}")
        return
    if binding.is_per_token(function) and getattr(recipe.task, "credit", "episode") == "turn":
        reason = f"gives credit by turn, and {first} gives it token by token"
        yield Problem(("task", "credit"), f"{reason}; set credit: episode")
    for name in others:
        if "advantage" not in binding.streams_of(binding.resolve(name)):
            yield Problem(("advantage", name), f"does not change what {first} gives; keep one of the two")


def kl_terms(recipe: Recipe) -> list[tuple[str, str]]:
    """Where terms stand that hold the policy to its reference by a coefficient."""
    sections = {"loss": recipe.loss, "token_reward": recipe.token_reward or {}}
    return [
        (section, name)
        for section, terms in sections.items()
        for name, settings in terms.items()
        if {"logp_ref", "kl"} & binding.streams_of(binding.resolve(name)) and "coef" in settings
    ]


def adaptive_problems(recipe: Recipe) -> Iterator[Problem]:
    """An adaptive KL turns one coefficient above 0, of a KL that its step measures."""
    settings = recipe.adaptive_kl
    if settings is None:
        return
    found = [f"{section}.{name}" for section, name in kl_terms(recipe)]
    if len(found) != 1:
        have = f"there are {len(found)}: {', '.join(found)}; keep one" if found else "there is none"
        example = "" if found else "; add e.g. token_reward: {kl_in_reward: {coef: 0.05}}"
        yield Problem(
            ("adaptive_kl",), f"turns the coefficient of one KL to the reference, and {have}{example}"
        )
        return
    section, name = kl_terms(recipe)[0]
    terms = recipe.loss if section == "loss" else recipe.token_reward or {}
    if "logp_ref" not in streams(recipe) and name not in ("sequence_kl", "sequence_kl_loss"):
        reason = f"is of completions, and {name} measures none: tokens alone"
        yield Problem(("adaptive_kl",), f"{reason}; use sequence_kl, kl_in_loss or kl_in_reward")
    if recipe.update.kl.divergence != "reverse" or recipe.update.kl.skew:
        yield Problem(
            ("update", "kl"), "is another divergence than adaptive_kl aims at; remove one of the two"
        )
    if terms[name].get("coef") == 0:
        yield Problem((section, name, "coef"), "is 0, and adaptive_kl multiplies it; start above 0")
    if not recipe.rollout.sampled or recipe.rollout.mixture is not None:
        yield Problem(("adaptive_kl",), "needs completions that the policy itself samples; remove it")
    completions = recipe.prompts_per_step * recipe.group_size
    if settings.horizon < completions:
        yield Problem(
            ("adaptive_kl", "horizon"),
            f"{settings.horizon} is less than a step's {completions} completions, so that one step turns the "
            "coefficient by more than 20 %; set more",
        )


OF_WRITERS = ("lora", "critic", "thermostat", "select", "weigh", "reference", "reward")
"""Sections that are about a policy that writes."""


def score_problems(recipe: Recipe) -> Iterator[Problem]:
    """What reads a score needs a reward model, and one is trained by nothing else."""
    reads, policy = streams(recipe), recipe.policy
    kind = ("policy", "kind")
    if not policy.scores:
        if "score" in reads:
            reader = next(n for n in recipe.loss if "score" in binding.streams_of(binding.resolve(n)))
            reason = f"{policy.kind} gives texts no score, and the loss ({reader}) reads one"
            yield Problem(kind, f"{reason}; set policy: {{kind: reward_model}}")
        yield from _unanswered_problems(recipe)
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
    if recipe.update.keep_logits != "auto":
        yield Problem(("update", "keep_logits"), "is not used: a reward model has no logits; remove it")
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


def _unanswered_problems(recipe: Recipe) -> Iterator[Problem]:
    """Keys about the answers to held-out problems, where nothing judges any and so none is sampled."""
    settings = recipe.eval
    if settings is None or recipe.rollout.sampled:  # then a missing reward is refused, see `_reward_problems`
        return
    if recipe.judged:
        return
    plain: Settings = type(settings)()
    for key in ("samples", "temperatures", "same", "logits"):
        if getattr(settings, key) != getattr(plain, key):
            reason = "is not used: without a reward no held-out problem is answered"
            yield Problem(("eval", key), f"{reason}; set eval.reward, or remove it")
