"""One section of a recipe, read from a plain mapping: for use from Python without a whole recipe."""

from collections.abc import Mapping

from pydantic import ValidationError

from klent.config.base import Settings
from klent.config.shape_checks import shape_problems
from klent.config.task import Task
from klent.errors import ConfigError


class _WithTask(Settings):
    task: Task


def read_task(values: Mapping[str, object]) -> Task:
    """The ``task`` section that a mapping describes, defaults filled in.

    Raises:
        ConfigError: names no source, such as ``gym``, ``data`` or ``env``, an unknown key, or a value out of range.

    Examples:
        >>> read_task({"gym": "chain_sum"}).config
        {}
    """
    try:
        return _WithTask.model_validate({"task": dict(values)}).task
    except ValidationError as error:
        problems = (
            f"{'.'.join(map(str, problem.path))}: {problem.message}" for problem in shape_problems(error)
        )
        raise ConfigError("; ".join(problems)) from None
