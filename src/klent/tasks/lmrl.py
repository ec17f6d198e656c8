"""Logs of LMRL-Gym as turns: the layouts that its own loaders read.

    {"sequence": [["Wordle:\\n", 0.0], ["s t a r e\\n", 1.0], ["b b y g b\\n", 0.0]], "reward": [-1, 0], "done": true}
    {"text_history": ["you are at 1, 2", "move up", "you are at 1, 1"], "rewards": [0, -1, 0], "dones": [...]}
    {"lines": ["Is it alive? No.", "Is it a kite? Yes."], "correct": true, "word": ["Kite"]}
    {"lines": [{"role": "Seller", "text": "Hi!"}, {"role": "Buyer", ...}], "buyer_info": {...}, "output": {...}}

The first is Wordle's, each text with whether it is an action, and a reward for each or for each but the first; the
second the partially observed maze's, where every second text is an action. The third is that of 20 Questions and of
Guess My City: a question costs 1, and nothing where it is the right guess. The last is the car dealer's, played by
the seller, whose last words earn what the sale does.

References:
    Abdulhai et al., LMRL Gym, 2023, arXiv:2311.18232; github.com/abdulhaim/LMRL-Gym, in llm_rl_scripts:
    wordle/ilql/train_ilql_gpt2.py, maze/ilql/partially_observed_ilql.py, twenty_questions/env/data.py,
    guess_city/env/data.py and car_dealer/env/data.py.
"""

from collections.abc import Callable, Mapping
from itertools import groupby

from klent.errors import DataError
from klent.kit.names import nearest
from klent.tasks.lines import Row

Texts = list[tuple[str, bool]]
"""What was said, and whether it is an action."""
REWARDS = {"sequence": "reward", "text_history": "rewards"}
"""The column of texts -> that of their rewards."""
_DROPPED = {*REWARDS, *REWARDS.values(), "done", "dones", "lines", "output"}


def layout_of(row: Mapping[str, object]) -> str | None:
    """The layout of a row, by the key that tells it; None of a row that is not LMRL-Gym's."""
    if "lines" in row:
        return next((name for name in ("correct", "buyer_info") if name in row), None)
    return next((name for name in REWARDS if name in row), None)


def as_turns(row: Mapping[str, object], layout: str, where: str) -> Row:
    """The row in the layout of ``turns``; what was said after the last action is left out.

    Raises:
        DataError: with the line and the key that is wrong.

    >>> row = {"sequence": [["go\\n", 0.0], ["left\\n", 1.0], ["no\\n", 0.0]], "reward": [-1.0, 0.0]}
    >>> as_turns(row, "sequence", "log.jsonl:1")["turns"]
    [{'observation': 'go\\n', 'action': 'left\\n', 'reward': -1.0}]
    """
    read = _READERS.get(layout, _of_texts)
    texts, rewards = read(row, where)
    turns: list[dict[str, object]] = []
    heard: list[str] = []
    for number, ((text, acted), reward) in enumerate(zip(texts, rewards, strict=True), 1):
        if acted:
            if not heard:
                raise DataError(
                    f"{where}: {layout!r}, text {number}: an action with nothing from the environment before it"
                )
            turns.append({"observation": "".join(heard), "action": text, "reward": reward})
            heard = []
            continue
        if layout == "sequence" and reward != 0:
            raise DataError(
                f"{where}: 'reward': text {number} is not an action, so its reward must be 0, not {reward}"
            )
        heard.append(text)
    if not turns:
        raise DataError(f"{where}: {'lines' if layout in _READERS else layout!r} has no action")
    return {**{name: value for name, value in row.items() if name not in _DROPPED}, "turns": turns}


def _of_texts(row: Mapping[str, object], where: str) -> tuple[Texts, list[object]]:
    """Wordle's and the maze's: texts, and a column of rewards."""
    layout = next(name for name in REWARDS if name in row)
    texts = _texts(row[layout], f"{where}: {layout!r}", marked=layout == "sequence")
    key = REWARDS[layout]
    if key not in row:
        raise DataError(f"{where}: no {key!r}{nearest(key, row)}; give one for each text of {layout!r}")
    given = row[key]
    if not isinstance(given, list) or len(given) not in (len(texts), len(texts) - 1):
        count = len(given) if isinstance(given, list) else "no list"
        raise DataError(f"{where}: {key!r} must have {len(texts)} numbers, one for each text; it has {count}")
    return texts, [*([0.0] * (len(texts) - len(given))), *given]


def _texts(value: object, where: str, *, marked: bool) -> Texts:
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


def _of_questions(row: Mapping[str, object], where: str) -> tuple[Texts, list[object]]:
    """20 Questions and Guess My City: each line a question and its answer; the policy asks.

    >>> _of_questions({"lines": ["Is it big? No.", "A cat? Yes."], "correct": True}, "log.jsonl:1")[1]
    [0.0, -1.0, 0.0, 0.0, 0.0]
    """
    if not isinstance(row["correct"], bool):
        raise DataError(f"{where}: 'correct' must be true or false, not {row['correct']!r}")
    texts: Texts = [("Questions:\n", False)]
    rewards: list[object] = [0.0]
    lines = _lines(row, where)
    for number, line in enumerate(lines, 1):
        question, mark, answer = line.rpartition("? ") if isinstance(line, str) else ("", "", "")
        if not mark:
            raise DataError(
                f"{where}: 'lines', number {number}: must be a question and its answer, 'Is it? No.', not {line!r}"
            )
        guessed = row["correct"] and number == len(lines)
        texts += [(f"{question}?\n", True), (f"{answer}\n", False)]
        rewards += [0.0 if guessed else -1.0, 0.0]
    return texts, rewards


def _of_dealer(row: Mapping[str, object], where: str) -> tuple[Texts, list[object]]:
    """The car dealer's: the policy is the seller, and what it says in a row is one action."""
    said: Texts = []
    for number, line in enumerate(_lines(row, where), 1):
        role, text = (line.get("role"), line.get("text")) if isinstance(line, dict) else (None, None)
        if role not in ("Seller", "Buyer") or not isinstance(text, str):
            raise DataError(
                f"{where}: 'lines', number {number}: must be {{role: Seller or Buyer, text}}, not {line!r}"
            )
        said.append((text.rstrip("\n"), role == "Seller"))
    texts: Texts = [("Start\n", False)]
    for acted, some in groupby(said, key=lambda one: one[1]):
        words = [text for text, _ in some]
        texts += [(" ".join(words) + "\n", True)] if acted else [(f"{text}\n", False) for text in words]
    rewards: list[object] = [0.0] * len(texts)
    last = max((number for number, (_, acted) in enumerate(texts) if acted), default=0)
    rewards[last] = _sale(row, where)
    return texts, rewards


def _sale(row: Mapping[str, object], where: str) -> float:
    """What a sale is worth: the price over the mean of budget and list price, or what was lost; 0 without an end.

    >>> deal = {"car_bought": True, "msrp": 20000, "buy_price": 19000}
    >>> _sale({"buyer_info": {"budget": 18000}, "output": deal}, "log.jsonl:1")
    1.0
    """
    if row.get("output") is None:
        return 0.0
    budget = _number(row["buyer_info"], "budget", f"{where}: 'buyer_info'")
    listed = _number(row["output"], "msrp", f"{where}: 'output'")
    output = row["output"]
    assert isinstance(output, dict)  # a number of it was read
    if not isinstance(output.get("car_bought"), bool):
        raise DataError(f"{where}: 'output': 'car_bought' must be true or false")
    if listed == 0 or (output["car_bought"] and output.get("buy_price") is None):
        return 0.0
    if not output["car_bought"]:
        return -(budget - listed) / listed
    return _number(output, "buy_price", f"{where}: 'output'") / ((budget + listed) / 2)


def _number(section: object, key: str, where: str) -> float:
    value = section.get(key) if isinstance(section, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f"{where}: {key!r} must be a number, not {value!r}")
    return float(value)


def _lines(row: Mapping[str, object], where: str) -> list[object]:
    lines = row["lines"]
    if not isinstance(lines, list):
        raise DataError(f"{where}: 'lines' must be a list, not {type(lines).__name__}")
    return lines


_READERS: dict[str, Callable[[Mapping[str, object], str], tuple[Texts, list[object]]]] = {
    "correct": _of_questions,
    "buyer_info": _of_dealer,
}
"""How a layout is read, by the key that tells it; the others have texts and rewards of their own."""
