"""Functions of a recipe: which numbers they read, which settings they take.

A term of ``loss``, ``token_reward``, ``advantage`` or ``select`` is a function of `klent.objectives`, or
``path.py:function``. Its signature is its schema. Parameters named like a token stream are filled by the
trainer; a keyword-only ``Tensor`` of another name is a choice of tokens, made by the selector that the recipe
puts under that name in ``select``; the remaining keyword-only parameters are settings, and a recipe may set
no others.
"""

import difflib
import functools
import importlib.util
import inspect
import sys
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from klent.errors import ConfigError

Function = Callable[..., Any]
Kind = Literal["loss", "token_reward", "advantage", "selector"]

#: what the trainer knows about each token, ``[B, T]``
STREAMS = frozenset(
    {"logp", "entropy", "logp_old", "entropy_old", "logp_gen", "logp_ref", "advantage", "mask"}
)
#: what it knows about each completion, ``[n]``; only an advantage estimator reads these
COMPLETIONS = frozenset({"rewards", "group"})
#: supplied by the trainer, so no setting either
_SUPPLIED = STREAMS | COMPLETIONS | {"generator"}


def nearest(key: str, valid: Iterable[str]) -> str:
    """``; did you mean `x`?`` for the closest of ``valid``, or nothing.

    >>> nearest("temprature", ["temperature", "top_p"])
    '; did you mean `temperature`?'
    """
    close = difflib.get_close_matches(key.replace("-", "_").lower(), list(valid), n=1, cutoff=0.6)
    return f"; did you mean `{close[0]}`?" if close else ""


def streams_of(function: Function) -> set[str]:
    """Names of the per-token (or per-completion) data that a function reads.

    >>> from klent import objectives
    >>> sorted(streams_of(objectives.ppo_clip))
    ['advantage', 'logp', 'logp_old', 'mask']
    """
    return set(inspect.signature(function).parameters) & (STREAMS | COMPLETIONS) | choices_of(function)


def choices_of(function: Function) -> set[str]:
    """Names of the choices of tokens that a function reads: keyword-only parameters annotated ``Tensor``.

    >>> from klent import objectives
    >>> choices_of(objectives.clip_cov), choices_of(objectives.ppo_clip)
    ({'dropped'}, set())
    """
    return {
        p.name
        for p in inspect.signature(function).parameters.values()
        if p.kind is p.KEYWORD_ONLY
        and p.name not in _SUPPLIED
        and getattr(p.annotation, "__name__", p.annotation) in ("Tensor", "torch.Tensor")
    }


def hyperparameters_of(function: Function) -> dict[str, inspect.Parameter]:
    """Keyword-only parameters that a recipe may set, by name; those without a default must be set.

    >>> from klent import objectives
    >>> list(hyperparameters_of(objectives.cispo))
    ['ratio_max']
    """
    parameters = inspect.signature(function).parameters.values()
    given = _SUPPLIED | choices_of(function)
    return {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in given}


def kind_of(function: Function) -> Kind | None:
    """What a function of `klent.objectives` can be in a recipe, read from its signature.

    A selector is told by its name, which ends in ``_tokens``: its signature does not say that it returns
    booleans.
    """
    signature = inspect.signature(function)
    names = set(signature.parameters)
    result = getattr(signature.return_annotation, "__name__", str(signature.return_annotation))
    if {"rewards", "group"} <= names:
        return "advantage"
    if result.endswith("TokenLoss"):
        return "loss" if _not_supplied(function) == [] else None
    if function.__name__.endswith("_tokens") and "mask" in names:
        return "selector" if _not_supplied(function) == [] else None
    if {"logp", "mask"} <= names and "advantage" not in names:
        return "token_reward"
    return None


@functools.cache
def shipped(kind: Kind) -> dict[str, Function]:
    """The functions of `klent.objectives` that a recipe can name under ``kind``."""
    from klent import objectives

    public = {name: getattr(objectives, name) for name in objectives.__all__}
    return {name: f for name, f in public.items() if inspect.isfunction(f) and kind_of(f) == kind}


def resolve(name: str) -> Function:
    """The function that a recipe names: one of `klent.objectives`, or ``path/to/file.py:function``.

    Raises:
        ConfigError: no such name, no such file, a file that cannot be imported, or one without the function.
    """
    if ".py:" in name:
        path, _, attribute = name.rpartition(":")
        file = Path(path).expanduser().resolve()
        if not file.is_file():
            raise ConfigError(f"{path}: no such file (paths are taken from the working folder, {Path.cwd()})")
        return _load(file, attribute)
    from klent import objectives

    if name not in objectives.__all__ or not inspect.isfunction(getattr(objectives, name)):
        raise ConfigError(f"`{name}` is not a function of klent.objectives")
    return typing.cast(Function, getattr(objectives, name))


@functools.cache
def _load(file: Path, attribute: str) -> Function:
    spec = importlib.util.spec_from_file_location(f"klent_user_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.path.insert(0, str(file.parent))  # so that the file may import its neighbours, as a script may
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever a user's file raises on import is shown, not passed on
        raise ConfigError(f"{file.name}: importing it raised {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(file.parent))
    function = getattr(module, attribute, None)
    if not callable(function):
        found = [
            key
            for key, value in vars(module).items()
            if inspect.isfunction(value) and not key.startswith("_")
        ]
        raise ConfigError(f"{file.name}: has no function `{attribute}`; it has {', '.join(found) or 'none'}")
    return typing.cast(Function, function)


Filled = tuple[dict[str, Any], list[tuple[str, str]]]


def check_settings(function: Function, settings: Mapping[str, Any]) -> Filled:
    """Settings with their defaults filled in, and what is wrong with them as ``(key, message)``."""
    parameters = hyperparameters_of(function)
    name = getattr(function, "__name__", "it")
    values: dict[str, Any] = {}
    problems: list[tuple[str, str]] = []
    for key in [key for key in settings if key not in parameters]:
        if key in streams_of(function):
            problems.append((key, f"is data that the trainer gives to {name}, not a setting; remove it"))
        else:
            takes = f"it takes {', '.join(parameters)}" if parameters else "it has none"
            problems.append((key, f"{name} has no such setting{nearest(key, parameters)}; {takes}"))
    for key, parameter in parameters.items():
        if key in settings:
            values[key] = settings[key]
            if wrong := _wrong_type(function, key, settings[key]):
                problems.append((key, wrong))
        elif parameter.default is parameter.empty:
            problems.append(("", f"needs `{key}`; set it"))
        elif parameter.default is not None:
            values[key] = parameter.default
    return values, problems


def _wrong_type(function: Function, key: str, value: Any) -> str | None:
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    annotation = inspect.signature(function, eval_str=True).parameters[key].annotation
    if annotation is inspect.Parameter.empty:
        return None
    try:
        adapter = TypeAdapter(annotation, config=ConfigDict(strict=True, allow_inf_nan=False))
        adapter.validate_python(value)
    except ValidationError as error:
        return f"{error.errors()[0]['msg'].replace('Input should', 'should')}; got {value!r}"
    return None


def try_out(kind: Kind, function: Function, settings: Mapping[str, Any]) -> str | None:
    """Call a function once on two rows of three tokens; what is wrong with it, or None.

    The function itself refuses a setting out of range, with its own reason, before any model is loaded.
    """
    if left := _not_supplied(function):
        streams = COMPLETIONS if kind == "advantage" else STREAMS
        return f"the trainer cannot supply `{left[0]}`; it supplies {', '.join(sorted(streams))}"
    reads = streams_of(function)
    if kind == "loss" and not reads & {"logp", "entropy"}:
        return "reads neither `logp` nor `entropy`, so that it could train nothing"
    if kind == "selector" and (asked := choices_of(function)):
        return f"reads `{min(asked)}`, another choice of tokens; a selector chooses from what the trainer has"
    data = _tiny_data() | dict.fromkeys(choices_of(function), _tiny_choice())
    try:
        result = function(**{name: data[name] for name in reads}, **settings)
    except (ValueError, TypeError) as error:
        return str(error)
    except Exception as error:  # the function may be the user's: whatever it raises is the answer
        return f"{type(error).__name__} when tried on two rows of three tokens: {error}"
    return _wrong_result(kind, result)


def _wrong_result(kind: Kind, result: Any) -> str | None:
    import torch

    values = result[0] if isinstance(result, tuple) else result
    shape = (4,) if kind == "advantage" else (2, 3)
    if not isinstance(values, torch.Tensor):
        return f"returned {type(values).__name__}, not a tensor"
    if tuple(values.shape) != shape:
        due = {
            "advantage": "one number per completion, [n]",
            "selector": "True or False per token, [B, T]",
        }.get(kind, "one per token, [B, T]; klent averages")
        return f"returned shape {list(values.shape)} where {list(shape)} was due: return {due}"
    if kind == "selector" and values.dtype != torch.bool:
        return f"returned {values.dtype}, not a choice of tokens: return True and False, dtype torch.bool"
    if kind == "loss" and not values.requires_grad:
        return "returned a loss without a gradient: something in it is detached"
    return None


def _not_supplied(function: Function) -> list[str]:
    """Parameters that must be given and that neither the trainer nor a recipe can give."""
    return [
        p.name
        for p in inspect.signature(function).parameters.values()
        if p.name not in _SUPPLIED
        and p.default is p.empty
        and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]


def _tiny_choice() -> Any:
    import torch

    return torch.tensor([[True, False, False], [False, True, False]])


def _tiny_data() -> dict[str, Any]:
    import torch

    shape = (2, 3)
    return {
        "logp": torch.full(shape, -1.0, requires_grad=True),
        "entropy": torch.full(shape, 0.8, requires_grad=True),
        "logp_old": torch.full(shape, -1.1),
        "entropy_old": torch.full(shape, 0.8),
        "logp_gen": torch.full(shape, -1.1),
        "logp_ref": torch.full(shape, -1.2),
        "advantage": torch.tensor([[1.0, 1.0, 1.0], [-1.0, -1.0, -1.0]]),
        "mask": torch.ones(shape, dtype=torch.bool),
        "rewards": torch.tensor([1.0, 0.0, 0.0, 1.0]),
        "group": torch.tensor([0, 0, 1, 1]),
    }
