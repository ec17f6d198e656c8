"""What can be wrong with a recipe, said so that it can be put right: place, key, what, nearest valid key."""

import difflib
import typing
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from klent.config import binding
from klent.config.binding import nearest
from klent.config.layers import KeyPath, Layer
from klent.config.model import (
    TAGS,
    DatasetRollout,
    DataSettings,
    GymSettings,
    Recipe,
    Settings,
    TransformersRollout,
)
from klent.config.rewards import WITHOUT_ANSWER
from klent.errors import ConfigError

#: what other trainers call it
SYNONYMS = {
    "learning_rate": "optimizer.lr",
    "batch_size": "prompts_per_step",
    "train_batch_size": "prompts_per_step",
    "per_device_train_batch_size": "update.tokens_per_microbatch",
    "gradient_accumulation_steps": "update.tokens_per_microbatch",
    "num_generations": "group_size",
    "num_iterations": "update.epochs",
    "ppo_epochs": "update.epochs",
    "max_steps": "steps",
    "num_train_epochs": "steps",
    "max_completion_length": "rollout.max_tokens",
    "max_new_tokens": "rollout.max_tokens",
    "beta": "loss.kl_in_loss.coef",
    "kl_coef": "token_reward.kl_in_reward.coef",
    "epsilon": "loss.ppo_clip.clip_low",
    "epsilon_high": "loss.ppo_clip.clip_high",
    "entropy_coeff": "loss.entropy_loss.coef",
    "loss_type": "reduce.over",
    "scale_rewards": "advantage.group_advantage.scale",
    "report_to": "track",
    "dataset": "task.data",
    "model_name_or_path": "model",
    "max_grad_norm": "optimizer.max_grad_norm",
}


@dataclass(frozen=True)
class Problem:
    """One thing wrong: the key path it concerns, and a sentence."""

    path: KeyPath
    message: str


def refuse(problems: Iterable[Problem], layer: Layer) -> None:
    """Raise one ConfigError that lists every problem with its place, top to bottom; without any, return."""
    lines = []
    for problem in problems:
        key = ".".join(str(part) for part in problem.path)
        place = layer.place(problem.path)
        named = f"{key}: " if key and f": {key}=" not in place else ""
        lines.append((_position(place), f"  {place}: {named}{problem.message}"))
    if lines:
        title = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
        text = "\n".join(line for _, line in sorted(lines, key=lambda item: item[0]))
        raise ConfigError(f"{title} in the recipe:\n{text}")


def _position(place: str) -> tuple[str, int]:
    source, _, line = place.rpartition(":")
    return (source, int(line)) if line.isdigit() else (place, 0)


def key_path(item: Any) -> KeyPath:
    """Where pydantic found something, without the tags of unions."""
    return tuple(part for part in item["loc"] if part not in TAGS)


def without(values: dict[str, Any], paths: Iterable[KeyPath]) -> dict[str, Any]:
    """A copy of nested dicts that lacks the given keys."""
    copy = dict(values)
    for head, *rest in paths:
        if not rest:
            copy.pop(str(head), None)
        elif isinstance(copy.get(str(head)), dict):
            copy[str(head)] = without(copy[str(head)], [tuple(rest)])
    return copy


def shape_problems(error: ValidationError) -> Iterator[Problem]:
    """Pydantic's findings: unknown keys with the nearest valid one, wrong values with the value."""
    wrong: dict[KeyPath, list[str]] = {}
    got: dict[KeyPath, Any] = {}
    for item in error.errors():
        path = key_path(item)
        if item["type"] == "extra_forbidden":
            yield Problem(path, _unknown_key(path, [part for part in item["loc"] if part in TAGS]))
        elif item["type"] == "missing":
            yield Problem(path[:-1], f"`{path[-1]}` is missing; set it")
        else:
            path = _up_to_field(path)
            wrong.setdefault(path, []).append(_plain(item))
            got[path] = item["input"] if item["type"] != "value_error" else ...
    for path, messages in wrong.items():  # a union gives one message for each of its members
        hint = " (leave the key out to have its default)" if got[path] is None else ""
        value = "null" if got[path] is None else repr(got[path])
        found = "" if got[path] is ... else f"; got {value}{hint}"
        yield Problem(path, " or ".join(messages) + found)


def _plain(item: Any) -> str:
    if item["type"] == "string_pattern_mismatch":
        return "should hold only letters, digits, `.`, `_` and `-`, and begin with a letter or digit"
    message = str(item["msg"]).replace("Input should", "should")
    message = message.removeprefix("Value error, ").removeprefix("reward: ")
    message = message.replace("a valid tuple", "a list").replace("a valid dictionary", "a mapping")
    return message.partition(" or instance of ")[0]


def _up_to_field(path: KeyPath) -> KeyPath:
    """``path`` cut where it leaves the recipe's fields for the members of a union."""
    section: list[type[Settings]] = [Recipe]
    for depth, part in enumerate(path):
        fields = [option.model_fields[part] for option in section if part in option.model_fields]
        if not fields:
            return path[:depth]
        section = sections_in(fields[0].annotation)
    return path


def _unknown_key(path: KeyPath, tags: list[Any]) -> str:
    key = str(path[-1])
    section = _section(path[:-1], tags)
    for tag, sibling in TAGS.items():
        if tags and tag not in tags and issubclass(section, _family(sibling)) and key in sibling.model_fields:
            return f"is not used by a {tags[0]}, only by a {tag}; remove it"
    places = [dotted for dotted, _ in field_paths() if dotted.rpartition(".")[2] == key]
    if places:
        return f"unknown key here; did you mean `{places[0]}`?"
    if key in SYNONYMS:
        return f"unknown key; klent calls it `{SYNONYMS[key]}`"
    if near := nearest(key, section.model_fields):
        return f"unknown key{near}"
    names = {dotted.rpartition(".")[2]: dotted for dotted, _ in field_paths()}
    if close := difflib.get_close_matches(key, names, n=1, cutoff=0.75):
        return f"unknown key; did you mean `{names[close[0]]}`?"
    return f"unknown key; valid here: {', '.join(section.model_fields)}"


def _family(section: type[Settings]) -> tuple[type[Settings], ...]:
    return (
        (GymSettings, DataSettings)
        if section in (GymSettings, DataSettings)
        else (TransformersRollout, DatasetRollout)
    )


def _section(path: KeyPath, tags: list[Any]) -> type[Settings]:
    """The class of the section at ``path``."""
    section: type[Settings] = Recipe
    for part in path:
        if isinstance(part, str) and part in section.model_fields:
            options = sections_in(section.model_fields[part].annotation)
            section = next(
                (option for option in options if option in [TAGS.get(tag) for tag in tags]), options[0]
            )
    return section


def sections_in(annotation: Any) -> list[type[Settings]]:
    """Every section class inside a type, through unions, tuples and annotations."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return [annotation]
    return [found for argument in typing.get_args(annotation) for found in sections_in(argument)]


def field_paths(section: type[Settings] = Recipe, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every dotted key of a recipe with its pydantic field, sections flattened."""
    for name, field in section.model_fields.items():
        inner = sections_in(field.annotation)
        yield f"{prefix}{name}", field
        if name != "reward":
            for option in inner:
                yield from field_paths(option, f"{prefix}{name}.")


def describe_fields() -> Iterator[tuple[str, str, str]]:
    """Every key of a recipe as ``(dotted key, default, meaning)``."""
    for key, field in field_paths():
        yield key, _default(field), field.description or ""


def _default(field: Any) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None:
        return "null"
    if isinstance(value, Settings):
        return ""
    return str(list(value) if isinstance(value, tuple) else value)


def bind_terms(values: dict[str, Any], problems: list[Problem]) -> None:
    """Check the functions and settings of every term and selector, and fill in their defaults."""
    kinds: tuple[binding.Kind, ...] = ("loss", "token_reward", "advantage")
    for kind in kinds:
        terms = values.get(kind)
        if not isinstance(terms, dict):
            continue
        for name, settings in terms.items():
            if isinstance(settings, dict):
                terms[name] = _bind(kind, (kind, name), settings, problems)
    select = values.get("select")
    for stream, choice in select.items() if isinstance(select, dict) else ():
        for name, settings in choice.items() if isinstance(choice, dict) else ():
            if isinstance(settings, dict):
                choice[name] = _bind("selector", ("select", stream, name), settings, problems)


def _bind(
    kind: binding.Kind, path: KeyPath, settings: dict[str, Any], problems: list[Problem]
) -> dict[str, Any]:
    name = str(path[-1])
    valid = binding.shipped(kind)
    if ".py:" not in name and name not in valid:
        problems.append(Problem(path, _wrong_function(kind, name, valid)))
        return settings
    try:
        function = binding.resolve(name)
    except ConfigError as error:
        problems.append(Problem(path, str(error)))
        return settings
    filled, wrong = binding.check_settings(function, settings)
    for key, reason in wrong:
        problems.append(Problem((*path, key) if key else path, reason))
    if not wrong and (refusal := binding.try_out(kind, function, filled)):
        blamed = sorted((key for key in settings if key in refusal), key=refusal.index)
        problems.append(Problem((*path, *blamed[:1]), refusal))
    return filled


_SECTION = {"selector": "select"}


def _wrong_function(kind: binding.Kind, name: str, valid: Iterable[str]) -> str:
    listed = f"valid here: {', '.join(sorted(valid))}, or path.py:function"
    try:
        other = binding.kind_of(binding.resolve(name))
    except ConfigError:
        return f"klent.objectives has no such function{nearest(name, valid)}; {listed}"
    if other is None:
        return f"{name} estimates or selects, and cannot be a {kind}; {listed}"
    place = "select.NAME" if other == "selector" else other
    return f"{name} does not go under {_SECTION.get(kind, kind)} but under `{place}`; {listed}"


def usage_problems(recipe: Recipe) -> Iterator[Problem]:
    """Keys that contradict each other, and keys that nothing would read."""
    yield from _term_problems(recipe)
    yield from _rollout_problems(recipe)
    yield from _early_stop_problems(recipe)
    if recipe.update.released_code and (streams(recipe) - {"entropy", "mask"} or recipe.select):
        why = "takes positions at which nothing was sampled, so that only a loss of entropy makes sense there"
        yield Problem(("update", "released_code"), f"{why}; remove it, or see method em_released")
    task = recipe.task
    if isinstance(task, DataSettings) and task.heldout and (task.heldout_data or task.heldout_split):
        yield Problem(("task", "heldout"), "is not used beside heldout_data or heldout_split; remove one")
    if recipe.reduce.denominator is not None and recipe.reduce.over != "constant":
        yield Problem(("reduce", "denominator"), f"is not used with over: {recipe.reduce.over}; remove it")
    if recipe.prompts_per_step % recipe.update.minibatches:
        yield Problem(
            ("update", "minibatches"),
            f"{recipe.update.minibatches} does not divide prompts_per_step ({recipe.prompts_per_step}); "
            "choose a divisor, so that every optimizer step sees as many prompts",
        )


def _term_problems(recipe: Recipe) -> Iterator[Problem]:
    mixture = recipe.rollout.mixture if isinstance(recipe.rollout, TransformersRollout) else None
    if not recipe.loss and not (mixture and mixture.distill):
        yield Problem(("loss",), "has no term; name one, e.g. loss: {ppo_clip: {}}, or a method")
        return
    if len(recipe.advantage or {}) > 1:
        yield Problem(("advantage",), "takes one estimator; remove the others")
    for name in recipe.advantage or {}:
        if recipe.group_size < 2 and "group" in binding.streams_of(binding.resolve(name)):
            why = f"leaves {name} no other completion of the prompt to compare with"
            yield Problem(("group_size",), f"{recipe.group_size} {why}; set 2 or more, or advantage: null")
    reads = streams(recipe)
    mixed = mixture is not None and mixture.target.model == "reference"
    if recipe.reference is not None and "logp_ref" not in reads and not mixed:
        yield Problem(
            ("reference",), "is not used: no term reads logp_ref; remove it, or add e.g. kl_in_loss"
        )
    yield from _reward_problems(recipe, weighted="advantage" in reads)


def _reward_problems(recipe: Recipe, weighted: bool) -> Iterator[Problem]:
    terms = ", ".join(recipe.loss)
    unsure = [reward.fn for reward in recipe.reward or () if reward.fn in WITHOUT_ANSWER and reward.weight]
    if unsure and recipe.eval is not None and recipe.eval.reward is None:
        why = f"is needed: {unsure[0]} knows no answer, so that accuracy by it would not be accuracy"
        yield Problem(("eval", "reward"), f"{why}; set it, e.g. eval.reward: gym, or eval: null")
    if recipe.group_size < 2 and "empo" in unsure:
        why = f"{recipe.group_size} leaves empo nothing to agree with"
        yield Problem(("group_size",), f"{why}; set 2 or more")
    if weighted and recipe.reward is None:
        yield Problem(
            ("reward",), f"is missing: the loss ({terms}) weighs tokens by an advantage; e.g. reward: gym"
        )
    if weighted:
        return
    for field in ("advantage", "token_reward"):
        if getattr(recipe, field):
            yield Problem(
                (field,), f"is not used: no term of the loss ({terms}) reads an advantage; remove it"
            )
    own = recipe.eval is not None and recipe.eval.reward is not None
    if recipe.reward is not None and recipe.eval is None and isinstance(recipe.rollout, DatasetRollout):
        why = f"no term of the loss ({terms}) reads an advantage, and eval is null"
        yield Problem(("reward",), f"is not used: {why}; remove it, or set eval: {{problems: 64}}")
    if recipe.reward is None and recipe.eval is not None and not own:
        yield Problem(("eval",), "needs a reward to tell right from wrong; set `reward`, or eval: null")


def _early_stop_problems(recipe: Recipe) -> Iterator[Problem]:
    if recipe.eval is None or recipe.eval.early_stop is None:
        return
    signal = recipe.eval.early_stop.signal
    if not recipe.eval.every:
        yield Problem(("eval", "early_stop"), "needs evaluations to look at; set eval.every, e.g. 2")
    if signal in ("kept", "agreement") and recipe.eval.same is None:
        why = f"needs to know which answers are the same for its signal, {signal}"
        yield Problem(("eval", "early_stop"), f"{why}; set eval.same, e.g. number")
    if signal in ("kept", "agreement") and recipe.eval.samples < 2:
        yield Problem(("eval", "samples"), f"1 leaves {signal}, the signal of early_stop, nothing to compare")


def _rollout_problems(recipe: Recipe) -> Iterator[Problem]:
    if not isinstance(recipe.rollout, DatasetRollout):
        return
    if recipe.group_size != 1:
        why = "engine dataset has one completion for each prompt"
        yield Problem(("group_size",), f"{recipe.group_size} cannot be: {why}; set 1")
    if isinstance(recipe.task, GymSettings):
        yield Problem(("task", "gym"), "has no completions that engine dataset could replay; use task.data")
    if "logp_gen" in streams(recipe):
        yield Problem(("rollout", "engine"), "dataset has no sampler, but a term of the loss reads logp_gen")


def streams(recipe: Recipe) -> set[str]:
    """Everything that a recipe's terms and selectors read of a token: `logp`, `logp_ref`, `advantage`, ..."""
    selectors = [name for choice in (recipe.select or {}).values() for name in choice]
    names = [*recipe.loss, *(recipe.token_reward or {}), *selectors]
    return {stream for name in names for stream in binding.streams_of(binding.resolve(name))}
