"""Rewards, each in a process of its own: a bad completion costs its own score, never the run."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from klent.config.rewards import SHIPPED, TOGETHER, WITHOUT_ANSWER, Reward, short_names
from klent.errors import ConfigError
from klent.streams.episode import Episode
from klent.streams.prompt import Prompt
from klent.tasks.arguments import Sample
from klent.tasks.callables import Function, missing, pack
from klent.tasks.calls import BEYOND, LARGEST, Caller, Problems, Result
from klent.tasks.first_call import Tried, check_columns, check_settings, first_call, try_reward
from klent.tasks.judge import JudgeCaller, OpenJudge
from klent.tasks.process import CallFailed, Worker
from klent.tasks.task import Task

_METRICS = 64  # that a reward may log
_TOO_MANY = (
    f"the rewards log metrics of more than {_METRICS} names: those of further names are left out. "
    + ("Log the same few names at every call")
)
_TAKEN = "is a name that klent uses itself, or that cannot be shown: the metric is"
_OWN_NAMES = frozenset({"mean", "std", "unscorable"})  # of reward/...
OWN_FAMILIES = frozenset(
    {"bellman", "calibration", "completion", "covariance", "denoising", "entropy", "episode", "eval", "forks"}
    | {"grad", "group", "kl", "law", "memory", "mismatch", "mixture", "objective", "optimizer", "policy"}
    | {"preference", "rest", "reward", "select", "selected", "semantic", "sequence", "skewness", "sync"}
    | {"thermostat", "time", "tokens", "update", "value"}
)
"""The first parts of names of klent's own metrics, which a reward cannot log."""


@dataclass(frozen=True)
class Scores:
    """The rewards of each completion.

    Attributes:
        reward: the weighted sum of what the rewards said; NaN = unscorable, where a reward with a weight
            other than 0 failed, or where none said anything.
        parts: each reward's own values by its short name, unweighted, NaN = unscorable.
        problems: what went wrong, and for how many completions. A failure of a kind that was met before has
            its first text, whatever else its message quotes.
        metrics: what rewards passed to ``log_metric``, by name.
        notes: what else the user should know; the same text each time.
        to_go: for each completion, from each of its turns on, what its rewards add up to; None where the whole
            completion has one reward.
    """

    reward: list[float]
    parts: dict[str, list[float]]
    problems: dict[str, int]
    metrics: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    to_go: list[list[float]] | None = None


class Scorer:
    """Calls rewards as TRL does, outside this process and with a time limit each.

    A reward is called with the whole batch first, so that one that compares completions works. Where that
    call raises, exits, dies, runs past its limit or returns anything but one value per completion, each
    completion is scored alone; what fails then is unscorable (NaN). After 4 limits hit in a row, the rest of
    the call is unscorable. A value that is NaN, infinite, beyond 1e16 or not a number is unscorable too.
    None is no failure: the reward says nothing of this completion, and the others are summed.
    :class:`klent.tasks.calls.Caller` says what the limits are, and what a reward's ``workers`` change.

    Use it as a context manager: leaving it ends the processes. They end with this process in any case.

    Args:
        rewards: a recipe's rewards; a relative path of a file is looked up from the working folder.
        task: where prompts come from; :meth:`check` then compares its columns with what the rewards ask for.
        log: file that receives what rewards print; None = standard error.
        functions: by NAME the function of each reward ``python:NAME``. They are copied here and now: what
            they refer to can change later without effect.
        judge: opens the reward model of a reward that names one.

    Raises:
        ConfigError: a function or a judge that is missing, or that cannot be sent to another process.
    """

    def __init__(
        self,
        rewards: Sequence[Reward],
        task: Task | None = None,
        log: Path | None = None,
        functions: Mapping[str, Function] | None = None,
        judge: OpenJudge | None = None,
    ) -> None:
        self._rewards = tuple(reward.located(Path()) for reward in rewards)
        self.names = short_names(self._rewards)
        self._task = task
        self._callers = [
            _judged(reward, judge) if reward.model_folder else _caller(reward, log, functions or {})
            for reward in self._rewards
        ]
        self._texts: list[dict[str, str]] = [{} for _ in self._rewards]
        self._logged: dict[str, str] = {}  # with the note, where another name was asked for
        self._threads = ThreadPoolExecutor(max(1, len(self._callers)), thread_name_prefix="reward")

    def __enter__(self) -> "Scorer":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End the rewards' processes."""
        for caller in self._callers:
            caller.close()
        self._threads.shutdown()

    def check(self) -> list[Tried]:
        """Start every reward and call it once, on the task's first problem; before anything else.

        Returns:
            What each reward said; nothing without a task.

        Raises:
            ConfigError: a missing file or function, an import that fails, an argument that no column fills,
                or a reward that cannot score any completion of the task.
            DataError: a shipped reward that cannot score the task's first problem.
        """
        judges = [caller for caller in self._callers if isinstance(caller, JudgeCaller)]
        begun = [caller.judge.begin() for caller in judges]
        pairs = [(caller.reward, worker) for caller in self._callers for worker in caller.workers[:1]]
        every = [(caller.reward, worker) for caller in self._callers for worker in caller.workers]
        for step in (Worker.launch, Worker.parameters):  # all are launched before the first is waited for
            for reward, worker in every:
                try:
                    step(worker)
                except CallFailed as error:
                    raise ConfigError(f"reward {reward.fn}: {error}") from None
        for reward, worker in pairs:
            check_settings(reward, worker)
        if self._task is None:
            return begun
        first = self._task.train(0)
        for reward, worker in pairs:
            check_columns(reward, worker, first)
        return [*begun, *(try_reward(reward, first, first_call(reward, worker)) for reward, worker in pairs)]

    def score_episodes(self, episodes: Sequence[Episode]) -> Scores:
        """Score what each episode says last: the actions of its last turn, as text and as tokens.

        Where actions are vectors, rewards get the last one in place of tokens.
        """
        prompts = [episode.prompt for episode in episodes]
        ids = [
            e.tokens[e.acted & (e.turn == e.turns - 1)].tolist() if e.actions is None else None
            for e in episodes
        ]
        vectors = [None if e.actions is None else e.actions[-1].tolist() for e in episodes]
        return self.score(
            prompts, [e.text for e in episodes], [e.finish for e in episodes], ids, vectors=vectors
        )

    def score(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        finish: Sequence[str] | None = None,
        ids: Sequence[Sequence[int] | None] | None = None,
        *,
        vectors: Sequence[Sequence[float] | None] | None = None,
    ) -> Scores:
        """Score one completion per prompt (a prompt is repeated for each completion of its group).

        Args:
            prompts: as many as there are completions.
            completions: what was sampled, as text.
            finish: ``length`` for each that the token budget cut, else ``stop``; rewards get it as a column
                of this name, unless the task has one. None = all ended by themselves.
            ids: the tokens of each, for rewards that ask for ``completion_ids``.
            vectors: the last action of each, for rewards that ask for ``vectors``.

        Returns:
            The scores; nothing that a reward does raises here.

        Raises:
            ValueError: they differ in number.
        """
        finish = ["stop"] * len(completions) if finish is None else finish
        if not len(prompts) == len(completions) == len(finish):
            raise ValueError(f"{len(prompts)} prompts, {len(completions)} completions, {len(finish)} ends")
        unknown = [None] * len(completions)
        samples = list(map(Sample, prompts, completions, finish, ids or unknown, vectors or unknown))
        if not samples:
            return Scores([], {name: [] for name in self.names}, {})
        problems = [Problems(*pair) for pair in zip(self.names, self._texts, strict=True)]
        jobs = [
            self._threads.submit(caller.score, samples, told)
            for caller, told in zip(self._callers, problems, strict=True)
        ]
        results = [job.result() for job in jobs]
        total = self._total(results, problems)
        counts: Counter[str] = Counter()
        for told in problems:
            counts.update(told)
        beyond = [math.isinf(value) for value in total]
        if any(beyond):
            counts[f"the weighted sum of the rewards is {BEYOND}"] = sum(beyond)
        reward = [value if math.isfinite(value) else math.nan for value in total]
        parts = {name: result.values for name, result in zip(self.names, results, strict=True)}
        metrics, notes = self._metrics(results)
        return Scores(reward, parts, dict(counts), metrics, notes)

    def _total(self, results: Sequence[Result], problems: Sequence[Problems]) -> list[float]:
        """The weighted sum of each completion's values: NaN = unscorable, infinite = too large."""
        triples = zip(self._rewards, results, problems, strict=True)
        summed = [triple for triple in triples if triple[0].weight != 0]
        total = []
        for index in range(len(results[0].values)):
            said = [(r.weight, result.values[index]) for r, result, _ in summed if index not in result.silent]
            if not said:
                for _, _, told in summed:
                    told.note("None", "returned None")
            value = 0.0 if said else math.nan
            for weight, part in said:
                value += weight * part
            total.append(math.inf if abs(value) > LARGEST else value)
        return total

    def _metrics(self, results: Sequence[Result]) -> tuple[dict[str, float], tuple[str, ...]]:
        """What rewards logged, with the reward's name in front where klent has a metric of that name."""
        metrics: dict[str, float] = {}
        notes = []
        for name, reward, result in zip(self.names, self._rewards, results, strict=True):
            shipped = reward.fn in SHIPPED or reward.fn.startswith("klent.")
            for metric, value in result.metrics.items():
                shown = metric if shipped else self._free_name(name, metric)
                if shown not in self._logged and len(self._logged) >= _METRICS:
                    notes.append(_TOO_MANY)
                    continue
                note = f"reward {name}: log_metric({metric[:100]!r}) {_TAKEN} reward/{shown}. Choose another name"
                note = self._logged.setdefault(shown, "" if shown == metric else note)
                notes += [note] if note else []
                metrics[shown] = value
        return metrics, tuple(dict.fromkeys(notes))

    def _free_name(self, reward: str, metric: str) -> str:
        """The name, or one that no metric of klent and no reward has; printable, so that it can be shown."""
        family, slash, _ = metric.partition("/")
        own = family in OWN_FAMILIES if slash else metric in _OWN_NAMES or metric in self.names
        if not own and metric.isprintable() and 0 < len(metric) <= 100:
            return metric
        plain = "".join(letter if letter.isprintable() and letter != "/" else "." for letter in metric[:100])
        return f"{reward.rpartition('/')[2]}.{plain}"


def _judged(reward: Reward, judge: OpenJudge | None) -> JudgeCaller:
    """A reward model, not loaded yet."""
    if judge is None:
        raise ConfigError(f"reward {reward.fn}: a reward model cannot be used here; name a function")
    return JudgeCaller(reward, judge(reward))


def _caller(reward: Reward, log: Path | None, functions: Mapping[str, Function]) -> Caller:
    """A reward with its processes, not started yet."""
    target, packed = reward.fn, None
    if (name := reward.python_name) is not None:
        if name not in functions:
            raise missing(reward)
        packed = pack(functions[name], name)
    elif reward.fn in SHIPPED:
        module = "agreement" if reward.fn in WITHOUT_ANSWER else "verifiers"
        target = f"klent.tasks.{module}:{reward.fn}"
    workers = [Worker(target, log, packed, reward.memory_gb) for _ in range(reward.workers or 1)]
    fast = reward.fn in SHIPPED and reward.fn not in TOGETHER
    return Caller(reward, workers, seconds=0.0 if fast else None)
