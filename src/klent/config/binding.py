"""Functions of a recipe: which numbers they read, and which settings they take.

A term of ``loss``, ``token_reward``, ``advantage``, ``select`` or ``weigh`` is a function of `klent.objectives`, or
``path.py:function``. Its signature is its schema. Parameters named like a stream (`klent.streams.registry`)
are filled by the trainer; a keyword-only ``Tensor`` of another name is a choice of tokens, made by the
selector that the recipe puts under that name in ``select``; the remaining keyword-only parameters are
settings, and a recipe may set no others.
"""

import functools
import hashlib
import importlib.util
import inspect
import sys
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from klent.errors import ConfigError
from klent.kit.names import nearest
from klent.objectives.kinds import Kind, declaration, needs
from klent.streams.registry import REGISTRY

Function = Callable[..., typing.Any]
Section = Literal["loss", "token_reward", "advantage", "select", "weigh"]

KINDS_OF: dict[Section, tuple[Kind, ...]] = {
    "loss": ("token_loss", "pair_loss"),
    "token_reward": ("token_reward",),
    "advantage": ("advantage",),
    "select": ("selector",),
    "weigh": ("token_weight",),
}
"""The kinds of function that each section of a recipe names; one that declares none is of the first."""

STREAM_OF = {"values": "value_old"}
"""The streams that parameters of another name take."""

STREAM_OF_SIDE = {"reward": "score", "length": "mask"}
"""The same for the parameters of a loss of pairs, without the side."""

PAIRED = frozenset({"preferred", "group", "mask"})
"""What every loss of pairs reads, to tell the two of a pair apart and to add up over their tokens."""

TRAINED = frozenset(name for name, stream in REGISTRY.items() if "carries the gradient" in stream.meaning)
"""The streams that carry the policy's gradient; a loss reads at least one of them."""

NO_STREAMS = frozenset({"generator"})
"""What a function may ask the trainer for and is no stream: chance."""

_SUPPLIED = {*REGISTRY, *NO_STREAMS}
_TENSORS = ("Tensor", "torch.Tensor")
_OPTIONAL_TENSORS = ("Tensor | None", "torch.Tensor | None")  # for callers from Python


def kind_in(section: Section, function: Function) -> Kind:
    """What a function is where it stands in this section: what it declares, or what the section takes first."""
    declared = declaration(function)
    return KINDS_OF[section][0] if declared is None else declared.kind


def streams_of(function: Function, settings: Mapping[str, object] | None = None) -> set[str]:
    """Names of the streams and choices that a function reads; with settings, also those that they need.

    >>> from klent import objectives
    >>> sorted(streams_of(objectives.ppo_clip))
    ['advantage', 'logp', 'logp_old', 'mask']
    """
    if sides := sides_of(function, settings):
        return {stream for stream, _ in sides.values()} | PAIRED
    return set(parameters_of(function).values()) | choices_of(function)


def parameters_of(function: Function) -> dict[str, str]:
    """For each parameter that takes a stream, the stream; but for a loss of pairs, see :func:`sides_of`."""
    return {name: STREAM_OF.get(name, name) for name, p in _parameters(function).items() if _is_stream(p)}


def is_per_token(function: Function) -> bool:
    """Whether an advantage is estimated for each token, from rewards of tokens: it reads their mask.

    >>> from klent import objectives
    >>> is_per_token(objectives.gae), is_per_token(objectives.group_advantage)
    (True, False)
    """
    return "mask" in _parameters(function)


def sides_of(function: Function, settings: Mapping[str, object] | None = None) -> dict[str, tuple[str, bool]]:
    """For each parameter of a loss of pairs its stream, and whether it is the better answer's; {} of any other.

    With settings, the parameters that may be None and that these settings need are among them.

    >>> from klent import objectives
    >>> sides_of(objectives.bradley_terry)
    {'reward_chosen': ('score', True), 'reward_rejected': ('score', False)}
    """
    declared = declaration(function)
    if declared is None or declared.kind != "pair_loss":
        return {}
    needed = () if settings is None else needs(function, settings)
    sides = {}
    for name, parameter in _parameters(function).items():
        stem, _, side = name.rpartition("_")
        stream = STREAM_OF_SIDE.get(stem, stem)
        wanted = parameter.default is parameter.empty or name in needed
        if side in ("chosen", "rejected") and stream in REGISTRY and wanted:
            sides[name] = (stream, side == "chosen")
    return sides


def choices_of(function: Function) -> set[str]:
    """Names of the choices of tokens that a function reads: keyword-only parameters annotated ``Tensor``.

    >>> from klent import objectives
    >>> choices_of(objectives.clip_cov), choices_of(objectives.ppo_clip)
    ({'dropped'}, set())
    """
    return {
        name
        for name, p in _parameters(function).items()
        if p.kind is p.KEYWORD_ONLY and name not in _SUPPLIED and _annotation(p) in _TENSORS
    }


def optional_of(function: Function) -> set[str]:
    """Names of the streams that a function takes where there are some: ``name: Tensor | None = None``.

    >>> from klent import objectives
    >>> optional_of(objectives.kl_in_loss)
    {'logp_old'}
    """
    return {
        STREAM_OF.get(name, name)
        for name, p in _parameters(function).items()
        if _is_stream(p) and p.default is None
    }


def hyperparameters_of(function: Function) -> dict[str, inspect.Parameter]:
    """Keyword-only parameters that a recipe may set, by name; those without a default must be set.

    >>> from klent import objectives
    >>> list(hyperparameters_of(objectives.cispo)), list(hyperparameters_of(objectives.kl_in_loss))
    (['ratio_max'], ['coef', 'divergence'])
    """
    reads = streams_of(function) | {*NO_STREAMS, *sides_of(function), *STREAM_OF}
    parameters = _parameters(function).items()
    return {
        name: p
        for name, p in parameters
        if p.kind is p.KEYWORD_ONLY and name not in reads and _annotation(p) not in _OPTIONAL_TENSORS
    }


def missing_from(function: Function) -> list[str]:
    """Parameters that must be given and that neither the trainer nor a recipe can give.

    >>> from klent import objectives
    >>> missing_from(objectives.ddpo), missing_from(objectives.ppo_clip)
    (['sample', 'mean', 'std'], [])
    """
    return [
        name
        for name, p in _parameters(function).items()
        if name not in {*_SUPPLIED, *sides_of(function)}
        and not _is_stream(p)
        and p.default is p.empty
        and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]


def shipped(*wanted: Kind) -> dict[str, Function]:
    """The functions of `klent.objectives` of these kinds that a recipe can name."""
    from klent import objectives

    public = {name: getattr(objectives, name) for name in objectives.__all__}
    declared = {name: declaration(f) for name, f in public.items() if inspect.isfunction(f)}
    kinds = {name: found.kind for name, found in declared.items() if found is not None}
    return {name: public[name] for name in kinds if kinds[name] in wanted and not missing_from(public[name])}


def resolve(name: str) -> Function:
    """The function that a recipe names: one of `klent.objectives`, or ``path/to/file.py:function``.

    The ``_loss`` at the end of a name may be left out: ``loss: {sequence_kl: {coef: 0.05}}``.

    Raises:
        ConfigError: no such name, no such file, a file that cannot be imported, or one without the function.
    """
    if ".py:" in name:
        path, _, attribute = name.rpartition(":")
        file = Path(path).expanduser().resolve()
        if not file.is_file():
            raise ConfigError(f"{path}: no such file (paths are taken from the working folder, {Path.cwd()})")
        return _load(file, attribute, _content(file))
    from klent import objectives

    if name not in objectives.__all__ and f"{name}_loss" in objectives.__all__:
        name = f"{name}_loss"
    if name not in objectives.__all__ or not inspect.isfunction(getattr(objectives, name)):
        raise ConfigError(f"`{name}` is not a function of klent.objectives")
    return typing.cast(Function, getattr(objectives, name))


Checked = tuple[dict[str, object], list[tuple[str, str]]]


def check_settings(function: Function, settings: Mapping[str, object]) -> Checked:
    """Settings with their defaults filled in, and what is wrong with them as ``(key, message)``."""
    parameters = hyperparameters_of(function)
    refused = _refused_by(function)
    name = getattr(function, "__name__", "it")
    values: dict[str, object] = {key: settings[key] for key in settings if key in refused}
    problems: list[tuple[str, str]] = []
    for key in [key for key in settings if key not in {*parameters, *refused}]:
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


def _parameters(function: Function) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(function).parameters


def _annotation(parameter: inspect.Parameter) -> str:
    return getattr(parameter.annotation, "__name__", None) or str(parameter.annotation)


def _is_stream(parameter: inspect.Parameter) -> bool:
    """Whether a parameter is filled by the trainer; ``divergence: Literal[...]``, say, is a setting."""
    if (
        STREAM_OF.get(parameter.name, parameter.name) not in REGISTRY
        or parameter.kind is parameter.VAR_KEYWORD
    ):
        return False
    setting = parameter.kind is parameter.KEYWORD_ONLY and parameter.annotation is not parameter.empty
    return not setting or "Tensor" in str(parameter.annotation)


def _refused_by(function: Function) -> set[str]:
    """Keys that a function takes to refuse them with a reason: ``**refused: Unpack[...]``; not settings."""
    if not any(p.kind is p.VAR_KEYWORD for p in _parameters(function).values()):
        return set()
    parameters = inspect.signature(function, eval_str=True).parameters.values()
    rest = [p.annotation for p in parameters if p.kind is p.VAR_KEYWORD]
    typed = [key for annotation in rest for key in typing.get_args(annotation)]
    return {name for key in typed for name in getattr(key, "__annotations__", ())}


def _wrong_type(function: Function, key: str, value: object) -> str | None:
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    annotation = inspect.signature(function, eval_str=True).parameters[key].annotation
    if annotation is inspect.Parameter.empty:
        return None
    options = typing.get_args(annotation)
    if any("Tensor" in str(option) for option in options):  # numbers of the data, which no recipe writes down
        annotation = typing.Union[tuple(o for o in options if "Tensor" not in str(o))]  # noqa: UP007
    try:
        adapter = TypeAdapter(annotation, config=ConfigDict(strict=True, allow_inf_nan=False))
        adapter.validate_python(value)
    except ValidationError as error:
        return f"{error.errors()[0]['msg'].replace('Input should', 'should')}; got {value!r}"
    return None


def _content(file: Path) -> bytes:
    try:
        return hashlib.sha256(file.read_bytes()).digest()
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from error


@functools.cache
def _load(file: Path, attribute: str, content: bytes) -> Function:
    """A function of a user's file, which may import its neighbours as a script may; read anew when it was edited."""
    spec = importlib.util.spec_from_file_location(f"klent_user_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.path.insert(0, str(file.parent))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # a user's file may raise anything when imported, and may exit
        raise ConfigError(f"{file.name}: importing it raised {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(file.parent))
    function = getattr(module, attribute, None)
    if not callable(function):
        public = [name for name, value in vars(module).items() if inspect.isfunction(value)]
        names = ", ".join(name for name in public if not name.startswith("_"))
        raise ConfigError(f"{file.name}: has no function `{attribute}`; it has {names or 'none'}")
    return typing.cast(Function, function)
