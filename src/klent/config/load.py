"""From a recipe file to a `Recipe`, and back."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

import klent
from klent.config import checks
from klent.config.binding import nearest
from klent.config.control_checks import control_problems
from klent.config.layers import Layer, RecipeDumper, merge, parse_overrides, read_layer
from klent.config.mixture_checks import mixture_problems
from klent.config.model import Recipe
from klent.errors import ConfigError


def recipes_folder() -> Path:
    """The shipped recipes: inside an installed package, or at the root of a checkout."""
    package = Path(klent.__file__).parent
    installed = package / "_recipes"
    return installed if installed.is_dir() else package.parents[1] / "recipes"


def find_recipe(path_or_name: str | Path) -> Path:
    """A recipe by path, or a shipped one by name.

    Raises:
        ConfigError: neither exists; the message names the nearest shipped recipe.
    """
    path = Path(path_or_name)
    if path.is_file():
        return path
    if path.is_dir():
        if (path / "config.yaml").is_file():
            raise ConfigError(
                f"{path} is a run folder; go on with `klent resume {path}`, or train its config.yaml"
            )
        raise ConfigError(f"{path} is a folder; a recipe is a .yaml file (see `klent recipes ls`)")
    if path.parent in (Path(), Path("recipes")):
        shipped = recipes_folder() / f"{path.name.removesuffix('.yaml')}.yaml"
        if shipped.is_file():
            return shipped
    near = nearest(path.stem, [file.stem for file in recipes_folder().glob("*.yaml")])
    raise ConfigError(f"{path}: no such recipe{near}; `klent recipes ls` lists those that are shipped")


def load_recipe(path_or_name: str | Path, overrides: Iterable[str] | Layer = ()) -> Recipe:
    """Read a recipe, its method's preset below and ``key=value`` overrides above, and check all of it.

    Args:
        path_or_name: a YAML file, or the name of a shipped recipe. A relative path in it (data,
            ``file.py:function``) is looked up in the working folder, then beside the recipe.
        overrides: ``dotted.key=value``, the value written as YAML, or the layer that they make. null takes
            out a term of ``loss`` or ``token_reward``; elsewhere it is the value null.

    Returns:
        The recipe with every default filled in, those of the objectives' settings too. No model is loaded.

    Raises:
        ConfigError: every problem found, each with file, line, key and what to do.
    """
    file = find_recipe(path_or_name)
    layer = read_layer(file)
    layer.values = _beside(layer.values, file.parent)
    return _build(layer, _upper(overrides), default_name=file.stem)


def make_recipe(values: Mapping[str, Any], overrides: Iterable[str] | Layer = ()) -> Recipe:
    """As `load_recipe`, from a mapping in place of a file."""
    return _build(Layer(dict(values)), _upper(overrides), default_name="run")


def _upper(overrides: Iterable[str] | Layer) -> Layer:
    return overrides if isinstance(overrides, Layer) else parse_overrides(overrides)


def _beside(value: Any, folder: Path, key: str = "") -> Any:
    """Relative paths that exist beside the recipe, and not in the working folder, from that folder."""
    if isinstance(value, dict):
        return {_found(name, folder): _beside(item, folder, name) for name, item in value.items()}
    if isinstance(value, list):
        return [_beside(item, folder, key) for item in value]
    if isinstance(value, str) and (key in ("data", "heldout_data") or ".py:" in value):
        return _found(value, folder, always=True)
    return value


def _found(text: str, folder: Path, always: bool = False) -> str:
    if ".py:" not in text and not always:
        return text
    path, colon, function = text.rpartition(":") if ".py:" in text else (text, "", "")
    if not Path(path).exists() and (folder / path).exists():
        return f"{folder / path}{colon}{function}"
    return text


def _build(recipe: Layer, overrides: Layer, default_name: str) -> Recipe:
    method = overrides.values.get("method", recipe.values.get("method"))
    if method is None:
        below = Layer({}, source=recipe.source)
    else:
        below = preset(method, overrides.places.get(("method",)) or recipe.place(("method",)))
        below.source = recipe.source
    below.values = {"name": default_name, **below.values}
    return _check(merge(merge(below, recipe), overrides))


def preset(method: str, place: str = "recipe") -> Layer:
    """The layer of a method: a shipped preset, or the user's file; ``place`` is where it was asked for."""
    folder = recipes_folder() / "methods"
    names = sorted(file.stem for file in folder.glob("*.yaml"))
    if method in names:
        layer = read_layer(folder / f"{method}.yaml", f"methods/{method}.yaml")
    elif str(method).endswith((".yaml", ".yml")):
        layer = read_layer(Path(method))
    else:
        near = nearest(str(method), names)
        raise ConfigError(f"{place}: there is no method `{method}`{near}; there are {', '.join(names)}")
    return merge(Layer({}, source=layer.source), layer)


def _check(layer: Layer) -> Recipe:
    values = dict(layer.values)
    for choice in ("advantage", "token_reward", "reward", "select"):
        if values.get(choice) == {}:  # its last entry was set to null
            values[choice] = None
    problems: list[checks.Problem] = []
    if "loss" not in values:
        problems.append(checks.Problem((), "`loss` is missing; name a method (method: grpo) or write a loss"))
        values["loss"] = {}
    checks.bind_terms(values, problems)
    terms_hold = not problems
    recipe = _validate(values, problems)
    if recipe is not None and terms_hold:
        problems.extend(checks.usage_problems(recipe))
        problems.extend(control_problems(recipe))
        problems.extend(mixture_problems(recipe))
    checks.refuse(problems, layer)
    assert recipe is not None
    return recipe


def _validate(values: dict[str, Any], problems: list[checks.Problem]) -> Recipe | None:
    """The recipe, without the keys that do not belong; None where a value is wrong or missing."""
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        problems.extend(checks.shape_problems(error))
        if any(item["type"] != "extra_forbidden" for item in error.errors()):
            return None
        return Recipe.model_validate(
            checks.without(values, [checks.key_path(item) for item in error.errors()])
        )


def dump_recipe(recipe: Recipe) -> str:
    """A recipe as YAML with every value written out; loading it gives the same recipe.

    The method keeps its name. A term or choice of its preset that the recipe took out is written as null,
    which takes it out again.
    """
    values = recipe.model_dump(mode="json")
    if recipe.method is not None:
        below = preset(recipe.method).values
        for field in ("loss", "token_reward", "select"):
            if isinstance(values[field], dict):
                removed = {name: None for name in (below.get(field) or {}) if name not in values[field]}
                values[field] = {**removed, **values[field]}
    return yaml.dump(values, Dumper=RecipeDumper, sort_keys=False, allow_unicode=True, width=110)
