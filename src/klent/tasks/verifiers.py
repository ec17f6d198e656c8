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
    if (
        not numbers or len(numbers[-1][0]) > 1000
    ):  # Python refuses to read integers of several thousand digits
        return None
    last = numbers[-1]
    value = Fraction(last["top"].replace(",", "") + (last["exponent"] or ""))
    if last["bottom"] and int(last["bottom"]):
        value /= int(last["bottom"])
    return -value if last["sign"] == "-" else value


def _answers(columns: Mapping[str, Sequence[object]]) -> Sequence[object]:
    for name in ("answer", "solution"):
        if name in columns:
            return columns[name]
    listed = ", ".join(columns) or "none"
    raise KeyError(f"no column 'answer' or 'solution' to compare with; columns are: {listed}")


def _several(gold: object) -> list[object]:
    return gold if isinstance(gold, list) else [gold]


def _text(completion: Completion) -> str:
    return completion if isinstance(completion, str) else "".join(m["content"] for m in completion)


def _as_latex(text: str) -> str:
    return text if any(mark in text for mark in ("$", "\\boxed", "\\(", "\\[")) else f"${text}$"
