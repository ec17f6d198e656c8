"""Keys that a recipe does not have and values of the wrong type: said with the nearest valid key or value."""

import typing
from collections.abc import Iterable, Iterator, Mapping

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from klent.config.base import Settings, Yaml
from klent.config.fields import field_paths, section_at, sections_in, up_to_field
from klent.config.layers import KeyPath
from klent.config.policy import POLICIES
from klent.config.problems import Problem
from klent.config.recipe import TAGS
from klent.config.rollout import ROLLOUTS
from klent.config.task import TASKS
from klent.kit.names import closest, nearest

#: what other trainers, or peft, call it
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
    "logger": "track",
    "wandb": "track",
    "tensorboard": "track",
    "use_peft": "lora",
    "peft_config": "lora",
    "dataset": "task.data",
    "model_name_or_path": "model",
    "max_grad_norm": "optimizer.max_grad_norm",
    "r": "lora.rank",
    "lora_r": "lora.rank",
    "lora_alpha": "lora.alpha",
    "lora_dropout": "lora.dropout",
    "dtype": "precision",
    "torch_dtype": "precision",
    "bf16": "precision",
    "fp16": "precision",
    "mixed_precision": "precision",
}
_ONE = "a run uses one GPU for each process: torchrun --nproc-per-node N -m klent train RECIPE starts N"
_SAMPLER = "what samples is `rollout.engine`: transformers, or vllm in the process that trains"
#: what a recipe does not decide, and who does
ELSEWHERE = {
    "device_map": "a run is on one device: set device: cuda:N",
    "num_gpus": _ONE,
    "n_gpus_per_node": _ONE,
    "vllm": _SAMPLER,
    "use_vllm": _SAMPLER,
    "backend": _SAMPLER,
    "output_dir": "a run's folder is RUNS/NAME: set `name`, or pass --runs RUNS",
}
#: engines of other trainers that a recipe may ask for
FOREIGN_ENGINES = ("sglang", "hf", "tgi")


def key_path(item: ErrorDetails) -> KeyPath:
    """The key path of one of pydantic's errors, without the tags of unions."""
    return tuple(part for part in item["loc"] if part not in TAGS)


def without(values: Mapping[str, Yaml], paths: Iterable[KeyPath]) -> dict[str, Yaml]:
    """A copy of nested dicts that lacks the given keys."""
    copy = dict(values)
    for head, *rest in paths:
        inner = copy.get(str(head))
        if not rest:
            copy.pop(str(head), None)
        elif isinstance(inner, dict):
            copy[str(head)] = without(inner, [tuple(rest)])
    return copy


def shape_problems(error: ValidationError) -> Iterator[Problem]:
    """Pydantic's errors: unknown keys with the nearest valid one, wrong values with the value."""
    messages: dict[KeyPath, list[str]] = {}
    values: dict[KeyPath, object] = {}
    for item in error.errors():
        path = key_path(item)
        if item["type"] == "extra_forbidden":
            yield Problem(path, _unknown_key(path, [str(part) for part in item["loc"] if part in TAGS]))
        elif item["type"] == "missing":
            yield Problem(path[:-1], f"`{path[-1]}` is missing; set it")
        else:
            path, _ = up_to_field(path)
            messages.setdefault(path, []).append(_plain(item))
            values[path] = item["input"] if item["type"] != "value_error" else ...
    for path, options in messages.items():  # a union gives one message for each of its members
        yield Problem(path, " or ".join(options) + _value_and_hint(path, values[path]))


def _plain(item: ErrorDetails) -> str:
    if item["type"] == "string_pattern_mismatch":
        return "should hold only letters, digits, `.`, `_` and `-`, and begin with a letter or digit"
    message = item["msg"].replace("Input should", "should")
    message = message.removeprefix("Value error, ").removeprefix("reward: ")
    message = message.replace("a valid tuple", "a list").replace("a valid dictionary", "a mapping")
    return message.partition(" or instance of ")[0]


def _value_and_hint(path: KeyPath, value: object) -> str:
    """What was written instead, and what to write."""
    if value is ...:
        return ""
    if value is None:
        return "; got null (leave the key out to have its default)"
    key = ".".join(map(str, path))
    _, field = up_to_field(path)
    annotation = field.annotation if field else None
    optional = sections_in(annotation) and type(None) in typing.get_args(annotation)
    if value is False and optional:
        return f"; got False. Write {key}=null to switch it off"
    if (value is True and sections_in(annotation)) or (isinstance(value, str | int | float) and optional):
        return f"; got {value!r}. Write {key}={{}} for the defaults, or set a key of it: {key}.KEY=VALUE"
    of_any_length = "tuple[" in str(annotation) and ", ...]" in str(annotation)
    if isinstance(value, str | int | float) and of_any_length and not sections_in(annotation):
        choices = _choices(annotation)
        if choices and value not in choices:
            return f"; got {value!r}. Name some of {', '.join(choices)}, e.g. {key}=[{choices[0]}], or none: {key}=[]"
        return f"; got {value!r}. Write {key}=[{value}]"
    if key == "rollout" and isinstance(value, dict) and value.get("engine") in FOREIGN_ENGINES:
        engine = value["engine"]
        return f"; got {engine!r}. klent samples with transformers (remove rollout.engine) or with vllm"
    return f"; got {value!r}"


def _choices(annotation: object) -> tuple[str, ...]:
    """The texts of the first `Literal` in a type; none if it has none."""
    if typing.get_origin(annotation) is typing.Literal:
        return tuple(map(str, typing.get_args(annotation)))
    inner = (_choices(part) for part in typing.get_args(annotation))
    return next((found for found in inner if found), ())


def _unknown_key(path: KeyPath, tags: list[str]) -> str:
    key = str(path[-1])
    section = section_at(path[:-1], tags)
    mine = next((tag for tag in tags if TAGS[tag] is section), None)
    for tag, sibling in TAGS.items():
        if mine and tag != mine and section in _union_of(sibling) and key in sibling.model_fields:
            return f"is not used by a {mine}, only by a {tag}; remove it"
    if key in SYNONYMS and len(path) == 1:  # what another trainer means by it, and not a key of some section
        return f"unknown key; klent calls it `{SYNONYMS[key]}`"
    homonyms = [dotted for dotted, _ in field_paths() if dotted.rpartition(".")[2] == key]
    if homonyms:
        return f"unknown key here; did you mean `{homonyms[0]}`?"
    if key in SYNONYMS:
        return f"unknown key; klent calls it `{SYNONYMS[key]}`"
    if key in ELSEWHERE:
        return f"unknown key; {ELSEWHERE[key]}"
    if near := nearest(key, section.model_fields):
        return f"unknown key{near}"
    dotted_keys = {dotted.rpartition(".")[2]: dotted for dotted, _ in field_paths()}
    if close := closest(key, dotted_keys, cutoff=0.75):
        return f"unknown key; did you mean `{dotted_keys[close]}`?"
    return f"unknown key; valid here: {', '.join(section.model_fields)}"


def _union_of(section: type[Settings]) -> list[type[Settings]]:
    """The members of the union that a tagged section belongs to."""
    unions = (TASKS, ROLLOUTS, POLICIES)
    return next((list(union.values()) for union in unions if section in union.values()), [])
