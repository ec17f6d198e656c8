"""Logs of LMRL-Gym as turns: the layouts that its own loaders read, of texts in a row with a reward for each.

    {"sequence": [["Wordle:\\n", 0.0], ["s t a r e\\n", 1.0], ["b b y g b\\n", 0.0]], "reward": [-1, 0], "done": true}
    {"text_history": ["you are at 1, 2", "move up", "you are at 1, 1"], "rewards": [0, -1, 0], "dones": [...]}

The first is Wordle's, each text with whether it is an action, and a reward for each or for each but the first; the
second the partially observed maze's, where every second text is an action.

References:
    Abdulhai et al., LMRL Gym, 2023, arXiv:2311.18232; github.com/abdulhaim/LMRL-Gym,
    llm_rl_scripts/wordle/ilql/train_ilql_gpt2.py and llm_rl_scripts/maze/ilql/partially_observed_ilql.py.
"""

from collections.abc import Mapping

from klent.errors import DataError
from klent.kit.names import nearest
from klent.tasks.lines import Row

REWARDS = {"sequence": "reward", "text_history": "rewards"}
"""The column of texts -> that of their rewards."""
_DROPPED = {*REWARDS, *REWARDS.values(), "done", "dones"}


def layout_of(row: Mapping[str, object]) -> str | None:
    """The column that holds the texts; None of a row that is not LMRL-Gym's."""
    return next((name for name in REWARDS if name in row), None)


def as_turns(row: Mapping[str, object], layout: str, where: str) -> Row:
    """The row in the layout of ``turns``; what was said after the last action is left out.

    Raises:
        DataError: with the line and the key that is wrong.

    >>> row = {"sequence": [["go\\n", 0.0], ["left\\n", 1.0], ["no\\n", 0.0]], "reward": [-1.0, 0.0]}
    >>> as_turns(row, "sequence", "log.jsonl:1")["turns"]
    [{'observation': 'go\\n', 'action': 'left\\n', 'reward': -1.0}]
    """
    texts = _texts(row[layout], f"{where}: {layout!r}", marked=layout == "sequence")
    key = REWARDS[layout]
    if key not in row:
        raise DataError(f"{where}: no {key!r}{nearest(key, row)}; give one for each text of {layout!r}")
    given = row[key]
    if not isinstance(given, list) or len(given) not in (len(texts), len(texts) - 1):
        count = len(given) if isinstance(given, list) else "no list"
        raise DataError(f"{where}: {key!r} must have {len(texts)} numbers, one for each text; it has {count}")
    rewards = [*([0.0] * (len(texts) - len(given))), *given]
    turns: list[dict[str, object]] = []
    heard: list[str] = []
    for number, ((text, acted), reward) in enumerate(zip(texts, rewards, strict=True), 1):
        if acted:
            if not heard:
                raise DataError(f"{where}: {layout!r}, text {number}: an action without a word before it")
            turns.append({"observation": "".join(heard), "action": text, "reward": reward})
            heard = []
            continue
        if layout == "sequence" and reward != 0:
            raise DataError(f"{where}: {key!r}: text {number} is no action and earns {reward}; it must be 0")
        heard.append(text)
    if not turns:
        raise DataError(f"{where}: {layout!r} has no action")
    return {**{name: value for name, value in row.items() if name not in _DROPPED}, "turns": turns}


def _texts(value: object, where: str, *, marked: bool) -> list[tuple[str, bool]]:
    """Each text, and whether it is an action: as it is marked, or every second one."""
    if not isinstance(value, list):
        raise DataError(f"{where} must be a list, not {type(value).__name__}")
    texts = []
    for number, item in enumerate(value):
        if not marked and isinstance(item, str):
            texts.append((item, number % 2 == 1))
        elif (
            marked
            and isinstance(item, list)
            and len(item) == 2
            and isinstance(item[0], str)
            and item[1] in (0, 1)
        ):
            texts.append((item[0], bool(item[1])))
        else:
            kind = "[text, 1 for an action and 0 for what is read]" if marked else "text"
            raise DataError(f"{where}, number {number + 1}: must be {kind}, not {item!r}")
    return texts
