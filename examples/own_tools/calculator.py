"""A tool that adds and subtracts, as an environment that a recipe beside this file names."""

import re

from klent.environments.tools import Tools


def calculate(expression: str) -> int:
    """The value of a sum of whole numbers, such as 7 - 1 + 15."""
    if not re.fullmatch(r"[-+]?\d+([-+]\d+)*", terms := expression.replace(" ", "")):
        raise ValueError("write whole numbers with + and - between them")
    return sum(map(int, re.findall(r"[-+]?\d+", terms)))


class Calculator(Tools):
    """A question, and `calculate` to answer it with."""

    def __init__(self) -> None:
        super().__init__([f"{__file__}:calculate"])
