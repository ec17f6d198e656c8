"""The functions of klent.objectives, found by their declared kinds, and calls of them with random numbers.

The tests of laws, of refusals and of idle actions run over all of them, so a new function is tested without
an entry in any list. What the tests cannot know, the function's own test file says in these variables:

    CASES = {"cispo": [{}, {"ratio_max": 1.2}]}   # settings to test it with; without an entry its defaults
    ORDERED = {"kl_cov_tokens": "why"}            # the order of tokens matters, and why
    IN_ORDER = {"gae": "why"}                     # the order of tokens within a row matters, and why
    MUTANTS = [Mutant(...)]                       # mistakes that its tests notice; see test_mutants.py
    REFUSED = [(lambda: O.f(...), ValueError, "part of the message")]   # what else it refuses
"""

import importlib
import inspect
import re
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from klent import objectives as O
from klent.config.binding import choices_of, hyperparameters_of, optional_of
from klent.objectives.kinds import Kind, declaration
from klent.streams.sets import PER_COMPLETION

OWNERS = ("test_laws", "test_mutants", "test_refusals", "test_rules", "test_adding", "test_idle")
Settings = Mapping[str, Any]


MASKS = ("mask", "observed")
"""What a function may call the tokens that it is about: the policy's, or the environment's."""


def named(function: Callable[..., Any], batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A batch under the names of a function's parameters: its ``mask`` is whatever tokens it is about."""
    mask = next((name for name in MASKS if name in inspect.signature(function).parameters), "mask")
    return {mask if name == "mask" else name: value for name, value in batch.items()}


class Case(NamedTuple):
    """A function with settings under which it is tested."""

    name: str
    settings: Settings

    def __str__(self) -> str:
        return " ".join([self.name, *(f"{key}={value}" for key, value in self.settings.items())])

    @property
    def function(self) -> Callable[..., Any]:
        return getattr(O, self.name)

    def call(self, batch: Mapping[str, Tensor]) -> Any:
        """The function's answer to ``batch``; a draw starts from the same seed each time."""
        drawn = "generator" in inspect.signature(self.function).parameters
        generator = {"generator": torch.Generator().manual_seed(0)} if drawn else {}
        return self.function(**named(self.function, batch), **generator, **self.settings)

    def batch(self, seed: int, rows: int = 4, columns: int = 6) -> dict[str, Tensor]:
        """Random numbers for each tensor that it reads; of several rows the last is off the mask."""
        optional = optional_of(self.function) & PER_COMPLETION  # it joins rows, which no law of tokens allows
        names = [name for name in tensors_of(self.function) if name not in {*MASKS, *optional}]
        values = {name: _random(self.function, name, seed, rows, columns) for name in names}
        mask = torch.rand(rows, columns, generator=_generator("mask", seed)) < 0.7
        if rows > 1:
            mask[-1] = False
        return {**values, "mask": mask}


def functions(*kinds: Kind) -> list[str]:
    """Names of the public functions of these kinds; of all kinds without one."""
    public = {name: getattr(O, name) for name in O.__all__}
    declared = {name: declaration(f) for name, f in public.items() if inspect.isfunction(f)}
    return [
        name for name, found in declared.items() if found is not None and (not kinds or found.kind in kinds)
    ]


def provided(variable: str) -> list[Any]:
    """A variable's value in each test file of this folder that has it."""
    files = sorted(Path(__file__).parent.glob("test_*.py"))
    modules = [importlib.import_module(f"objectives.{f.stem}") for f in files if f.stem not in OWNERS]
    return [getattr(module, variable) for module in modules if hasattr(module, variable)]


def cases(names: Iterable[str]) -> list[Case]:
    """Each function with the settings that its own test file gives it, or with its defaults."""
    given = {name: settings for table in provided("CASES") for name, settings in table.items()}
    for name in set(names) - given.keys():
        required = [key for key, p in hyperparameters_of(getattr(O, name)).items() if p.default is p.empty]
        if required:
            raise AssertionError(
                f"{name} needs {', '.join(required)}: give it settings in its own test file, "
                f'CASES = {{"{name}": [{{"{required[0]}": ...}}]}}'
            )
    return [Case(name, settings) for name in names for settings in given.get(name, [{}])]


def with_mask(*kinds: Kind) -> list[str]:
    """Functions of these kinds that read numbers per token."""
    read = {name: inspect.signature(getattr(O, name)).parameters for name in functions(*kinds)}
    return [name for name, parameters in read.items() if any(mask in parameters for mask in MASKS)]


def tensors_of(function: Callable[..., Any]) -> list[str]:
    """Names of its parameters that are tensors."""
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.annotation in (Tensor, Tensor | None)]


def trained_by(function: Callable[..., Any]) -> set[str]:
    """The parameters that receive the gradient, as the docstring says."""
    return {name for name in tensors_of(function) if "Receives the gradient" in explained(function, name)}


def explained(function: Callable[..., Any], parameter: str) -> str:
    """What the docstring says of a parameter, in one line."""
    text = inspect.getdoc(function) or ""
    found = re.search(rf"\n    {parameter}: (.*?)(?=\n    \w+: |\n\n)", text, re.DOTALL)
    assert found, f"{function.__name__} does not explain {parameter}"
    return " ".join(found[1].split())


def _generator(name: str, seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 2**20 + zlib.crc32(name.encode()) % 2**20)


def _random(function: Callable[..., Any], name: str, seed: int, rows: int, columns: int) -> Tensor:
    generator = _generator(name, seed)
    shape = (rows, columns, 3) if "[B, T, D]" in explained(function, name) else (rows, columns)
    if name in choices_of(function):
        return torch.rand(shape, generator=generator) < 0.4
    uniform = torch.rand(shape, generator=generator, dtype=torch.float64)
    normal = torch.randn(shape, generator=generator, dtype=torch.float64)
    if name.startswith("logp"):  # near one another, so that ratios are near 1
        base = torch.randn(shape, generator=_generator("logp", seed), dtype=torch.float64)
        return -base.abs() - 0.05 + (0.0 if name == "logp" else 0.3) * normal
    if name.startswith("entropy"):
        base = torch.randn(shape, generator=_generator("entropy", seed), dtype=torch.float64)
        return base.abs() * (1.0 if name == "entropy" else 0.5 + uniform)
    if name == "distance":  # of distributions that are near one another
        return uniform / 2
    return uniform + 0.1 if name in ("weight", "std") else normal
