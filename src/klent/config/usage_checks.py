"""Keys that contradict each other, and keys that nothing would read."""

from collections.abc import Iterator

from klent.config import binding
from klent.config.checks import streams
from klent.config.layers import KeyPath
from klent.config.preference_checks import (
    adaptive_problems,
    critic_problems,
    pair_problems,
    score_problems,
)
from klent.config.problems import Problem
from klent.config.recipe import Recipe
from klent.config.rewards import WITHOUT_ANSWER
from klent.config.task import EnvironmentSettings, FileSettings, Game, PlaySettings, TrajectorySettings
from klent.config.training import ExactKL
from klent.config.value_checks import value_problems
from klent.objectives.kinds import whole_sequences
from klent.streams.sets import OF_MIXTURES


def usage_problems(recipe: Recipe) -> Iterator[Problem]:
    """What a valid recipe would do otherwise than its reader expects."""
    yield from _term_problems(recipe)
    yield from _rollout_problems(recipe)
    yield from _early_stop_problems(recipe)
    yield from _update_problems(recipe)
    yield from _precision_problems(recipe)
    yield from pair_problems(recipe)
    yield from critic_problems(recipe)
    yield from adaptive_problems(recipe)
    yield from score_problems(recipe)
    yield from value_problems(recipe)
    task = recipe.task
    if isinstance(task, FileSettings) and task.heldout and (task.heldout_data or task.heldout_split):
        yield Problem(("task", "heldout"), "is not used beside heldout_data or heldout_split; remove one")
    if isinstance(task, EnvironmentSettings):
        yield from _environment_problems(recipe, task)
    if recipe.eval is not None and recipe.eval.play is not None:
        yield from _play_problems(recipe, recipe.eval.play)


def _precision_problems(recipe: Recipe) -> Iterator[Problem]:
    """Arithmetic with digits that the weights do not have."""
    if recipe.precision.weights == "bfloat16" and recipe.precision.compute == "float32":
        reason = "float32 arithmetic on weights that were rounded to bfloat16 costs time and gains nothing"
        yield Problem(("precision", "compute"), f"{reason}; set compute: bfloat16, or weights: float32")


def _environment_problems(recipe: Recipe, task: EnvironmentSettings) -> Iterator[Problem]:
    """What an environment cannot be played with, and keys of it that nothing would read."""
    fixed = "an environment answers what the policy says, turn by turn"
    if not recipe.rollout.sampled:
        yield Problem(("rollout", "engine"), f"dataset replays completions, and {fixed}; remove it")
    if recipe.rollout.mixture is not None:
        reason = "answers prompts of one turn, so far; remove it"
        yield Problem(("rollout", "mixture"), reason)
    if recipe.update.released_code:
        yield Problem(("update", "released_code"), "knows episodes of one turn only; remove it")
    yield from _played_problems(recipe, task, ("task",))
    if task.heldout is not None and task.generated:
        reason = "is for rows of a file; seeds are held out as eval.problems says"
        yield Problem(("task", "heldout"), f"{reason}; remove it")
    if task.credit == "turn" and "advantage" not in streams(recipe):
        yield Problem(("task", "credit"), "is not used: no term of the loss reads an advantage; remove it")


def _play_problems(recipe: Recipe, play: PlaySettings) -> Iterator[Problem]:
    """A game to be judged in, where there is another or nothing that plays."""
    if not isinstance(recipe.task, TrajectorySettings):
        reason = "is for task: {trajectories: FILE}; this task has held-out problems of its own"
        yield Problem(("eval", "play"), f"{reason}; remove it")
    yield from _played_problems(recipe, play, ("eval", "play"))


def _played_problems(recipe: Recipe, game: Game, path: KeyPath) -> Iterator[Problem]:
    """What holds of every game, in training or in evaluation alone."""
    measured = recipe.eval.reward if recipe.eval else None
    for key, rewards in ((("reward",), recipe.reward), (("eval", "reward"), measured)):
        if any(reward.model_folder for reward in rewards or ()):
            reason = "a reward model reads a prompt and an answer, and would miss what is said between turns"
            yield Problem(key, f"{reason}; name a function, or remove it: the environment pays")
    most = recipe.rollout.max_tokens
    if game.turn_tokens is not None and game.turn_tokens > most:
        reason = (
            f"{game.turn_tokens} is more than rollout.max_tokens ({most}), which is for all turns together"
        )
        yield Problem((*path, "turn_tokens"), f"{reason}; raise that, or lower this")


def _update_problems(recipe: Recipe) -> Iterator[Problem]:
    update, reduce = recipe.update, recipe.reduce
    if update.released_code and (streams(recipe) - {"entropy", "mask"} or recipe.select or recipe.weigh):
        reason = "uses positions where nothing was sampled, which only a loss of the entropy can do"
        yield Problem(("update", "released_code"), f"{reason}; remove it, or see method em_released")
    if update.kl != ExactKL() and "kl" not in streams(recipe):
        yield Problem(("update", "kl"), "is not used: no term reads kl; remove it, or add e.g. token_kl")
    if reduce.denominator is not None and reduce.over != "constant":
        yield Problem(("reduce", "denominator"), f"is not used with over: {reduce.over}; remove it")
    if recipe.prompts_per_step % update.minibatches:
        yield Problem(
            ("update", "minibatches"),
            f"{update.minibatches} does not divide prompts_per_step ({recipe.prompts_per_step}); choose a "
            "divisor: every optimizer step uses the same number of prompts",
        )


def _term_problems(recipe: Recipe) -> Iterator[Problem]:
    mixture = recipe.rollout.mixture
    if not recipe.loss and not (mixture and mixture.distill):
        yield Problem(("loss",), "has no term; name one, e.g. loss: {ppo_clip: {}}, or a method")
        return
    for name in recipe.advantage or {}:
        if recipe.group_size < 2 and "group" in binding.streams_of(binding.resolve(name)):
            reason = f"leaves {name} no other completion of the prompt to compare with"
            fix = "set 2 or more, or advantage: null"
            yield Problem(("group_size",), f"{recipe.group_size} {reason}; {fix}")
    reads = streams(recipe)
    mixed = mixture is not None and mixture.target.model == "reference"
    measured = not recipe.policy.language  # then its divergence is measured at every step
    if recipe.reference is not None and not reads & {"logp_ref", "kl", "weight"} and not (mixed or measured):
        yield Problem(
            ("reference",),
            "is not used: no term reads logp_ref, kl or weight; remove it, or add e.g. kl_in_loss",
        )
    if "observed" in reads and recipe.rollout.sampled and not recipe.task.pays:
        reason = "is of what is said between turns, and an answer to a prompt is one turn"
        yield Problem(("loss",), f"observation {reason}; remove it, or play an environment: task.env")
    yield from _mixture_problems(recipe, reads)
    yield from _sequence_problems(recipe)
    yield from _unsure_problems(recipe)
    yield from _reward_problems(recipe, weighted="advantage" in reads)


def _mixture_problems(recipe: Recipe, reads: set[str]) -> Iterator[Problem]:
    """Terms that read what only sampling from a mixture gives."""
    mixture = recipe.rollout.mixture
    for name in recipe.loss:
        lacking = sorted(binding.streams_of(binding.resolve(name)) & OF_MIXTURES) if mixture is None else []
        if lacking:
            fix = "set rollout.mixture, e.g. {target: NAME, alpha: 1.0}, which samples from the policy"
            yield Problem(("loss", name), f"reads {lacking[0]}, which there is only with a target; {fix}")
    if "divergence" in reads and (mixture is None or mixture.distill is None):
        fix = "set rollout.mixture.distill"
        yield Problem(("loss",), f"reads divergence, which nothing computes; {fix}")


def _sequence_problems(recipe: Recipe) -> Iterator[Problem]:
    """Terms that are about whole sequences read every token of them."""
    whole = [name for name in recipe.loss if whole_sequences(binding.resolve(name))]
    if whole and "mask" in (recipe.select or {}):
        reason = f"would take tokens out of the sequences that {whole[0]} is about"
        yield Problem(("select", "mask"), f"{reason}; remove one of the two")


def _unsure_problems(recipe: Recipe) -> Iterator[Problem]:
    """Rewards that know no answer."""
    unsure = [reward.fn for reward in recipe.reward or () if reward.fn in WITHOUT_ANSWER and reward.weight]
    if unsure and recipe.eval is not None and recipe.eval.reward is None:
        reason = f"is missing: {unsure[0]} knows no answer, so it cannot measure accuracy"
        yield Problem(("eval", "reward"), f"{reason}; set it, e.g. eval.reward: gym, or eval: null")
    if recipe.group_size < 2 and "empo" in unsure:
        yield Problem(
            ("group_size",), f"{recipe.group_size} leaves empo nothing to agree with; set 2 or more"
        )


def _reward_problems(recipe: Recipe, weighted: bool) -> Iterator[Problem]:
    """A reward or an advantage that is missing, or that nothing reads."""
    terms = ", ".join(recipe.loss)
    if weighted:
        if recipe.reward is None and not recipe.task.pays:
            reason = f"is missing: the loss ({terms}) weights tokens by an advantage"
            yield Problem(("reward",), f"{reason}; e.g. reward: gym")
        return
    for field, value in (("advantage", recipe.advantage), ("token_reward", recipe.token_reward)):
        if value:
            yield Problem(
                (field,), f"is not used: no term of the loss ({terms}) reads an advantage; remove it"
            )
    if recipe.reward is not None and recipe.eval is None and not recipe.rollout.sampled:
        reason = f"no term of the loss ({terms}) reads an advantage, and eval is null"
        yield Problem(("reward",), f"is not used: {reason}; remove it, or set eval: {{problems: 64}}")
    replayed = not recipe.rollout.sampled  # then the loss of held-out completions is measured
    judged = recipe.reward is not None or recipe.task.pays or replayed
    if recipe.eval is not None and not judged and recipe.eval.reward is None:
        yield Problem(("eval",), "needs a reward to tell right from wrong; set `reward`, or eval: null")


def _early_stop_problems(recipe: Recipe) -> Iterator[Problem]:
    if recipe.eval is None or recipe.eval.early_stop is None:
        return
    if recipe.task.paired and recipe.reward is None and recipe.eval.reward is None:
        reason = "reads answers to held-out prompts, and held-out pairs are compared without any"
        yield Problem(("eval", "early_stop"), f"{reason}; remove it, or set eval.reward")
    signal = recipe.eval.early_stop.signal
    if signal == "loss" and recipe.rollout.sampled:
        reason = "loss is that of held-out completions, which only rollout.engine=dataset has"
        yield Problem(("eval", "early_stop", "signal"), f"{reason}; use kept, agreement or entropy")
    if signal != "loss" and not recipe.judged:
        reason = f"{signal} is measured on answers that a reward judges, and there is none"
        yield Problem(("eval", "early_stop", "signal"), f"{reason}; use loss, or set eval.reward")
    if not recipe.eval.every:
        yield Problem(("eval", "early_stop"), "needs evaluations during training; set eval.every, e.g. 2")
    if signal in ("kept", "agreement") and recipe.eval.same is None:
        reason = f"needs to know which answers are equal for its signal, {signal}"
        yield Problem(("eval", "early_stop"), f"{reason}; set eval.same, e.g. number")
    if signal in ("kept", "agreement") and recipe.eval.samples < 2:
        reason = f"1 leaves {signal}, the signal of early_stop, nothing to compare"
        yield Problem(("eval", "samples"), f"{reason}; set 2 or more")


def _rollout_problems(recipe: Recipe) -> Iterator[Problem]:
    if recipe.rollout.sampled:
        return
    answers = len(recipe.task.completions) or 1
    if recipe.group_size != answers:
        has = "the two of a pair" if answers == 2 else "one completion per prompt"
        yield Problem(("group_size",), f"{recipe.group_size} must be {answers}: engine dataset has {has}")
    if recipe.task.generated and not recipe.task.pays:
        yield Problem(("task", "gym"), "has no completions that engine dataset could replay; use task.data")
    if "logp_gen" in streams(recipe):
        yield Problem(
            ("rollout", "engine"),
            "dataset has no sampler, but a term of the loss reads logp_gen; remove the term",
        )
