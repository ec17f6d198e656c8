"""What can be wrong with a recipe's controls of entropy: choices of tokens, and the thermostat."""

from collections.abc import Iterator, Mapping

from klent.config import binding, checks
from klent.config.layers import KeyPath
from klent.config.problems import Problem
from klent.config.recipe import Recipe
from klent.config.thermostat import STEERED, EntropyBand, EntropyTarget, Thermostat
from klent.objectives.kinds import whole_sequences

#: the selector that makes the choice of tokens which a shipped loss reads
_MAKERS = {"dropped": "clip_cov_tokens: {}", "penalised": "kl_cov_tokens: {}"}


def control_problems(recipe: Recipe) -> Iterator[Problem]:
    """Choices of tokens that nothing reads or makes, weights of no term, and a thermostat with nothing to adjust."""
    yield from _select_problems(recipe)
    yield from _weigh_problems(recipe)
    yield from _count_problems(recipe)
    if recipe.thermostat is not None:
        yield from _target_problems(recipe.thermostat)
        if recipe.thermostat.steer == "sign":
            yield from _sign_problems(recipe, recipe.thermostat)
        else:
            yield from _range_problems(recipe.thermostat)
            yield from _steer_problems(recipe, recipe.thermostat)


def _select_problems(recipe: Recipe) -> Iterator[Problem]:
    select = recipe.select or {}
    choices = {name: sorted(binding.choices_of(binding.resolve(name))) for name in recipe.loss}
    yield from _unread_problems(select, choices)
    for name, streams in choices.items():
        for stream in streams:
            if stream not in select:
                line = f"select: {{{stream}: {{{_MAKERS.get(stream, 'random_tokens: {fraction: 0.2}')}}}}}"
                yield Problem(
                    ("loss", name),
                    f"reads `{stream}`, a choice of tokens that nothing makes; add  {line}",
                )


def _unread_problems(
    select: Mapping[str, Mapping[str, object]], choices: Mapping[str, list[str]]
) -> Iterator[Problem]:
    """Entries of ``select`` that no term of the loss reads; ``choices`` holds what each term does read."""
    streams = {stream for names in choices.values() for stream in names}
    for stream, selectors in select.items():
        if len(selectors) != 1:
            yield Problem(("select", stream), f"takes one selector, has {len(selectors)}; keep one")
        elif stream not in {"mask", *streams}:
            reads = ", ".join(f"`{name}`" for name in sorted(streams)) or "no choice of tokens"
            yield Problem(
                ("select", stream),
                f"is read by no term: the loss ({', '.join(choices)}) reads {reads}; rename or remove it, or "
                "call it `mask` to train on the chosen tokens only",
            )


def _weigh_problems(recipe: Recipe) -> Iterator[Problem]:
    for term, weights in (recipe.weigh or {}).items():
        if len(weights) != 1:
            yield Problem(("weigh", term), f"takes one weight, has {len(weights)}; keep one")
        elif term not in recipe.loss:
            reason = f"is no term of the loss, which has {', '.join(recipe.loss)}"
            yield Problem(("weigh", term), f"{reason}; put the weight under the term that it multiplies")
        elif whole_sequences(binding.resolve(term)):
            reason = f"{term} is exact for whole sequences, which weights of tokens would undo"
            yield Problem(("weigh", term), f"{reason}; weigh another term")


def _count_problems(recipe: Recipe) -> Iterator[Problem]:
    if recipe.reduce.count is None:
        return
    if "mask" not in (recipe.select or {}):
        reason = "without select.mask every token is trained on"
        yield Problem(("reduce", "count"), f"is not used: {reason}; remove it")
    elif recipe.reduce.over == "constant":
        reason = "is not used with over: constant, which does not count tokens"
        yield Problem(("reduce", "count"), f"{reason}; remove it")


def _target_problems(thermostat: Thermostat) -> Iterator[Problem]:
    """What it aims at: a band where it steers by sign, a target elsewhere, each edge of one kind."""
    band, target = thermostat.band, thermostat.target
    by_sign = thermostat.steer == "sign"
    if by_sign and band is None:
        yield Problem(("thermostat",), "`band` is missing; set it, e.g. band: {low: 0.4, high: 0.5}")
    if not by_sign and target is None:
        yield Problem(("thermostat",), "`target` is missing; set it")
    if by_sign and target is not None:
        yield Problem(("thermostat", "target"), "is not used: steer sign holds a band; set target: null")
    if not by_sign and band is not None:
        yield Problem(("thermostat", "band"), "is not used: only steer sign holds a band; set band: null")
    aims: list[tuple[KeyPath, EntropyTarget]] = [] if target is None else [(("target",), target)]
    if band is not None:
        aims += [(("band", "low"), band.low), (("band", "high"), band.high)]
    for path, aim in aims:
        if not aim.complete:
            has = ", ".join(sorted(aim.model_dump(exclude_none=True))) or "nothing"
            yield Problem(
                ("thermostat", *path),
                f"should be one of a number, {{fraction:}} or {{start:, end:, steps:}}; has {has}",
            )
    if band is not None and band.low.complete and band.high.complete:
        yield from _band_problems(band)


def _band_problems(band: EntropyBand) -> Iterator[Problem]:
    """Edges that cross; those of which one is a fraction can be compared only as the run goes."""
    if (band.low.fraction is None) is not (band.high.fraction is None):
        return
    for step in sorted({1, band.low.steps or 1, band.high.steps or 1}):  # lines between these steps
        low, high = band.low.at(step, 1.0), band.high.at(step, 1.0)
        if low >= high:
            reason = f"low ({low:g}) should lie below high ({high:g}), and does not at step {step}"
            yield Problem(("thermostat", "band"), reason)
            return


def _sign_problems(recipe: Recipe, thermostat: Thermostat) -> Iterator[Problem]:
    """Advantages to choose from, an entropy to choose by, and no setting of the other controllers."""
    path = ("thermostat", "steer")
    for key, value in STEERED["sign"].items():
        if getattr(thermostat, key) != value:
            yield Problem(("thermostat", key), "is not used: steer sign has no gains or bounds; remove it")
    if "advantage" not in checks.streams(recipe):
        terms = ", ".join(recipe.loss)
        yield Problem(path, f"sign chooses among advantages, and no term of the loss ({terms}) reads them")
    if not recipe.rollout.sampled:
        reason = "sign needs the entropy of sampled completions, and those of a data set were not sampled"
        yield Problem(path, f"{reason}; use another engine")


def _range_problems(thermostat: Thermostat) -> Iterator[Problem]:
    steer, start, low, high = thermostat.steer, thermostat.start, thermostat.low, thermostat.high
    if not low <= start <= high or low == high:
        yield Problem(
            ("thermostat",), f"start ({start:g}) should lie between low ({low:g}) and high ({high:g})"
        )
    if steer != "bonus" and low <= 0:
        reason = f"{steer} is scaled multiplicatively"
        yield Problem(("thermostat", "low"), f"{low:g} must be > 0: {reason}; e.g. {1e-3:g}")
    if steer == "kl_cov_fraction" and high > 1:
        yield Problem(("thermostat", "high"), f"{high:g} must be <= 1: kl_cov_fraction is a fraction; e.g. 1")


def _steer_problems(recipe: Recipe, thermostat: Thermostat) -> Iterator[Problem]:
    path, steer = ("thermostat", "steer"), thermostat.steer
    if steer == "bonus" and "entropy_loss" in recipe.loss:
        yield Problem(
            ("loss", "entropy_loss"), "is the term that the thermostat adds and sets; remove one of the two"
        )
    if steer == "temperature" and not recipe.rollout.sampled:
        yield Problem(
            path, "temperature cannot be adjusted: the completions of a data set are not sampled; use bonus"
        )
    missing = {
        "clip_high": "" if _has_clip_high(recipe) else "no term of the loss has such a setting; use ppo_clip",
        "kl_cov_fraction": ""
        if _has_kl_cov(recipe)
        else "there is none; add  select: {penalised: {kl_cov_tokens: {}}}, loss kl_cov",
    }
    if steer not in missing:
        return
    if missing[steer]:
        yield Problem(path, f"{steer} cannot be adjusted: {missing[steer]}")
    elif recipe.update.epochs * recipe.update.minibatches == 1:
        yield Problem(
            path,
            f"{steer} has no effect with one optimizer step per step, where every ratio is 1; set "
            "update.minibatches or update.epochs to 2 or more",
        )


def _has_clip_high(recipe: Recipe) -> bool:
    return any("clip_high" in settings for settings in recipe.loss.values())


def _has_kl_cov(recipe: Recipe) -> bool:
    return any("kl_cov_tokens" in selectors for selectors in (recipe.select or {}).values())
