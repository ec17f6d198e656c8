"""Verifiers: did a completion answer its problem? Each has TRL's reward signature.

``f(prompts, completions, **columns) -> list[float | None]``, where a completion is text, or a list of
messages if its prompt is one. None means unscorable: the completion is left out of training.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from klent.tasks.generator import Source

Completion = str | list[dict[str, str]]

# 1,234.5 or 12 or .5, perhaps 1e-3 or 3/4; a sign counts where it cannot be an operator (10-3 ends in 3)
_NUMBER = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
_LAST_NUMBER = re.compile(
    rf"(?<![^\W_])(?:(?<![.)\]])(?P<sign>[-+]))?[$€£¥]?"
    rf"(?P<top>{_NUMBER})(?P<exponent>[eE][-+]?[0-9]{{1,3}}(?![0-9]))?"
    r"(?:/(?P<bottom>[0-9]+)(?![/.]?[0-9]))?"
)
_BOX = re.compile(r"\\boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_THIN_SPACE = re.compile(r"(?<=[0-9])[\u00a0\u2009\u202f](?=[0-9]{3}(?![0-9]))")  # separates thousands
_MINUS = str.maketrans({"−": "-", "﹣": "-", "－": "-"})


def exact(
    prompts: Sequence[object], completions: Sequence[Completion], **columns: Sequence[object]
) -> list[float | None]:
    """1 where the completion is the answer, apart from white space at both ends; else 0.

    Args:
        prompts: not used.
        completions: text or messages, one per prompt.
        columns: ``answer``, else ``solution``; a list means that any of its members is right.

    Returns:
        1.0 or 0.0 per completion; None where the answer is missing. Case, articles and punctuation all count.

    Examples:
        >>> exact(["?", "?"], [" 42\\n", "It is 42"], answer=["42", "42"])
        [1.0, 0.0]
    """
    return [
        None if gold is None else float(_text(completion).strip() in {str(g).strip() for g in _several(gold)})
        for completion, gold in zip(completions, _answers(columns), strict=True)
    ]


def last_number(
    prompts: Sequence[object], completions: Sequence[Completion], **columns: Sequence[object]
) -> list[float | None]:
    """1 where the last number in the completion equals the last number in the answer; else 0.

    Read as numbers: ``-3``, ``−3`` (Unicode minus), ``+3``, ``1,234.5``, ``.5``, ``$5.00``, ``-$5``,
    ``1e-3``, ``3/4``. Not read: a sign that may be an operator (``10-3`` ends in 3), a comma that does not
    separate thousands (``1,2`` ends in 2), a percent sign (``50%`` is 50), digits after a letter (``12 m2``
    ends in 12), LaTeX fractions (use ``math_verify``). Values are compared exactly, so ``5.00`` equals 5 and
    ``0.333`` does not equal 1/3.

    Args:
        prompts: not used.
        completions: text or messages, one per prompt.
        columns: ``answer``, else ``solution``: text such as ``#### 42``, a number, or a list of which any is
            right.

    Returns:
        1.0 or 0.0 per completion, 0.0 where it has no number; None where the answer is missing or has none.

    Examples:
        >>> last_number(["?"] * 3, ["4 + 5 = 9", "so −3.", "I pay $1,250.00!"], answer=["9", -3, "#### 1250"])
        [1.0, 1.0, 1.0]
    """
    scores: list[float | None] = []
    for completion, gold in zip(completions, _answers(columns), strict=True):
        right = {find_last_number(str(g)) for g in _several(gold)} - {None} if gold is not None else set()
        scores.append(float(find_last_number(_text(completion)) in right) if right else None)
    return scores


def gsm8k(
    prompts: Sequence[object], completions: Sequence[Completion], **columns: Sequence[object]
) -> list[float | None]:
    """1 where the number that a completion gives as its answer is the one behind ``####`` in the answer; else 0.

    GSM8K's answers are a solution whose last line is ``#### 42``. A completion gives its answer behind its last
    ``####``; without one in its last ``\\boxed{}``; without either, its last number counts. Behind ``####`` and in
    a box it is the first number of the line, or the first behind its last ``=``: ``#### $1,250 for 2 weeks`` is 1250,
    ``#### 6 * 7 = 42`` is 42. Numbers are read as :func:`last_number` reads them, and spaces that do not break
    (``1 250``) separate thousands. Values are compared exactly.

    Args:
        prompts: not used.
        completions: text or messages, one per prompt.
        columns: ``answer``, else ``solution``: text with ``####``, or a number alone.

    Returns:
        1.0 or 0.0 per completion, 0.0 where it gives no number; None where the answer is missing, or is text without
        ``####`` that is more than a number.

    Examples:
        >>> gold = "She sells 48 / 2 = 24 in May.\\n#### 1,072"
        >>> gsm8k(["?"] * 3, ["48 + 24 ... #### 1072 clips", "It is $1,072.00.", "#### 48"], answer=[gold] * 3)
        [1.0, 1.0, 0.0]
    """
    scores: list[float | None] = []
    for completion, gold in zip(completions, _answers(columns), strict=True):
        right = {_gold_number(str(g)) for g in _several(gold)} - {None} if gold is not None else set()
        scores.append(float(_given_number(_text(completion)) in right) if right else None)
    return scores


def math_verify(
    prompts: Sequence[object], completions: Sequence[Completion], **columns: Sequence[object]
) -> list[float | None]:
    """1 where the ``math-verify`` library finds the completion's expression equal to the answer's; else 0.

    It reads LaTeX, ``\\boxed{}`` and plain expressions, and compares them with SymPy. The library's own time
    limits need the main thread's alarm and answer "wrong" when it goes off; they are disabled here, and the
    reward's own ``timeout`` ends a comparison that takes too long.

    Args:
        prompts: not used.
        completions: text or messages, one per prompt.
        columns: ``answer``, else ``solution``: LaTeX with or without ``$``, or a number.

    Returns:
        1.0 or 0.0 per completion; None where the answer is missing or cannot be parsed.

    Raises:
        ImportError: ``math-verify`` is not installed.
    """
    try:
        from math_verify import parse, verify
    except ImportError as error:
        raise ImportError("the reward math_verify needs: pip install 'klent[tasks]'") from error
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns once that its limits are off
    scores: list[float | None] = []
    for completion, gold in zip(completions, _answers(columns), strict=True):
        right = [] if gold is None else parse(_as_latex(str(gold)), parsing_timeout=None)
        if not right:
            scores.append(None)
            continue
        answer = parse(_text(completion), parsing_timeout=None)
        scores.append(float(verify(right, answer, timeout_seconds=None)))
    return scores


def gym(
    prompts: Sequence[object],
    completions: Sequence[Completion],
    gym: Sequence["Source"],
    **columns: Sequence[object],
) -> list[float | None]:
    """The score of reasoning-gym's own verifier for the problem, between 0 and 1.

    The text is that of the last ``<answer>...</answer>`` if there is one, else the whole completion, without
    white space at both ends. Some generators give part of the mark to an answer inside other text.

    Args:
        prompts: not used.
        completions: text or messages, one per prompt.
        gym: where each problem came from (generator, parameters, seed, index), as
            :class:`klent.tasks.GymTask` writes it; the problem is generated again from it, because the
            verifier needs more than the answer.
        columns: not used.

    Returns:
        One score per completion.
    """
    from klent.tasks import generator

    return [generator.score(source, _text(text)) for text, source in zip(completions, gym, strict=True)]


def find_last_number(text: str) -> Fraction | None:
    """The last number in a text, exactly; None where there is none.

    Examples:
        >>> find_last_number("from 10-3 to -2.50")
        Fraction(-5, 2)
    """
    numbers = list(_LAST_NUMBER.finditer(text.translate(_MINUS).replace("{,}", ",")))
    return _value(numbers[-1]) if numbers else None


def _value(number: re.Match[str]) -> Fraction | None:
    """A number exactly; None for one of a thousand letters: Python refuses integers of several thousand digits."""
    if len(number[0]) > 1000:
        return None
    value = Fraction(number["top"].replace(",", "") + (number["exponent"] or ""))
    if number["bottom"] and int(number["bottom"]):
        value /= int(number["bottom"])
    return -value if number["sign"] == "-" else value


def _given_number(text: str) -> Fraction | None:
    """What a solution gives as its answer: behind ``####``, in a box, or last."""
    text = _THIN_SPACE.sub("", text)
    _, marked, behind = text.rpartition("####")
    if marked:
        return _first_number(behind)
    boxes = _BOX.findall(text)
    return _first_number(boxes[-1]) if boxes else find_last_number(text)


def _gold_number(text: str) -> Fraction | None:
    """The number behind ``####`` in a reference, or a reference that is a number and nothing else."""
    text = _THIN_SPACE.sub("", text)
    if "####" in text:
        return _first_number(text.rpartition("####")[2])
    whole = _LAST_NUMBER.fullmatch(text.translate(_MINUS).strip())
    return _value(whole) if whole else None


def _first_number(text: str) -> Fraction | None:
    """The first number of the first line that is not blank, or of what stands behind its last ``=``."""
    line = (text.strip().splitlines() or [""])[0].rpartition("=")[2]
    number = _LAST_NUMBER.search(line.translate(_MINUS).replace("{,}", ","))
    return _value(number) if number else None


def _answers(columns: Mapping[str, Sequence[object]]) -> Sequence[object]:
    for name in ("answer", "solution"):
        if name in columns:
            return columns[name]
    listed = ", ".join(columns) or "none"
    raise KeyError(
        f"there is no column 'answer' or 'solution' to compare with; columns are: {listed}. Name yours: "
        "task.columns.answer=COLUMN"
    )


def _several(gold: object) -> list[object]:
    return gold if isinstance(gold, list) else [gold]


def _text(completion: Completion) -> str:
    return completion if isinstance(completion, str) else "".join(m["content"] for m in completion)


def _as_latex(text: str) -> str:
    return text if any(mark in text for mark in ("$", "\\boxed", "\\(", "\\[")) else f"${text}$"
