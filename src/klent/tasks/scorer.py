"""Rewards, each in a process of its own: a bad completion costs its own score, never the run."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from klent.config.rewards import SHIPPED, WITHOUT_ANSWER, Reward, short_names
from klent.errors import ConfigError, DataError
from klent.kit.names import nearest
from klent.streams.prompt import Prompt
from klent.tasks.callables import Function, missing, pack
from klent.tasks.process import CallFailed, Worker
from klent.tasks.task import Task

_LIMIT_HITS = 4  # in a row; the rest of the call is then given up
_ALWAYS = ("prompts", "completions", "finish")  # what every reward can ask for


class Sample(NamedTuple):
    """A prompt, its completion, and how that ended."""

    prompt: Prompt
    completion: str
    finish: str


@dataclass(frozen=True)
class Scores:
    """The rewards of each completion.

    Attributes:
        reward: the weighted sum, NaN where a reward with a weight other than 0 gave no value.
        parts: each reward's own values by its short name, unweighted, NaN = unscorable.
        problems: what went wrong, and for how many completions.
        metrics: what rewards passed to ``log_metric``, by name.
    """

    reward: list[float]
    parts: dict[str, list[float]]
    problems: dict[str, int]
    metrics: dict[str, float] = field(default_factory=dict)


class Scorer:
    """Calls rewards as TRL does, outside this process and with a time limit each.

    A reward is called with the whole batch first, so that one that compares completions works. Where that
    call raises, exits, dies, runs past its limit or returns anything but one value per completion, each
    completion is scored alone; what fails then is unscorable (NaN). After 4 limits hit in a row, the rest of
    the call is unscorable. A value that is None, NaN, infinite or not a number is unscorable too.

    Use it as a context manager: leaving it ends the processes. They end with this process in any case.

    Args:
        rewards: a recipe's rewards; a relative path of a file is looked up from the working folder.
        task: where prompts come from; :meth:`check` then compares its columns with what the rewards ask for.
        log: file that receives what rewards print; None = standard error.
        functions: by NAME the function of each reward ``python:NAME``. They are copied here and now: what
            they refer to can change later without effect.

    Raises:
        ConfigError: a function that is missing, or that cannot be sent to another process.
    """

    def __init__(
        self,
        rewards: Sequence[Reward],
        task: Task | None = None,
        log: Path | None = None,
        functions: Mapping[str, Function] | None = None,
    ) -> None:
        self._rewards = tuple(reward.located(Path()) for reward in rewards)
        self.names = short_names(self._rewards)
        self._task = task
        self._workers = [_worker(reward, log, functions or {}) for reward in self._rewards]
        self._threads = ThreadPoolExecutor(max(1, len(self._workers)), thread_name_prefix="reward")

    def __enter__(self) -> "Scorer":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End the rewards' processes."""
        for worker in self._workers:
            worker.retire()
        self._threads.shutdown()

    def check(self) -> None:
        """Start every reward and make sure that it can be called; for use before training begins.

        Raises:
            ConfigError: a missing file or function, an import that fails, or an argument that no column
                fills.
            DataError: a shipped reward that cannot score the task's first problem.
        """
        pairs = list(zip(self._rewards, self._workers, strict=True))
        for step in (Worker.launch, Worker.parameters):  # all are launched before the first is waited for
            for reward, worker in pairs:
                try:
                    step(worker)
                except CallFailed as error:
                    raise ConfigError(f"reward {reward.fn}: {error}") from None
        for reward, worker in pairs:
            _check_settings(reward, worker)
            if self._task is not None:
                _check_columns(reward, worker, self._task.train(0))

    def score(
        self, prompts: Sequence[Prompt], completions: Sequence[str], finish: Sequence[str] | None = None
    ) -> Scores:
        """Score one completion per prompt (a prompt is repeated for each completion of its group).

        Args:
            prompts: as many as there are completions.
            completions: what was sampled, as text.
            finish: ``length`` for each that the token budget cut, else ``stop``; rewards get it as a column
                of this name, unless the task has one. None = all ended by themselves.

        Returns:
            The scores; nothing that a reward does raises here.

        Raises:
            ValueError: they differ in number.
        """
        finish = ["stop"] * len(completions) if finish is None else finish
        if not len(prompts) == len(completions) == len(finish):
            raise ValueError(f"{len(prompts)} prompts, {len(completions)} completions, {len(finish)} ends")
        samples = list(map(Sample, prompts, completions, finish))
        if not samples:
            return Scores([], {name: [] for name in self.names}, {})
        jobs = [
            self._threads.submit(_score, name, reward, worker, samples)
            for name, reward, worker in zip(self.names, self._rewards, self._workers, strict=True)
        ]
        results = [job.result() for job in jobs]
        parts = {name: values for name, (values, _) in zip(self.names, results, strict=True)}
        total = [0.0] * len(prompts)
        problems: Counter[str] = Counter()
        for reward, (values, reward_problems) in zip(self._rewards, results, strict=True):
            problems.update(reward_problems)
            if reward.weight != 0:
                total = [sum_ + reward.weight * value for sum_, value in zip(total, values, strict=True)]
        metrics = {name: value for worker in self._workers for name, value in worker.metrics.items()}
        return Scores([t if math.isfinite(t) else math.nan for t in total], parts, dict(problems), metrics)


def _worker(reward: Reward, log: Path | None, functions: Mapping[str, Function]) -> Worker:
    """The process of a reward, not started yet."""
    if (name := reward.python_name) is not None:
        if name not in functions:
            raise missing(reward)
        return Worker(reward.fn, log, pack(functions[name], name))
    if reward.fn in SHIPPED:
        module = "agreement" if reward.fn in WITHOUT_ANSWER else "verifiers"
        return Worker(f"klent.tasks.{module}:{reward.fn}", log)
    return Worker(reward.fn, log)


def _check_columns(reward: Reward, worker: Worker, prompt: Prompt) -> None:
    columns = [name for name in prompt.columns if name != "completion"]
    columns += reward.settings
    for name in worker.parameters()["required"]:
        if name not in columns and name not in _ALWAYS:
            listed = ", ".join(columns) or "none"
            raise ConfigError(
                f"reward {reward.fn}: needs a column {name!r}{nearest(name, columns)}; columns are: {listed}"
            )
    if reward.fn in SHIPPED:
        arguments = {**_arguments([Sample(prompt, "", "stop")]), **reward.settings}
        try:
            worker.call(arguments, max(60.0, reward.timeout))
        except CallFailed as error:
            raise DataError(f"reward {reward.fn}: {error} (at {prompt.id})") from None


def _check_settings(reward: Reward, worker: Worker) -> None:
    named = [name for name in worker.parameters()["named"] if name not in ("prompts", "completions")]
    for name in reward.settings:
        if name not in named:
            takes = f"it takes {', '.join(named)}" if named else "it takes none"
            raise ConfigError(f"reward {reward.fn}: no argument {name!r}{nearest(name, named)}; {takes}")


def _score(
    name: str, reward: Reward, worker: Worker, samples: Sequence[Sample]
) -> tuple[list[float], Counter[str]]:
    """One reward's values and problems."""
    problems: Counter[str] = Counter()
    try:
        return _numbers(name, _call(worker, reward, samples), problems), problems
    except CallFailed as error:
        if len(samples) == 1:
            problems[f"{name} {error}"] += 1
            return [math.nan], problems
        problems[f"{name} {error}, called with the whole batch: each completion was scored alone"] = len(
            samples
        )
    values: list[float] = []
    hits = 0
    for sample in samples:
        if hits == _LIMIT_HITS:
            problems[f"{name} was given up after {hits} limits hit in a row"] += 1
            values.append(math.nan)
            continue
        try:
            values += _numbers(name, _call(worker, reward, [sample]), problems)
            hits = 0
        except CallFailed as error:
            hits = hits + 1 if error.kind == "timeout" else 0
            problems[f"{name} {error}"] += 1
            values.append(math.nan)
    return values, problems


def _call(worker: Worker, reward: Reward, samples: Sequence[Sample]) -> list[object]:
    """The list that a reward returned, one value per completion."""
    worker.metrics = {}
    result = worker.call({**_arguments(samples), **reward.settings}, reward.timeout)
    if not isinstance(result, list):
        raise CallFailed("raised", f"returned {_kind(result)} instead of a list")
    if len(result) != len(samples):
        raise CallFailed("raised", f"returned {len(result)} values for {len(samples)} completions")
    return result


def _arguments(samples: Sequence[Sample]) -> dict[str, object]:
    """What TRL passes: columns as lists, messages where the prompt is messages; and how completions ended."""
    prompts = [sample.prompt for sample in samples]
    names = dict.fromkeys(name for prompt in prompts for name in prompt.columns)
    columns = {
        name: [prompt.columns.get(name) for prompt in prompts]
        for name in names
        if name not in ("prompts", "completions", "prompt", "completion")
    }
    replies = [
        text if isinstance(prompt.prompt, str) else [{"role": "assistant", "content": text}]
        for prompt, text, _ in samples
    ]
    return {
        "prompts": [prompt.prompt for prompt in prompts],
        "completions": replies,
        "finish": [sample.finish for sample in samples],
        **columns,
    }


def _numbers(name: str, result: Sequence[object], problems: Counter[str]) -> list[float]:
    values = []
    for item in result:
        if isinstance(item, int | float) and abs(item) <= 1e300:  # also False for NaN
            values.append(float(item))
        else:
            problems[f"{name} returned {item if isinstance(item, float) else _kind(item)}"] += 1
            values.append(math.nan)
    return values


def _kind(value: object) -> str:
    names = {
        "NoneType": "None",
        "str": "text",
        "list": "a list",
        "dict": "a mapping",
        "int": "a huge integer",
    }
    return names.get(type(value).__name__, f"a {type(value).__name__}")
