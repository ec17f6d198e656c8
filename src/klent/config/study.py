"""A study: recipes in one file, of which one may start where another ended, and what all are judged by."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Self, cast

from pydantic import Field, ValidationError, field_validator, model_validator

from klent.config.base import Count, NonNegative, Positive, PositiveInt, Settings, Yaml
from klent.config.evaluation import Rewards, list_rewards
from klent.config.layers import KeyPath, Layer, merge
from klent.config.load import locate_layer, overridden
from klent.config.shape_checks import key_path
from klent.config.task import Task
from klent.config.yaml_text import parse_overrides
from klent.errors import ConfigError
from klent.kit.names import nearest

STAGE = re.compile(r"\{([A-Za-z][A-Za-z0-9_-]*)\}")
KEYS = ("name", "common", "stages", "judge")
RESERVED = ("prompt", "answer", "base")  # braces elsewhere in a recipe, and the row that stages start from


class Judged(Settings):
    """Problems on which every stage is measured in the same way."""

    task: Task
    """Its held-out problems are solved."""
    reward: Rewards = ()
    """What scores the answers; an environment pays by itself."""
    others: Rewards = ()
    """Measured on the same answers and not added up, such as the proxy that was trained on."""
    best_of: Annotated[tuple[PositiveInt, ...], Field(strict=False)] = ()
    """Also the reward of the best of so many answers by the first of `others`; each at most `samples`."""
    problems: PositiveInt = 64
    """How many problems."""
    samples: PositiveInt = 4
    """Answers to each."""
    max_tokens: PositiveInt = 256
    """Longest answer, in tokens."""
    temperature: Positive = 1.0
    """Sampling temperature; the KL is between the distributions at it."""
    kl: bool = True
    """Measure the exact KL to the base along the stage's own answers, and along the base's."""

    @model_validator(mode="after")
    def _has_answers(self) -> Self:
        if not self.reward and not self.task.pays:
            raise ValueError("has no reward to score the answers; set one, such as reward: exact")
        if self.best_of and not self.others:
            raise ValueError(
                "best_of needs `others`, whose first reward chooses the best answer; set it, such as others: exact"
            )
        if self.best_of and max(self.best_of) > self.samples:
            raise ValueError(
                f"best_of {max(self.best_of)} needs as many samples, and samples is {self.samples}; raise it"
            )
        return self

    @field_validator("reward", "others", mode="before")
    @classmethod
    def _list_rewards(cls, value: object) -> object:
        return () if value in (None, []) else list_rewards(value)


class Texts(Settings):
    """Texts that every stage reads."""

    data: str
    """A .jsonl file, each line with a `text`."""


class Judge(Settings):
    """What every stage is measured by, after its last step."""

    on: Annotated[dict[str, Judged], Field(min_length=1)]
    """Problems by name."""
    base: str | None = None
    """The stage or model that stages are compared with; null = `common.model`."""
    prose: Count = 0
    """Paragraphs of English prose whose nats per token are measured: those of Python's own help; 0 = none."""
    texts: Annotated[dict[str, Texts], Field(default_factory=dict)]
    """Texts by name, whose nats per token are measured: what the models knew before."""
    distance: bool = False
    """Measure how far the weights are from the base's, relative to their size."""

    @model_validator(mode="after")
    def _has_names_of_its_own(self) -> Self:
        taken = {*self.on, "prose", "weights"}
        if twice := sorted(taken & self.texts.keys()):
            raise ValueError(
                f"texts.{twice[0]}: another measure has this name; choose another for these texts"
            )
        return self


class Label(Settings):
    """A stage that makes preferences from a known reward: as `klent label` does."""

    pairs: PositiveInt = 256
    """How many pairs."""
    noise: NonNegative = 0.0
    """Temperature of the choice, in units of reward; 0 = the better answer is always preferred."""
    flip: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Share of the labels that are turned round afterwards."""


@dataclass(frozen=True)
class StageFile:
    """One stage as the file has it.

    Attributes:
        name: of the stage.
        layer: the recipe that it is, over ``common``, with ``{STAGE}`` where another stage's model stands.
        judged: whether it is measured by the judge; a reward model answers nothing.
        label: it makes pairs from its model, task and reward, and trains nothing; ``{STAGE}`` is their file.
        needs: the stages that it names, in the order of the file.
    """

    name: str
    layer: Layer
    judged: bool
    label: Label | None
    needs: tuple[str, ...]


@dataclass(frozen=True)
class Study:
    """A file of stages.

    Attributes:
        name: of the study and its folder.
        file: where it was read.
        stages: in an order in which each comes after those that it needs.
        judge: the section, with ``{STAGE}`` still in it.
        base: the stage or the model that stages are compared with.
        judge_needs: the stages that the judge names, as its base or in a reward.
    """

    name: str
    file: Path
    stages: tuple[StageFile, ...]
    judge: Mapping[str, Yaml]
    base: str
    judge_needs: tuple[str, ...]


def read_study(file: Path, overrides: Iterable[str] = ()) -> Study:
    """Read a study; ``overrides`` are ``KEY=VALUE`` with keys such as ``stages.ppo.steps``.

    Raises:
        ConfigError: an unknown key, a stage that is not there or needs itself, with file and line.
    """
    layer = overridden(locate_layer(file), parse_overrides(overrides))
    values = layer.values
    for key in values:
        if key not in KEYS:
            raise ConfigError(
                f"{layer.origin((key,))}: unknown key `{key}`{nearest(key, KEYS)}; a study has {', '.join(KEYS)}"
            )
    stages, judge, common = values.get("stages"), values.get("judge"), values.get("common") or {}
    if not isinstance(stages, dict) or not stages:
        raise ConfigError(
            f"{file}: `stages` is missing; name at least one: stages: {{sft: {{method: sft, ...}}}}"
        )
    if not isinstance(judge, dict):
        raise ConfigError(
            f"{file}: `judge` is missing; say what is measured: judge: {{on: {{NAME: {{task: ...}}}}}}"
        )
    if not isinstance(common, dict):
        raise ConfigError(f"{layer.origin(('common',))}: `common` holds keys of a recipe, such as model")
    below = Layer(common, _below(layer.origins, ("common",)), layer.source)
    read = {str(name): _stage(str(name), value, below, layer, stages) for name, value in stages.items()}
    base = judge.get("base") or common.get("model")
    if not isinstance(base, str):
        raise ConfigError(
            f"{file}: `judge.base` is missing; name the stage or model that stages are compared with"
        )
    ordered = _ordered(read, layer)
    _refuse_strangers(judge, ("judge",), layer, read)
    named = set(STAGE.findall(str([judge, base])))
    needs = tuple(name for name in read if name in named or name == base)
    return Study(str(values.get("name") or file.stem), file, ordered, judge, base, needs)


def judge_of(study: Study, folders: Mapping[str, Path]) -> Judge:
    """The judge with the folders of stages where it names them.

    Raises:
        ConfigError: an unknown key, or a value that does not fit.
    """
    try:
        return Judge.model_validate(with_folders(dict(study.judge), folders))
    except ValidationError as error:
        raise ConfigError(f"{study.file}: {_wrong(error, 'judge')}") from None


def with_folders(value: Yaml, folders: Mapping[str, Path]) -> Yaml:
    """Values in which ``{STAGE}`` is the folder of that stage's model.

    >>> with_folders({"model": "{sft}", "prompt": "{prompt}"}, {"sft": Path("runs/sft")})
    {'model': 'runs/sft', 'prompt': '{prompt}'}
    """
    if isinstance(value, dict):
        return {key: with_folders(item, folders) for key, item in value.items()}
    if isinstance(value, list):
        return [with_folders(item, folders) for item in value]
    if not isinstance(value, str):
        return value
    return STAGE.sub(lambda found: str(folders.get(found[1], found[0])), value)


def _stage(name: str, value: Yaml, common: Layer, whole: Layer, stages: Mapping[str, Yaml]) -> StageFile:
    origin = whole.origin(("stages", name))
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name) or name in RESERVED:
        raise ConfigError(f"{origin}: a stage cannot be called `{name}`; use letters, digits, `_` and `-`")
    if not isinstance(value, dict):
        raise ConfigError(f"{origin}: stage `{name}` holds keys of a recipe, such as method and task")
    own = dict(value)
    judged = own.pop("judge", True)
    if not isinstance(judged, bool):
        raise ConfigError(f"{origin}: stages.{name}.judge must be true or false")
    label = _label(own.pop("label", None), f"stages.{name}.label", origin)
    if label is not None:
        own = {"method": "grpo", "steps": 1, **own}  # a recipe has both; neither is used
    _refuse_strangers(own, ("stages", name), whole, stages)
    layer = Layer(own, _below(whole.origins, ("stages", name)), whole.source)
    merged = merge(common, layer)
    named = set(STAGE.findall(str(merged.values)))
    if name in named:
        raise ConfigError(f"{origin}: stage `{name}` refers to itself; name another stage, or a model")
    judged = judged and label is None
    return StageFile(name, merged, judged, label, tuple(other for other in stages if other in named))


def _refuse_strangers(value: Yaml, path: KeyPath, layer: Layer, stages: Iterable[str]) -> None:
    """Refuse ``{NAME}`` that is a whole value and no stage; within a text, braces are the text's own.

    Raises:
        ConfigError: with file, line and the nearest stage.
    """
    if isinstance(value, dict):
        for key, item in value.items():
            _refuse_strangers(item, (*path, key), layer, stages)
    elif isinstance(value, list):
        for item in value:
            _refuse_strangers(item, path, layer, stages)
    elif isinstance(value, str) and (found := STAGE.fullmatch(value)):
        name = found[1]
        if name not in stages and name not in RESERVED:
            key, there = ".".join(map(str, path)), ", ".join(stages)
            raise ConfigError(
                f"{layer.origin(path)}: {key}: no stage is called `{name}`{nearest(name, stages)}; there are {there}"
            )


def _wrong(error: ValidationError, above: str) -> str:
    """What does not fit in a section of a study, key by key."""
    known = [*Judge.model_fields, *Judged.model_fields, *Texts.model_fields, *Label.model_fields]
    said = []
    for item in error.errors():
        path = key_path(item)
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = f"unknown key{nearest(str(path[-1]), known)}"
        said.append(f"{'.'.join(map(str, (above, *path)))}: {message}")
    return "; ".join(said)


def _label(value: Yaml, name: str, where: str) -> Label | None:
    if value is None:
        return None
    try:
        return Label.model_validate(value)
    except ValidationError as error:
        raise ConfigError(f"{where}: {_wrong(error, name)}") from None


def _below(origins: Mapping[KeyPath, str], path: KeyPath) -> dict[KeyPath, str]:
    """Where the keys under a path were written, with the path taken away."""
    return {
        key[len(path) :]: origin
        for key, origin in origins.items()
        if key[: len(path)] == path and key != path
    }


def _ordered(stages: Mapping[str, StageFile], layer: Layer) -> tuple[StageFile, ...]:
    """Each after those that it needs, else as written."""
    done: dict[str, StageFile] = {}
    while len(done) < len(stages):
        ready = [s for s in stages.values() if s.name not in done and all(need in done for need in s.needs)]
        if not ready:
            waiting = ", ".join(name for name in stages if name not in done)
            reason = "wait for one another; let one of them start from a model"
            raise ConfigError(f"{layer.source}: the stages {waiting} {reason}")
        done[ready[0].name] = ready[0]
    return tuple(done.values())


def values_of(stage: StageFile, folders: Mapping[str, Path]) -> Layer:
    """The stage's recipe with the folders of the stages that it names."""
    values = cast(dict[str, Yaml], with_folders(stage.layer.values, folders))
    return Layer(values, stage.layer.origins, stage.layer.source)
