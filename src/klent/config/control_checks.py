"""What can be wrong with a recipe's controls of entropy: choices of tokens, and the thermostat."""

from collections.abc import Iterator

from klent.config import binding
from klent.config.checks import Problem
from klent.config.model import DatasetRollout, Recipe, Thermostat

#: the selector that makes what a shipped loss asks for
_MAKES = {"dropped": "clip_cov_tokens", "penalised": "kl_cov_tokens"}


def control_problems(recipe: Recipe) -> Iterator[Problem]:
    """Choices that nothing reads or nothing makes, and a thermostat without anything to turn."""
    yield from _select_problems(recipe)
    if recipe.thermostat is not None:
        yield from _target_problems(recipe.thermostat)
        yield from _steer_problems(recipe, recipe.thermostat)


def _select_problems(recipe: Recipe) -> Iterator[Problem]:
    select = recipe.select or {}
    asked = {name: sorted(binding.choices_of(binding.resolve(name))) for name in recipe.loss}
    read = {stream for streams in asked.values() for stream in streams}
    for stream, choice in select.items():
        if len(choice) != 1:
            yield Problem(("select", stream), f"takes one selector, has {len(choice)}; keep one")
        elif stream not in {"mask", *read}:
            reads = ", ".join(f"`{name}`" for name in sorted(read)) or "no choice of tokens"
            yield Problem(
                ("select", stream),
                f"is read by no term: the loss ({', '.join(recipe.loss)}) reads {reads}; rename or remove "
                "it, or call it `mask` to train on the chosen tokens alone",
            )
    for name, streams in asked.items():
        for stream in streams:
            if stream not in select:
                maker = _MAKES.get(stream, "random_tokens: {fraction: 0.2}")
                line = f"select: {{{stream}: {{{maker if ':' in maker else maker + ': {}'}}}}}"
                yield Problem(
                    ("loss", name),
                    f"reads `{stream}`, a choice of tokens that nothing makes; add  {line}",
                )
    if recipe.reduce.count is not None:
        if "mask" not in select:
            why = "without select.mask every token is trained on"
            yield Problem(("reduce", "count"), f"is not used: {why}; remove it")
        elif recipe.reduce.over == "constant":
            yield Problem(("reduce", "count"), "is not used with over: constant, which counts no token")


def _target_problems(thermostat: Thermostat) -> Iterator[Problem]:
    path = ("thermostat", "target")
    given = thermostat.target.model_dump(exclude_none=True).keys()
    if given not in ({"value"}, {"fraction"}, {"start", "end", "steps"}):
        has = ", ".join(sorted(given)) or "nothing"
        yield Problem(
            path,
            f"should be a number, {{fraction:}} or {{start:, end:, steps:}}, one of the three; has {has}",
        )


def _steer_problems(recipe: Recipe, thermostat: Thermostat) -> Iterator[Problem]:
    path = ("thermostat", "steer")
    steer, start, low, high = (getattr(thermostat, key) for key in ("steer", "start", "low", "high"))
    if not low <= start <= high or low == high:
        yield Problem(
            ("thermostat",), f"start ({start:g}) should lie between low ({low:g}) and high ({high:g})"
        )
    if steer != "bonus" and low <= 0:
        yield Problem(("thermostat", "low"), f"{low:g} cannot be: {steer} is turned by a factor; above 0")
    if steer == "kl_cov_fraction" and high > 1:
        yield Problem(("thermostat", "high"), f"{high:g} cannot be: it is a fraction; at most 1")
    if steer == "bonus" and "entropy_loss" in recipe.loss:
        yield Problem(
            ("loss", "entropy_loss"), "is the term that the thermostat adds and sets; remove one of the two"
        )
    if steer == "temperature" and isinstance(recipe.rollout, DatasetRollout):
        yield Problem(path, "temperature cannot be: a data set's completions are not sampled")
    turned = {
        "clip_high": lambda: any("clip_high" in settings for settings in recipe.loss.values()),
        "kl_cov_fraction": lambda: any("kl_cov_tokens" in c for c in (recipe.select or {}).values()),
    }.get(steer)
    if turned is None:
        return
    if not turned():
        needed = {
            "clip_high": "no term of the loss has such a setting; use ppo_clip",
            "kl_cov_fraction": "there is none; add  select: {penalised: {kl_cov_tokens: {}}}, loss kl_cov",
        }[steer]
        yield Problem(path, f"{steer} cannot be turned: {needed}")
    elif recipe.update.epochs * recipe.update.minibatches == 1:
        yield Problem(
            path,
            f"{steer} changes nothing with one optimizer step a step, where every ratio is 1; set "
            "update.minibatches or update.epochs to 2 or more",
        )
