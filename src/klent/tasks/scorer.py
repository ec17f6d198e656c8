"""Rewards, each in a process of its own: a bad completion costs itself, never the run."""

import math
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from klent.config.rewards import BUILTIN, RewardSpec, nearest, short_names
from klent.errors import ConfigError, DataError
from klent.streams.prompt import Prompt
from klent.tasks.process import CallFailed, Worker
from klent.tasks.task import Task

_LIMIT_HITS = 4  # in a row; the rest of the call is then given up
_GIVEN = ("prompts", "completions")
Sample = tuple[Prompt, str, str]  # a prompt, its completion, and how that ended


@dataclass(frozen=True)
class Scores:
    """What the rewards said of each completion.

    Attributes:
        reward: the weighted sum, NaN where a reward with a weight other than 0 had nothing to say.
        parts: each reward's own values by its short name, unweighted, NaN = unscorable.
        problems: what went wrong, and for how many completions.
        metrics: what rewards told ``log_metric``, by name.
    """

    reward: list[float]
    parts: dict[str, list[float]]
    problems: dict[str, int]
    metrics: dict[str, float] = field(default_factory=dict)


class Scorer:
    """Calls rewards as TRL does, outside this process and with a time limit each.

    A reward is called with the whole batch first, so that one that compares completions works. Where that
    call raises, exits, dies, runs past its limit or returns anything but one value a completion, each
    completion is scored alone; what fails then is unscorable (NaN). After 4 limits hit in a row, the rest of
    the call is unscorable. A value that is None, NaN, infinite or no number is unscorable too.

    Use it as a context manager: leaving it ends the processes. They end with this process in any case.

    Args:
        rewards: from :func:`klent.tasks.parse_rewards`.
        task: where prompts come from; :meth:`check` then compares its columns with what the rewards ask for.
        log: file that receives what rewards print; None = standard error.
    """

    def __init__(
        self, rewards: Sequence[RewardSpec], task: Task | None = None, log: Path | None = None
    ) -> None:
        self.names = short_names(tuple(rewards))
        self._rewards = tuple(rewards)
        self._task = task
        self._workers = [Worker(spec.fn, log) for spec in rewards]
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
        """Start every reward and see that it can be called; to be done before training begins.

        Raises:
            ConfigError: a missing file or function, an import that fails, or an argument that no column
                fills.
            DataError: a built-in reward that cannot score the task's first problem.
        """
        for step in (Worker.launch, Worker.describe):  # all are launched before the first is waited for
            for spec, worker in zip(self._rewards, self._workers, strict=True):
                try:
                    step(worker)
                except CallFailed as error:
                    raise ConfigError(f"reward {spec.fn}: {error}") from None
        for spec, worker in zip(self._rewards, self._workers, strict=True):
            _check_settings(spec, worker)
            if self._task is not None:
                self._check_columns(spec, worker, self._task.train(0))

    def score(
        self, prompts: Sequence[Prompt], completions: Sequence[str], finish: Sequence[str] | None = None
    ) -> Scores:
        """Score one completion a prompt (a prompt is repeated for each completion of its group).

        Args:
            prompts: as many as there are completions.
            completions: what was sampled, as text.
            finish: ``length`` for each that the token budget cut, else ``stop``; rewards get it as a column
                of this name, where the task has none. None = all ended by themselves.

        Returns:
            The scores, never an exception for what a reward did.

        Raises:
            ValueError: they differ in number.
        """
        finish = ["stop"] * len(completions) if finish is None else finish
        if not len(prompts) == len(completions) == len(finish):
            raise ValueError(f"{len(prompts)} prompts, {len(completions)} completions, {len(finish)} ends")
        samples = list(zip(prompts, completions, finish, strict=True))
        if not samples:
            return Scores([], {name: [] for name in self.names}, {})
        jobs = [
            self._threads.submit(_score, name, spec, worker, samples)
            for name, spec, worker in zip(self.names, self._rewards, self._workers, strict=True)
        ]
        results = [job.result() for job in jobs]
        parts = {name: values for name, (values, _) in zip(self.names, results, strict=True)}
        total = [0.0] * len(prompts)
        for spec, (values, _) in zip(self._rewards, results, strict=True):
            if spec.weight != 0:
                total = [sum_ + spec.weight * value for sum_, value in zip(total, values, strict=True)]
        problems: Counter[str] = Counter()
        for _, found in results:
            problems.update(found)
        metrics = {name: value for worker in self._workers for name, value in worker.metrics.items()}
        return Scores([t if math.isfinite(t) else math.nan for t in total], parts, dict(problems), metrics)

    def _check_columns(self, spec: RewardSpec, worker: Worker, prompt: Prompt) -> None:
        columns = [name for name in prompt.columns if name != "completion"]
        columns += spec.settings
        for name in worker.describe()["required"]:
            if name not in columns and name not in (*_GIVEN, "finish"):
                there = ", ".join(columns) or "none"
                raise ConfigError(
                    f"reward {spec.fn}: needs a column {name!r}{nearest(name, columns)}; columns are: {there}"
                )
        if spec.fn in BUILTIN:
            try:
                worker.call({**_arguments([(prompt, "", "stop")]), **spec.settings}, max(60.0, spec.timeout))
            except CallFailed as error:
                raise DataError(f"reward {spec.fn}: {error} (at {prompt.id})") from None


def _score(
    name: str, spec: RewardSpec, worker: Worker, samples: Sequence[Sample]
) -> tuple[list[float], Counter[str]]:
    """One reward's values and problems."""
    problems: Counter[str] = Counter()
    try:
        return _numbers(name, _called(worker, spec, samples), problems), problems
    except CallFailed as error:
        if len(samples) == 1:
            problems[f"{name} {error}"] += 1
            return [math.nan], problems
        whole = f"{name} {error}, called with the whole batch: each completion was scored alone"
        problems[whole] = len(samples)
    values: list[float] = []
    hits = 0
    for sample in samples:
        if hits == _LIMIT_HITS:
            problems[f"{name} was given up after {hits} limits hit in a row"] += 1
            values.append(math.nan)
            continue
        try:
            values += _numbers(name, _called(worker, spec, [sample]), problems)
            hits = 0
        except CallFailed as error:
            hits = hits + 1 if error.kind == "timeout" else 0
            problems[f"{name} {error}"] += 1
            values.append(math.nan)
    return values, problems


def _called(worker: Worker, spec: RewardSpec, samples: Sequence[Sample]) -> list[Any]:
    """The list that a reward returned, one value a completion."""
    worker.metrics = {}
    result = worker.call({**_arguments(samples), **spec.settings}, spec.timeout)
    if not isinstance(result, list):
        raise CallFailed("raised", f"returned {_kind(result)} where a list is due")
    if len(result) != len(samples):
        raise CallFailed("raised", f"returned {len(result)} values for {len(samples)} completions")
    return result


def _check_settings(spec: RewardSpec, worker: Worker) -> None:
    named = [name for name in worker.describe()["named"] if name not in _GIVEN]
    for name in spec.settings:
        if name not in named:
            has = f"it has {', '.join(named)}" if named else "it has none"
            raise ConfigError(f"reward {spec.fn}: no argument {name!r}{nearest(name, named)}; {has}")


def _arguments(samples: Sequence[Sample]) -> dict[str, Any]:
    """What TRL passes: columns as lists, messages where the prompt is messages; and how completions ended."""
    prompts = [prompt for prompt, _, _ in samples]
    names = dict.fromkeys(name for prompt in prompts for name in prompt.columns)
    columns = {
        name: [prompt.columns.get(name) for prompt in prompts]
        for name in names
        if name not in (*_GIVEN, "prompt", "completion")
    }
    replies = [
        text if isinstance(prompt.prompt, str) else [{"role": "assistant", "content": text}]
        for prompt, text, _ in samples
    ]
    given = {"prompts": [prompt.prompt for prompt in prompts], "completions": replies}
    return {**given, "finish": [end for _, _, end in samples], **columns}


def _numbers(name: str, result: list[Any], problems: Counter[str]) -> list[float]:
    values = []
    for item in result:
        number = isinstance(item, int | float) and abs(item) <= 1e300  # also False for NaN
        if not number:
            problems[f"{name} returned {item if isinstance(item, float) else _kind(item)}"] += 1
        values.append(float(item) if number else math.nan)
    return values


def _kind(value: Any) -> str:
    names = {
        "NoneType": "None",
        "str": "text",
        "list": "a list",
        "dict": "a mapping",
        "int": "a huge integer",
    }
    return names.get(type(value).__name__, f"a {type(value).__name__}")
