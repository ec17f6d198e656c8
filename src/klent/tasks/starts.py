"""The starts of an environment as a task: a row and a seed each, by position."""

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path

from klent.config import EnvironmentSettings
from klent.errors import DataError, TooLong
from klent.kit.seeds import derive_seed
from klent.streams.prompt import Prompt
from klent.tasks.data import heldout_count
from klent.tasks.epochs import Epochs
from klent.tasks.first_call import Tried
from klent.tasks.pool import EnvironmentPool, Start
from klent.tasks.returns import Returns
from klent.tasks.rows import with_system
from klent.tasks.scorer import Scorer
from klent.tasks.sources import Rows, open_rows

TRIED = 16  # training starts that are opened before a run starts
_ATTEMPTS = 1000  # starts for one position before hardly any is taken to fit
UNOPENED = "(this start could not be opened)"


class EnvironmentTask:
    """Starts of an environment, whose openings are the prompts; the same position has the same start.

    Without rows, start ``i`` is the seed that the run's seed and ``i`` decide. Held-out seeds are of a stream
    of their own, held-out rows are not trained on.

    Args:
        section: the environment, and what episodes begin from.
        seed: decides every start.
        heldout: how many rows to hold out where ``section`` does not say, at most a tenth of them.
        base: folder from which relative paths are looked up.
        trained: False = nothing is trained on here, so that every row is held out.

    Raises:
        ConfigError, DataError: rows that cannot be read, or a start that ``only`` names and that is not there.
    """

    def __init__(
        self,
        section: EnvironmentSettings,
        *,
        seed: int = 0,
        heldout: int = 0,
        base: Path = Path(),
        trained: bool = True,
    ) -> None:
        self.name = Path(section.env.rpartition(":")[0]).stem if ":" in section.env else section.env
        self._pool = EnvironmentPool(section, base)
        self.environments: EnvironmentPool | None = self._pool
        self._section = section
        self._seed = seed
        self._rows: Rows | None = None
        self._count: int | None = None
        self._heldout: list[int] = list(range(heldout))  # of the held-out stream, or of the rows
        self._train: list[int] | None = None
        self._epochs = Epochs(seed)
        self._check: Callable[[Prompt], None] | None = None
        self._dropped: set[int] = set()  # those found so far
        if isinstance(section.rows, str):
            self._rows = open_rows(section.rows, "train", None, base)
            self._split(self._rows, heldout, trained)
        elif section.rows is not None:
            self._train = list(range(section.rows))
        if section.only is not None:
            self._train = self._only(section.only)
        self._opened: dict[str, Prompt] = {}

    def _split(self, rows: Rows, heldout: int, trained: bool) -> None:
        """Which rows are held out: distinct ones, drawn by the seed; all where nothing is trained on.

        Raises:
            DataError: a column with a reserved name, or nothing to train on.
        """
        first: dict[str, int] = {}
        same: list[int] = []
        for index, row in enumerate(rows):
            if "start" in row:
                raise DataError(
                    f"{rows.place(index)}: a column cannot be called 'start': rewards get what the episode began "
                    "from under this name. Rename or remove it"
                )
            same.append(first.setdefault(json.dumps(row, sort_keys=True), index))
        distinct = list(first.values())
        count = heldout_count(self._section.heldout, heldout, len(distinct)) if trained else len(distinct)
        random.Random(f"{self._seed}/heldout").shuffle(distinct)
        self._heldout = distinct[:count]
        held_out = set(self._heldout) if trained else set()
        self._train = [index for index, one in enumerate(same) if one not in held_out]
        if not self._train:
            raise DataError(
                f"{self._section.rows} has no rows to start an episode from; add one JSON object per line"
            )

    def _only(self, numbers: Sequence[int]) -> list[int]:
        if self._train is None:
            return list(numbers)
        by_number = {self._number(index): index for index in self._train}
        for number in numbers:
            if number not in by_number:
                raise DataError(
                    f"task.only: there is no start {number} to train on; there are {len(by_number)}"
                )
        return [by_number[number] for number in numbers]

    def _number(self, index: int) -> int:
        return index if self._rows is None else int(self._rows.place(index).rpartition(":")[2])

    def check(self) -> Tried:
        """Open the first start, and try a turn; see :meth:`klent.tasks.pool.EnvironmentPool.check`."""
        id, start = self._start("train", self._index(0))
        return self._pool.check(Prompt(id, ""), start)

    def log_to(self, log: Path) -> None:
        """Where the environment's output and failures go."""
        self._pool.log_to(log)

    def returns(self, scorer: Scorer | None) -> Returns:
        """What episodes are rewarded by in training."""
        return Returns(scorer, discount=self._section.discount, credit=self._section.credit)

    def fit(self, train: Callable[[Prompt], None] | None, heldout: Callable[[Prompt], None]) -> int:
        """Try the held-out openings and the first ``TRIED`` of training before a run starts.

        With ``task.too_long=drop``, whatever does not fit is left out: of the held-out openings, and at any
        position of training, where the next one that fits is taken. It stays a function of the position and
        the model.

        Raises:
            TooLong: one does not fit, and is not to be dropped, or none of training fits.
        """
        before = len(self._heldout)
        fitting = [i for i in self._heldout if self._fits(self._prompt("heldout", i), heldout)]
        self._heldout = fitting
        tried = dict.fromkeys(map(self._index, range(TRIED))) if train is not None else {}
        self._dropped = {i for i in tried if train and not self._fits(self._prompt("train", i), train)}
        if tried and len(self._dropped) == len(tried):
            raise TooLong(
                f"task.too_long=drop: every opening of {self.name} that was tried is too long; lower "
                "rollout.max_tokens, or let the environment say less"
            )
        self._check = train if self._section.too_long == "drop" else None
        return before - len(fitting) + len(self._dropped)

    def _fits(self, prompt: Prompt, check: Callable[[Prompt], None]) -> bool:
        try:
            check(prompt)
        except TooLong:
            if self._section.too_long != "drop":
                raise
            return False
        return True

    def train(self, position: int) -> Prompt:
        """The opening of the start at a position, or of the next that fits; starts are taken in turns.

        Raises:
            DataError: hardly any fits.
        """
        for index in map(self._index, range(position, position + _ATTEMPTS)):
            if index not in self._dropped:
                prompt = self._prompt("train", index)
                if self._check is None or self._fits(prompt, self._check):
                    return prompt
                self._dropped.add(index)
        raise DataError(
            f"task.too_long=drop: almost no opening of {self.name} fits the context; let the environment say "
            "less, or lower task.turn_tokens or rollout.max_tokens"
        )

    def heldout(self, count: int) -> list[Prompt]:
        """The openings of the first ``count`` held-out starts; rows may be fewer."""
        return [self._prompt("heldout", index) for index in self._heldout[:count]]

    def _index(self, position: int) -> int:
        if self._train is None:
            return position
        return self._train[self._epochs.row(position, len(self._train))]

    def _start(self, stream: str, index: int) -> tuple[str, Start]:
        """A start and its id."""
        if self._rows is not None:
            return self._rows.place(index), Start(self._rows[index], _seed(self._seed, index))
        id = f"{self.name}/{index}" if stream == "train" else f"{self.name}/{stream}/{index}"
        return id, Start({}, _seed(self._seed, stream, index))

    def _prompt(self, stream: str, index: int) -> Prompt:
        """The opening of a start; one that cannot be opened is played, and unscorable."""
        id, start = self._start(stream, index)
        if id in self._opened:
            return self._opened[id]
        answer = self._pool.open(id, start)
        said = UNOPENED if answer.problem else with_system(answer.observation, self._section.system)
        template = {**self._section.rendering, **answer.template}
        columns = {**start.row, "start": {"row": dict(start.row), "seed": start.seed}}
        prompt = Prompt(id, said, columns, template=template)
        if stream == "heldout" and not answer.problem:
            self._opened[id] = prompt
        return prompt


def start_of(prompt: Prompt) -> Start:
    """The start of a prompt of :class:`EnvironmentTask`."""
    start = prompt.columns["start"]
    return Start(start["row"], start["seed"])


def _seed(*path: int | str) -> int:
    """31 bits, since environments may hand it to NumPy."""
    return derive_seed(int(path[0]), "start", *path[1:]) >> 32
