"""Code of the user's own: named in a recipe, imported here, and found again in what it raises.

This module imports the standard library and little else, since every reward waits for it.
"""

import importlib
import importlib.util
import os
import sys
import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TypeAlias

from klent.errors import ConfigError, KlentError
from klent.kit.names import nearest

Function: TypeAlias = Callable[..., object]
_KLENT = Path(__file__).parents[1]
_SKIPPED = (str(_KLENT / "kit"), str(_KLENT / "tasks"))  # where klent calls it


def load(target: str, *, as_script: bool = False, kind: str = "function") -> Function:
    """The function ``/path/file.py:function`` or ``package.module:function``; or another ``kind`` of thing to call.

    With ``as_script`` its file becomes this process's main module, as if Python had been started with it, and
    children that are spawned import it.
    """
    source, _, name = target.rpartition(":")
    is_file = source.endswith(".py")
    if is_file and not Path(source).is_file():
        raise ConfigError(f"there is no file {source}")
    try:
        module = _import_file(Path(source), as_script) if is_file else _import_module(source)
    except KlentError:
        raise
    except BaseException as error:
        raise ConfigError(f"importing {source} failed: {last_line(error)}") from error
    function: object = getattr(module, name, None)
    if function is None:
        names = [
            key
            for key, value in vars(module).items()
            if getattr(value, "__module__", "") == module.__name__ and not key.startswith("_")
        ]
        listed = f"; it has {', '.join(names[:8])}" if names else ""
        raise ConfigError(f"{source} has no {kind} {name!r}{nearest(name, names)}{listed}")
    if not callable(function):
        raise ConfigError(f"{name!r} in {source} is of type {type(function).__name__}, not a {kind}")
    return function


def absolute(target: str, base: Path) -> str:
    """``path/to/file.py:name`` by its whole path, looked up from a folder; any other text as it is."""
    source, _, name = target.rpartition(":")
    return f"{(base / Path(source).expanduser()).resolve()}:{name}" if source.endswith(".py") else target


def last_line(error: BaseException) -> str:
    """An exception as Python's last line has it, with the file and line of the user's own code."""
    lines = traceback.format_exception_only(error)
    text = " ".join(next(line for line in lines if not line.startswith(" ")).split())[:300]
    file, line = place_of(error)
    return f"{text} ({Path(file).name}, line {line})" if file else text


def place_of(error: BaseException) -> tuple[str, int]:
    """The last file and line in the traceback that belong to the user's code; ``("", 0)`` without any."""
    if isinstance(error, SyntaxError):
        places = [(error.filename or "", error.lineno or 0)]
    else:
        places = [(frame.filename, frame.lineno or 0) for frame in traceback.extract_tb(error.__traceback__)]
    libraries = tuple({sysconfig.get_path(kind) for kind in ("stdlib", "purelib", "platlib")})
    skipped = (*libraries, *_SKIPPED, "<frozen")
    return next((place for place in reversed(places) if not place[0].startswith(skipped)), ("", 0))


def _import_file(path: Path, as_script: bool) -> ModuleType:
    """Import a file. As a script it has the name that Python gives the main module of a spawned process, so
    that what it pickles is found there, and what stands under ``if __name__ == "__main__"`` does not run."""
    sys.path.insert(0, str(path.parent))  # it may import its neighbours, as a script may
    name = "__mp_main__" if as_script else f"own_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    if as_script:
        sys.modules["__main__"] = module
        module.__spec__ = None  # as of a script: children then look for its file and not for its name
    spec.loader.exec_module(module)
    return module


def _import_module(name: str) -> ModuleType:
    sys.path.append(os.getcwd())
    return importlib.import_module(name)
