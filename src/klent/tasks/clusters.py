"""Which completions give the same answer: how the answer is found in a completion, and when two agree."""

import logging
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations

from klent.errors import ConfigError, ModelError
from klent.models.pull import pulled, quiet
from klent.tasks.verifiers import find_last_number

NO_ANSWER = -1  # the cluster of a completion without one, as klent.objectives.empo_reward reads it
COPY_WORDS = 4  # a completion of fewer words that occurs in the question may well be its answer
_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_PLAIN_NUMBER = re.compile(r"[\d.,{}$€£¥%+−-]+")
_SECONDS = 1  # for math-verify to parse one expression, or to compare two


@dataclass(frozen=True)
class Equivalence:
    """When two completions give the same answer.

    Attributes:
        answer: completion -> its answer, or None where there is none. Equal answers are the same.
        same: whether two unequal answers mean the same; None = never.
    """

    answer: Callable[[str], str | None]
    same: Callable[[str, str], bool] | None = None


def load_equivalence(name: str, *, threshold: float = 0.85) -> Equivalence:
    """The equivalence that a recipe names.

    ============  ======================================  ===============================================
    name          the answer is                           two are the same where
    ============  ======================================  ===============================================
    ``text``      what :func:`find_answer` returns        they are equal
    ``number``    the last number of the completion       they are equal exactly
    ``math``      the expression that math-verify finds   math-verify says so, in either order
    ``meaning``   the completion                          the cosine of their MiniLM vectors is at least
                                                          ``threshold``
    ``FILE:FN``   the completion                          ``fn(a, b)`` or ``fn(b, a)``
    ============  ======================================  ===============================================

    Args:
        name: one of these; a function is ``path/to/file.py:function`` or ``package.module:function``.
        threshold: see ``meaning``, in (-1, 1].

    Raises:
        ConfigError: no such name or function.
        ModelError: ``meaning`` without its model.
        ImportError: ``math`` without math-verify.
    """
    if ":" in name:
        from klent.kit.own_code import load

        function = load(name)
        return Equivalence(_whole, lambda a, b: bool(function(a, b)))
    makers = {"text": _text, "number": _number, "math": _math, "meaning": lambda: _meaning(threshold)}
    if name not in makers:
        raise ConfigError(
            f"same: {name!r} is neither one of {', '.join(makers)} nor path/to/file.py:function"
        )
    return makers[name]()


def find_clusters(completions: Sequence[str], equivalence: Equivalence, question: str = "") -> list[int]:
    """Which completions of one prompt mean the same.

    Clusters are the connected components of the relation "a means b or b means a": the partition does not
    depend on the order of the completions, and if a means b and b means c, all three are one cluster.

    Args:
        completions: of one prompt, ``n`` texts.
        equivalence: from :func:`load_equivalence`.
        question: what was asked; a completion that only repeats part of it has no answer. Empty = no
            completion counts as a copy.

    Returns:
        ``n`` integers: the index of the cluster's first member, or ``NO_ANSWER``.

    Note:
        A relation that is not transitive chains: with a loose threshold, a chain of small differences puts
        two different answers into one cluster. Released EMPO code instead goes through the completions in
        order and lets a later cluster take members of an earlier one, so rewards depend on sampling order.

    Example:
        >>> find_clusters(["It is 4.", "so 4.0", "five?", "5"], load_equivalence("number"))
        [0, 0, -1, 3]
    """
    return label_answers(read_answers(completions, equivalence, question), equivalence)


def read_answers(
    completions: Sequence[str], equivalence: Equivalence, question: str = ""
) -> list[str | None]:
    """Each completion's answer; None where there is none, or where the question is only repeated."""
    return [None if is_copy(text, question) else equivalence.answer(text) for text in completions]


def label_answers(answers: Sequence[str | None], equivalence: Equivalence) -> list[int]:
    """The cluster of each answer: the index of its first member, or ``NO_ANSWER`` for None."""
    distinct = list(dict.fromkeys(answer for answer in answers if answer is not None))
    parent = {answer: answer for answer in distinct}

    def root(answer: str) -> str:
        while parent[answer] != answer:
            answer = parent[answer]
        return answer

    if equivalence.same is not None:
        for a, b in combinations(distinct, 2):
            if root(a) != root(b) and (equivalence.same(a, b) or equivalence.same(b, a)):
                parent[root(b)] = root(a)
    first: dict[str, int] = {}
    return [
        NO_ANSWER if answer is None else first.setdefault(root(answer), index)
        for index, answer in enumerate(answers)
    ]


def find_answer(text: str) -> str | None:
    r"""The answer in a text: in the last ``<answer>``, the last ``\boxed{}``, after ``####``, or all of it.

    White space, letter case and a final full stop are ignored; a plain number is put into one form.

    Example:
        >>> find_answer("so <answer> The  Cat. </answer>"), find_answer(r"\boxed{1{,}000.0}"), find_answer("")
        ('the cat', '1000', None)
    """
    tagged = _TAGGED.findall(text)
    answer = tagged[-1] if tagged else _boxed(text)
    if answer is None:
        answer = text.rpartition("####")[2]
    plain = " ".join(unicodedata.normalize("NFKC", answer).casefold().split()).rstrip(".")
    number = find_last_number(plain) if _PLAIN_NUMBER.fullmatch(plain) else None
    return (plain or None) if number is None else str(number)


def is_copy(text: str, question: str) -> bool:
    """Whether a completion of at least 4 words occurs word for word in the question.

    Example:
        >>> is_copy("What is 4 + 5?", "What is 4 + 5?"), is_copy("9", "Is 9 odd?")
        (True, False)
    """
    words = text.casefold().split()
    return len(words) >= COPY_WORDS and f" {' '.join(words)} " in f" {' '.join(question.casefold().split())} "


def _boxed(text: str) -> str | None:
    """The content of the last ``\\boxed{...}`` that is closed."""
    start = text.rfind("\\boxed{")
    depth = 0
    for end in range(start + 6, len(text)) if start >= 0 else ():
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if depth == 0:
            return text[start + 7 : end]
    return None


def _whole(text: str) -> str | None:
    return text.strip() or None


def _text() -> Equivalence:
    return Equivalence(find_answer)


def _number() -> Equivalence:
    def answer(text: str) -> str | None:
        number = find_last_number(text)
        return None if number is None else str(number)

    return Equivalence(answer)


def _math() -> Equivalence:
    """math-verify with its own time limits: two answers whose comparison hangs count as different."""
    try:
        from math_verify import parse, verify
    except ImportError as error:
        raise ImportError("same: math needs: pip install 'klent[tasks]'") from error
    logging.getLogger("math_verify").setLevel(logging.ERROR)

    @cache
    def read(text: str) -> object:
        expressions: object = parse(text, parsing_timeout=_SECONDS)
        return expressions

    def same(a: str, b: str) -> bool:
        return bool(verify(read(a), read(b), timeout_seconds=_SECONDS))

    return Equivalence(lambda text: text if read(text) else None, same)


def _meaning(threshold: float) -> Equivalence:
    """Sentence vectors: the normalised mean of MiniLM's last states."""
    if not -1 < threshold <= 1:
        raise ValueError(f"threshold must be a cosine in (-1, 1], not {threshold}")
    folder = pulled("minilm")
    if folder is None:
        raise ModelError("same: meaning needs a sentence model: run `klent models pull minilm`")
    import torch
    from transformers import AutoModel, AutoTokenizer

    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModel.from_pretrained(folder).eval()

    @cache
    def vector(text: str) -> torch.Tensor:
        inputs = tokenizer(text, return_tensors="pt", truncation=True, max_length=256)
        with torch.no_grad():
            mean: torch.Tensor = model(**inputs).last_hidden_state[0].mean(dim=0)
        normalised: torch.Tensor = mean / mean.norm()
        return normalised

    return Equivalence(_whole, lambda a, b: float(vector(a) @ vector(b)) >= threshold)
