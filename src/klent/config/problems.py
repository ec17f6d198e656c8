"""What is wrong with a recipe, one problem per key, and the one error that lists them all."""

from collections.abc import Iterable
from dataclasses import dataclass

from klent.config.layers import KeyPath, Layer
from klent.errors import ConfigError


@dataclass(frozen=True)
class Problem:
    """One thing wrong: the key path it concerns, and a sentence."""

    path: KeyPath
    message: str


def refuse(problems: Iterable[Problem], layer: Layer) -> None:
    """Raise one ConfigError that lists every problem with its origin, top to bottom; without any, return."""
    lines = []
    for problem in problems:
        key = ".".join(str(part) for part in problem.path)
        origin = layer.origin(problem.path)
        named = f"{key}: " if key and f": {key}=" not in origin else ""
        lines.append((_position(origin), f"  {origin}: {named}{problem.message}"))
    if lines:
        title = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
        text = "\n".join(line for _, line in sorted(lines, key=lambda item: item[0]))
        raise ConfigError(f"{title} in the recipe:\n{text}")


def _position(origin: str) -> tuple[str, int]:
    source, _, line = origin.rpartition(":")
    return (source, int(line)) if line.isdigit() else (origin, 0)
