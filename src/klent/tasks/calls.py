"""How one reward is called: with the whole batch, or each completion alone, within limits learnt from its pace."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from klent.config.rewards import Reward
from klent.kit.text import plural
from klent.tasks.arguments import Sample, given
from klent.tasks.process import CallFailed, Worker

LARGEST = 1e16  # advantages are computed in float32, which must hold sums of squares of millions of rewards
BEYOND = "beyond 1e16: advantages, which are computed in float32, would overflow. Scale it down"
_LIMIT_HITS = 4  # in a row; the rest of the call is then given up
_REASONS = 16  # of one reward that are told apart
_MARGIN = 4  # times what a reward has needed for a completion is what the next call may take
_SLOW = "If the reward is slow and not stuck, increase its `timeout` (seconds for each completion)"


class Result(NamedTuple):
    """One reward's values, NaN where it gave none; ``silent`` are those among them where it said None."""

    values: list[float]
    silent: set[int]
    metrics: dict[str, float]


class Problems(Counter[str]):
    """What went wrong in one reward's calls, and how often.

    It knows the places where the reward failed before. A message that quotes the completion is new every
    time; the place is not, so the first message stands for all from there.
    """

    def __init__(self, name: str, texts: dict[str, str]) -> None:
        super().__init__()
        self._name = name
        self._texts = texts

    def note(self, place: str, text: str, count: int = 1) -> None:
        if place not in self._texts and len(self._texts) >= _REASONS:
            place, text = "", f"failed in more ways than the {_REASONS} that were reported"
        self[f"{self._name} {self._texts.setdefault(place, text)}"] += count


class Outcome(NamedTuple):
    """A completion's value, or why there is none: where that happened, and in words."""

    value: float = math.nan
    silent: bool = False
    place: str = ""
    text: str = ""


class Pace:
    """How long a reward may take for a call with several completions.

    ``timeout`` is for one completion, so a call may take that for each of its completions: a slow judge is
    not cut off. Once calls have brought values, 4 times what they needed is allowed, and never less than
    ``timeout``: a call that is stuck does not cost as many timeouts as it has completions.

    Args:
        timeout: seconds for one completion.
        seconds: what a completion takes, where that is known; None = not yet.
    """

    def __init__(self, timeout: float, seconds: float | None = None) -> None:
        self._timeout = timeout
        self._seconds = seconds
        self._warm = seconds is not None

    def limit(self, count: int) -> float:
        """Seconds for a call with ``count`` completions."""
        whole = self._timeout * count
        if self._seconds is None:
            return whole
        return min(whole, max(self._timeout, _MARGIN * self._seconds * count))

    def learn(self, seconds: float, warm: bool) -> None:
        """A call took so many ``seconds`` for each completion; the first of a process also loads things."""
        if warm and not self._warm:
            self._seconds, self._warm = None, True
        if warm or not self._warm:
            self._seconds = max(seconds, self._seconds or 0.0)


class Caller:
    """One reward with its processes.

    Without ``workers`` it is called with the whole batch, so that one that compares completions works. Where
    that call fails each completion is scored alone. With ``workers`` each completion is a call of its own from
    the start, so none is ever scored twice: completion ``i`` goes to process ``i`` modulo their number, and
    values do not depend on which of them is faster.

    Args:
        reward: its section of the recipe.
        workers: its processes: as many as it asks for, or one.
        seconds: what a completion takes, where that is known.
    """

    def __init__(
        self,
        reward: Reward,
        workers: Sequence[Worker],
        seconds: float | None = None,
    ) -> None:
        self.reward = reward
        self.workers = tuple(workers)
        self._pace = Pace(reward.timeout, seconds)
        self._threads = ThreadPoolExecutor(len(self.workers), thread_name_prefix="reward")

    def close(self) -> None:
        """End the processes for good."""
        for worker in self.workers:
            worker.retire()
        self._threads.shutdown()

    def score(self, samples: Sequence[Sample], problems: Problems) -> Result:
        """The reward's values; ``problems`` receives what went wrong."""
        if self.reward.workers is not None:
            return self._each(samples, problems)
        worker = self.workers[0]
        try:
            outcomes = self._call(worker, samples, self._pace.limit(len(samples)))
        except CallFailed as error:
            if len(samples) == 1:
                return _collect([_failed(error)], [], problems)
            alone = f"{error}, called with the whole batch: each completion was scored alone"
            problems.note(f"batch {error.place}", f"{alone}{_advice(error)}", len(samples))
            return self._each(samples, problems)
        self._pace.learn(worker.seconds / len(samples), worker.warm)
        return _collect(outcomes, [worker.metrics], problems)

    def _each(self, samples: Sequence[Sample], problems: Problems) -> Result:
        """Each completion in a call of its own; values are in order, whatever the order of the calls."""
        step = len(self.workers)
        shares = [samples[start::step] for start in range(step)]
        results = list(self._threads.map(self._share, self.workers, shares))
        outcomes = [results[index % step][0][index // step] for index in range(len(samples))]
        metrics = [results[index % step][1][index // step] for index in range(len(samples))]
        return _collect(outcomes, metrics, problems)

    def _share(
        self, worker: Worker, samples: Sequence[Sample]
    ) -> tuple[list[Outcome], list[dict[str, float]]]:
        """One process's completions, one after the other: their values, and what each logged."""
        outcomes: list[Outcome] = []
        metrics: list[dict[str, float]] = []
        seconds: list[float] = []
        hits = 0
        for sample in samples:
            metrics.append({})
            if hits == _LIMIT_HITS:
                outcomes.append(
                    Outcome(place="given up", text=f"was given up after {hits} limits hit in a row")
                )
                continue
            try:
                outcomes += self._call(worker, [sample], self.reward.timeout)
                metrics[-1] = worker.metrics
                seconds += [worker.seconds] if worker.warm else []
                hits = 0
            except CallFailed as error:
                hits = hits + 1 if error.kind == "timeout" else 0
                outcomes.append(_failed(error))
        if seconds:
            self._pace.learn(sum(seconds) / len(seconds), warm=True)
        return outcomes, metrics

    def _call(self, worker: Worker, samples: Sequence[Sample], limit: float) -> list[Outcome]:
        """What a call brought, one value per completion."""
        worker.metrics = {}
        result = worker.call(given(worker, self.reward, samples), limit)
        if not isinstance(result, list):
            raise CallFailed("raised", f"returned {_kind(result)} instead of a list")
        if len(result) != len(samples):
            text = f"returned {plural(len(result), 'value')} for {plural(len(samples), 'completion')}"
            raise CallFailed("raised", text, place="number of values")
        return [_read(item) for item in result]


def _collect(outcomes: Sequence[Outcome], metrics: Iterable[dict[str, float]], problems: Problems) -> Result:
    """Outcomes as one result; what several calls logged under a name is averaged."""
    for outcome in outcomes:
        if outcome.text:
            problems.note(outcome.place, outcome.text)
    logged: dict[str, list[float]] = {}
    for call in metrics:
        for name, value in call.items():
            logged.setdefault(name, []).append(value)
    silent = {index for index, outcome in enumerate(outcomes) if outcome.silent}
    means = {name: sum(values) / len(values) for name, values in logged.items()}
    return Result([outcome.value for outcome in outcomes], silent, means)


def _failed(error: CallFailed) -> Outcome:
    return Outcome(place=error.place, text=f"{error}{_advice(error)}")


def _advice(error: CallFailed) -> str:
    return f". {_SLOW}" if error.kind == "timeout" else ""


def _read(item: object) -> Outcome:
    """What a reward returned for a completion."""
    if isinstance(item, int | float) and abs(item) <= LARGEST:  # also False for NaN
        return Outcome(float(item))
    if item is None:
        return Outcome(silent=True)
    if isinstance(item, float) and math.isfinite(item):
        return Outcome(place="float32", text=f"returned {item:g}, {BEYOND}")
    kind = str(item) if isinstance(item, float) else _kind(item)
    return Outcome(place=f"value {kind}", text=f"returned {kind}")


def _kind(value: object) -> str:
    names = {
        "NoneType": "None",
        "str": "text",
        "list": "a list",
        "dict": "a mapping",
        "int": "a huge integer",
    }
    return names.get(type(value).__name__, f"a {type(value).__name__}")
