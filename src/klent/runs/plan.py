"""What a recipe will do at each step, worked out before anything is loaded."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from klent.config import AdaptiveKL, Bellman, Critic, Distill, Mismatch, MixtureSettings, Recipe, Thermostat
from klent.config.binding import resolve, streams_of
from klent.config.load import read_values
from klent.config.task import KEYS
from klent.errors import ConfigError
from klent.kit.text import plural
from klent.objectives.kinds import whole_sequences
from klent.runs.device import says
from klent.runs.folder import run_of
from klent.runs.objective import asked_streams, step_requirements
from klent.training.requirements import ON_REQUEST, Requirements

_PAIRS = "pairs: of each prompt's completions the best by reward against the worst; equal rewards give none"
_ALWAYS_READ = {"mask", "rewards", "group"}  # not worth a line of the plan


@dataclass(frozen=True)
class Plan:
    """The work of a run.

    Attributes:
        completions: per step.
        updates: optimizer steps per step.
        terms: every function of the recipe with its settings, as ``kind: name(setting=value) reads a, b``.
        needs: the forward passes of a step beside the update's own.
        eval_completions: per evaluation; 0 without evaluation.
    """

    completions: int
    updates: int
    terms: tuple[str, ...]
    needs: Requirements
    eval_completions: int


def make_plan(recipe: Recipe) -> Plan:
    """The plan of a recipe."""
    return Plan(
        completions=recipe.prompts_per_step * recipe.group_size,
        updates=recipe.update.epochs * recipe.update.minibatches,
        terms=tuple(_terms(recipe)),
        needs=step_requirements(recipe),
        eval_completions=recipe.eval.problems * recipe.eval.samples if recipe.eval and recipe.judged else 0,
    )


def _terms(recipe: Recipe) -> list[str]:
    lines = []
    select = {f"select {stream}": choice for stream, choice in (recipe.select or {}).items()}
    select |= {f"weigh {term}": weight for term, weight in (recipe.weigh or {}).items()}
    kinds = {"advantage": recipe.advantage or {}, "token_reward": recipe.token_reward or {}}
    unsaid = _ALWAYS_READ | (ON_REQUEST - asked_streams(recipe))
    for kind, terms in {**kinds, **select, "loss": recipe.loss}.items():
        for name, settings in terms.items():
            values = ", ".join(f"{key}={value}" for key, value in settings.items())
            nothing = "nothing" if kind in select else "rewards"
            reads = ", ".join(sorted(streams_of(resolve(name)) - unsaid)) or nothing
            lines.append(f"{kind}: {name}({values}) reads {reads}")
    return lines


def _reduction(recipe: Recipe) -> str:
    over = recipe.reduce.over
    if "mask" not in (recipe.select or {}) or over == "constant":
        return f"reduce: over {over}"
    return f"reduce: over {over}, counting {recipe.reduce.count or 'selected'} tokens"


def _inexact(recipe: Recipe) -> list[str]:
    """Said where the average takes from a term what it is about: the sum over a whole completion."""
    whole = [name for name in recipe.loss if whole_sequences(resolve(name))] + list(recipe.token_reward or {})
    if not whole or recipe.reduce.over != "sequences":
        return []
    return [
        f"{whole[0]} under reduce: over sequences is exact only where completions are equally long; "
        "reduce.over=constant is exact"
    ]


def _thermostat(thermostat: Thermostat) -> str:
    steer, band = thermostat.steer, thermostat.band
    if band is not None:
        sides = "positive advantages alone above it, negative ones alone below"
        return f"thermostat: a band, low {band.low}, high {band.high}; {sides}"
    turned = "the coefficient of an entropy bonus" if steer == "bonus" else steer
    return f"thermostat: {thermostat.target}, by {turned} between {thermostat.low:g} and {thermostat.high:g}"


def _critic(critic: Critic, rate: float) -> str:
    if critic.trunk == "shared":
        layers = "a head on the policy's layers, which its loss moves too"
    else:
        layers = (
            f"layers of its own, trained whole, from {critic.model or 'the policy as it was at the start'}"
        )
    return f"critic: {layers}; learning rate {critic.lr or rate:g}"


def _rates(recipe: Recipe) -> str:
    lr = recipe.optimizer.lr
    own = [
        f", of {part.rstrip('.')} {rate:g}" for part, rate in recipe.policy.rates(lr).items() if rate != lr
    ]
    return f"{lr:g}{''.join(own)}"


def _adaptive_kl(adaptive: AdaptiveKL) -> str:
    aim = f"the KL of completions to {adaptive.target:g} nats, horizon {adaptive.horizon:,} completions"
    return f"adaptive KL: turns the coefficient of the KL to the reference, {aim}"


def _mixture(mixture: MixtureSettings) -> str:
    target, alpha, weights = mixture.target, mixture.alpha, mixture.weights
    changed = [name for name in ("prompt", "system", "adapter", "temperature") if getattr(target, name)]
    model = f"{target.model} with its own {', '.join(changed)}" if changed else target.model
    if alpha.criterion:
        share = alpha.criterion + (f" {alpha.value:g}" if alpha.value else "")
    elif alpha.fixed is not None:
        share = f"{alpha.fixed:g}"
    elif alpha.column is not None:
        share = f"per prompt, from column {alpha.column}"
    elif alpha.until_reward is not None:
        share = f"{alpha.start} to 1 as the policy's reward reaches {alpha.until_reward:g}"
    else:
        share = f"{alpha.start} to {alpha.end} over {plural(alpha.steps or 0, 'step')}"
    use = f"weighted by policy/mixture per {weights.ratio}" if weights else "used without weights"
    return f"sampled from: policy^alpha x target^(1 - alpha), target: {model}, alpha: {share}; {use}"


def _mismatch(mismatch: Mismatch) -> str:
    ratio, outside, low, high = mismatch.bounds
    beyond = "moved to the bound" if outside == "truncate" else "left out"
    return f"weighted by trainer/sampler per {ratio}, every term; a ratio outside [{low:g}, {high:g}] is {beyond}"


def _distance(kind: str, updates: int) -> str:
    name = "total variation" if kind == "tv" else "KL"
    measured = f"distance: {name} from the policy at the start of the step, over the whole vocabulary"
    if updates == 1:
        return (
            f"{measured}: 0 throughout, as a step has one optimizer step; set update.minibatches to 2 or more"
        )
    return f"{measured}: its forward pass on every completion, in each optimizer step but the first"


def _bellman(bellman: Bellman) -> str:
    if bellman.target == "constant":
        return f"weight: {bellman.weight:g} for every action, whatever it earned"
    if bellman.target == "returns":
        return "weight: what was earned from the turn on, as a value in [0, 1]"
    return (
        "weight: the turn's reward and the best of target network / reference that follows, among actions of at "
        f"least {bellman.min_behaviour:g}; a forward pass of each on every completion"
    )


def _distill(distill: Distill) -> str:
    terms = {"reverse": "KL(policy ‖ target)", "forward": "KL(target ‖ policy)", "jeffreys": "both KLs"}
    skewed = f" skewed by {distill.skew:g}" if distill.skew else ""
    unsure = ""
    if distill.forward_above is not None:
        unsure = (
            f", and KL(target ‖ policy) where the target's entropy is above {distill.forward_above:g} nats"
        )
    return f"divergence from the target, {terms[distill.divergence]}{skewed}{unsure}"


def _same_prompts(recipe: Recipe) -> list[str]:
    """Said where the model is another run's, which was trained on the prompts that this run will draw."""
    model: object = recipe.model
    seen: set[Path] = set()
    while isinstance(model, str) and (run := run_of(Path(model).expanduser())) and run.resolve() not in seen:
        seen.add(run.resolve())
        try:
            values = read_values(run / "config.yaml")
        except ConfigError:
            return []
        task = values.get("task")
        task = task if isinstance(task, Mapping) else {}
        its_seed = values.get("seed", 0) if task.get("seed") is None else task["seed"]
        own_seed = recipe.seed if recipe.task.seed is None else recipe.task.seed
        source = next((task[key] for key in KEYS if key in task), None)
        if its_seed == own_seed and _same_source(str(source), recipe.task.source):
            drawn = "other ones" if recipe.task.generated else "them in another order"
            seed = "seed" if recipe.task.seed is None else "task.seed"
            other = f"{seed}={own_seed + 1} draws {drawn}, and holds out others"
            if not recipe.task.generated and recipe.task.heldout_data is None:  # type: ignore[union-attr]
                other += ", which that run may have been trained on, unless task.heldout_data names them"
            return [f"prompts: from the first again, as {run} drew them (seed {own_seed}); {other}"]
        model = values.get("model")
    return []


def _same_source(one: str, other: str) -> bool:
    """Whether two tasks read the same generator, data set or file."""
    return one == other or (Path(one).is_file() and Path(other).is_file() and Path(one).samefile(other))


def title_of(recipe: Recipe) -> str:
    """``name · method · model``."""
    return f"{recipe.name} · {recipe.method or 'own objective'} · {recipe.model}"


def _steps(count: int) -> str:
    """``step``, ``2 steps``: behind "every"."""
    return "step" if count == 1 else plural(count, "step")


def _work(recipe: Recipe, completions: int) -> str:
    """What a step samples, or reads."""
    if not recipe.rollout.sampled:
        return f"{plural(completions, 'completion')} read from {recipe.task.source}"
    prompts, group = plural(recipe.prompts_per_step, "prompt"), plural(recipe.group_size, "completion")
    return f"{prompts} of {recipe.task.source} x {group}"


def describe_plan(recipe: Recipe) -> list[str]:
    """The plan in sentences, for ``--dry-run`` and for the first lines of a run."""
    plan = make_plan(recipe)
    budget = f"at most {plural(recipe.rollout.max_tokens, 'token')} each{recipe.task.extent}"
    reference = recipe.reference or "the policy as it was at the start"
    of_data = recipe.bellman is not None and recipe.bellman.target == "bellman"
    referred = plan.needs.reference or "kl" in plan.needs.also or of_data
    reference += "; each answer is measured once, and kept" if recipe.task.paired else ""
    mixture = recipe.rollout.mixture
    lines = [
        f"each step: {_work(recipe, plan.completions)}, {budget}",
        *_same_prompts(recipe),
        *([_mixture(mixture)] if mixture else []),
        *([_mismatch(recipe.rollout.mismatch)] if recipe.rollout.mismatch else []),
        *([_PAIRS] if recipe.rollout.pairs else []),
        *plan.terms,
        _reduction(recipe),
        *_inexact(recipe),
        *([_thermostat(recipe.thermostat)] if recipe.thermostat else []),
        *([_critic(recipe.critic, recipe.optimizer.lr)] if recipe.critic else []),
        *([_adaptive_kl(recipe.adaptive_kl)] if recipe.adaptive_kl else []),
        *([says(recipe.device, recipe.precision)] if recipe.policy.language else []),
        f"update: {plural(plan.updates, 'optimizer step')}, learning rate {_rates(recipe)}",
        f"reference model: {reference if referred else 'none (no term reads logp_ref or kl)'}",
    ]
    if plan.needs.old:
        readers = "rewards per token and the update" if recipe.token_reward else "several updates"
        readers = "weights for the sampler" if recipe.rollout.mismatch else readers
        values = "; the critic's values are read in it" if plan.needs.value_old else ""
        lines.append(
            f"log-probs at the start of the step: one more forward pass ({readers} use them){values}"
        )
    if "divergence" in plan.needs.also and mixture is not None and mixture.distill is not None:
        lines.append(f"{_distill(mixture.distill)}: its forward pass on every completion")
    if "kl" in plan.needs.also:
        kl = recipe.update.kl
        kind = f"exact KL to the reference ({kl.divergence}{f', skew {kl.skew:g}' if kl.skew else ''})"
        lines.append(f"{kind}: its forward pass on every completion, in each optimizer step")
    if recipe.bellman is not None:
        lines.append(_bellman(recipe.bellman))
    if recipe.update.distance is not None:
        lines.append(_distance(recipe.update.distance, plan.updates))
    if plan.needs.whole_groups:
        lines.append("a prompt's completions are read together: tokens_per_microbatch does not cut a group")
    if plan.needs.reselect:
        lines.append(
            "tokens are chosen again at every optimizer step: one more forward pass per step after the first"
        )
    if recipe.eval is not None:
        when = f" and every {_steps(recipe.eval.every)}" if recipe.eval.every else ""
        size = _evaluated(recipe)
        temperatures = recipe.eval.temperatures if recipe.judged else ()
        others = [f"at temperature {t:g}" if t else "greedily" for t in temperatures]
        also = f"; also {', '.join(others)}" if others else ""
        lines.append(f"evaluation: {size}, before, after{when}{also}")
    total = plural(recipe.steps * plan.completions, "completion")
    lines.append(f"in total: {plural(recipe.steps, 'step')}, {total}")
    return lines


def _evaluated(recipe: Recipe) -> str:
    """What an evaluation looks at: held-out pairs, problems that are answered, or both."""
    settings = recipe.eval
    assert settings is not None
    size = str(settings.problems) if recipe.task.generated else f"at most {settings.problems}"
    pairs = [f"{size} held-out pairs"] if recipe.task.paired else []
    asked = f"held-out starts of {settings.play.env}" if settings.play else "held-out problems"
    answered = [f"{size} {asked} x {settings.samples}"] if recipe.judged else []
    if recipe.bellman is not None and answered:
        form = "" if recipe.bellman.form == "ratio" else f", form {recipe.bellman.form}"
        answered[0] += f" by the player of beta {recipe.bellman.beta:g}{form}"
    replayed = not recipe.rollout.sampled and not recipe.task.paired
    losses = [f"the loss of at most {plural(settings.problems, 'held-out completion')}"] if replayed else []
    return ", ".join([*pairs, *answered, *losses])
