"""From a recipe file to a `Recipe`, and back."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import yaml
from pydantic import ValidationError

import klent
from klent.config.base import Yaml
from klent.config.checks import bind_terms
from klent.config.control_checks import control_problems
from klent.config.layers import Layer, merge
from klent.config.mixture_checks import mixture_problems
from klent.config.policy_checks import policy_problems
from klent.config.precision import renamed
from klent.config.problems import Problem, refuse
from klent.config.recipe import Recipe
from klent.config.rewards import REWARD_MODEL
from klent.config.sampler_checks import sampler_problems
from klent.config.shape_checks import key_path, shape_problems, without
from klent.config.shard_checks import shard_problems
from klent.config.usage_checks import usage_problems
from klent.config.yaml_text import RecipeDumper, parse_overrides, read_layer
from klent.errors import ConfigError
from klent.kit.names import nearest
from klent.models.pull import KNOWN

STUDIES = "studies"  # folder of the shipped studies, beside the recipes
DATA_FILES = (
    "data",
    "pairs",
    "trajectories",
    "heldout_data",
    "rows",
    "segments",
    "images",
)  # keys of `task` that may hold a path
_DATA = (*DATA_FILES, "centre_on")  # those of a recipe, beside functions of files
_MODELS = ("model", "reference", "target", "adapter", "method")  # more of them, in a run's config.yaml
_WORDS = ("reference", "policy")  # that no path is meant by
_WITHOUT_PATHS = ("bellman",)  # sections whose keys are called like one of these, and name no file


def recipes_folder() -> Path:
    """The shipped recipes: inside an installed package, or at the root of a checkout."""
    package = Path(klent.__file__).parent
    installed = package / "_recipes"
    return installed if installed.is_dir() else package.parents[1] / "recipes"


def data_paths(values: Yaml, key: str = "") -> list[str]:
    """The data files that a recipe or study names, as written, each once.

    >>> data_paths({"stages": {"sft": {"task": {"data": "a.jsonl"}}, "dpo": {"task": {"pairs": "{labels}"}}}})
    ['a.jsonl', '{labels}']
    """
    if isinstance(values, dict):
        return list(dict.fromkeys(path for name, item in values.items() for path in data_paths(item, name)))
    return [values] if isinstance(values, str) and key in DATA_FILES else []


def find_study(path_or_name: str | Path) -> Path:
    """A study by path, or a shipped one by name.

    Raises:
        ConfigError: neither exists; the message names the nearest shipped study.
    """
    path = Path(path_or_name)
    if path.is_file():
        return path
    shipped = recipes_folder() / STUDIES
    if (
        path.parent in (Path(), Path(STUDIES))
        and (file := shipped / f"{path.name.removesuffix('.yaml')}.yaml").is_file()
    ):
        return file
    near = nearest(path.stem, [file.stem for file in shipped.glob("*.yaml")])
    raise ConfigError(
        f"{path}: no such study{near}; it is a .yaml file, and `klent recipes ls` lists the shipped ones"
    )


def data_folder(file: Path) -> Path:
    """Where the relative paths of a recipe or study begin: beside it; a shipped study shares the recipes' data."""
    return recipes_folder() if file.parent == recipes_folder() / STUDIES else file.parent


def find_recipe(path_or_name: str | Path) -> Path:
    """A recipe by path, or a shipped one by name.

    Raises:
        ConfigError: neither exists; the message names the nearest shipped recipe, or the method so called.
    """
    path = Path(path_or_name)
    if path.is_file():
        return path
    if path.is_dir():
        if (path / "config.yaml").is_file():
            raise ConfigError(
                f"{path} is a run folder; continue it with `klent resume {path}`, or train its config.yaml"
            )
        raise ConfigError(f"{path} is a folder; a recipe is a .yaml file (see `klent recipes ls`)")
    name = path.name.removesuffix(".yaml")
    if path.parent in (Path(), Path("recipes")):
        shipped = recipes_folder() / f"{name}.yaml"
        if shipped.is_file():
            return shipped
    if path.parent in (Path(), Path(STUDIES)) and (recipes_folder() / STUDIES / f"{name}.yaml").is_file():
        raise ConfigError(f"{name} is a study of several stages, not a recipe: klent study {name}")
    if path.parent in (Path(), Path("methods")) and name in _methods():
        raise ConfigError(f"{name} is a method, not a recipe: klent train quickstart method={name}")
    near = nearest(path.stem, [file.stem for file in recipes_folder().glob("*.yaml")])
    raise ConfigError(f"{path}: no such recipe{near}; `klent recipes ls` lists the shipped ones")


def load_recipe(path_or_name: str | Path, overrides: Iterable[str] | Layer = ()) -> Recipe:
    """Read a recipe, its method's preset below and ``key=value`` overrides above, and check all of it.

    Args:
        path_or_name: a YAML file, or the name of a shipped recipe. A relative path in it (data,
            ``file.py:function``) is looked up in the working folder, then beside the recipe.
        overrides: ``dotted.key=value``, the value written as YAML, or the layer that they make. null removes
            a term of ``loss`` or ``token_reward``; elsewhere it is the value null.

    Returns:
        The recipe with every default filled in, including those of the objectives' settings. No model is
        loaded.

    Raises:
        ConfigError: every problem found, each with file, line, key and what to do.
    """
    file = find_recipe(path_or_name)
    return _check(_merged(locate_layer(file), _upper(overrides), default_name=file.stem))


def read_values(path_or_name: str | Path) -> Mapping[str, Yaml]:
    """The values of a recipe file over its method's, unchecked: nothing that they name is loaded or run."""
    file = find_recipe(path_or_name)
    return _merged(locate_layer(file), Layer({}), default_name=file.stem).values


def locate_layer(file: Path) -> Layer:
    """A file of recipes, its relative paths made such that they are found."""
    layer = read_layer(file)
    folders = _folders(file)
    values = cast("dict[str, Yaml]", renamed(layer.values)) if file.name == "config.yaml" else layer.values
    layer.values = {key: _beside(value, folders, key) for key, value in values.items()}
    return layer


def make_recipe(values: Mapping[str, object], overrides: Iterable[str] | Layer = ()) -> Recipe:
    """As `load_recipe`, from a mapping in place of a file."""
    layer = Layer(cast(dict[str, Yaml], dict(values)))
    return _check(_merged(layer, _upper(overrides), default_name="run"))


def recipe_of(layer: Layer, overrides: Layer, *, name: str) -> Recipe:
    """As `load_recipe`, from a layer that was read already; ``name`` where it has none."""
    return _check(_merged(layer, overrides, default_name=name))


def overridden(lower: Layer, upper: Layer) -> Layer:
    """A file of recipes with single values set anew, whatever its keys are."""

    def over(low: Yaml, high: Yaml) -> Yaml:
        if not isinstance(low, dict) or not isinstance(high, dict):
            return high
        return {**low, **{key: over(low.get(key), value) for key, value in high.items()}}

    values = cast(dict[str, Yaml], over(lower.values, upper.values))
    return Layer(values, {**lower.origins, **upper.origins}, lower.source)


def _upper(overrides: Iterable[str] | Layer) -> Layer:
    return overrides if isinstance(overrides, Layer) else parse_overrides(overrides)


def preset(method: str, origin: str = "recipe") -> Layer:
    """The layer of a method: a shipped preset, or the user's file; ``origin`` is where it was asked for."""
    if method in _methods():
        layer = read_layer(recipes_folder() / "methods" / f"{method}.yaml", f"methods/{method}.yaml")
    elif method.endswith((".yaml", ".yml")):
        layer = read_layer(Path(method))
    else:
        shipped = ", ".join(_methods())
        raise ConfigError(
            f"{origin}: there is no method `{method}`{nearest(method, _methods())}; there are {shipped}"
        )
    return merge(Layer({}, source=layer.source), layer)


def dump_recipe(recipe: Recipe) -> str:
    """A recipe as YAML with every value written out; loading it gives the same recipe.

    The method keeps its name. A term or choice of its preset that the recipe removed is written as null,
    which removes it again.
    """
    values = recipe.model_dump(mode="json")
    if recipe.method is not None:
        lower = preset(recipe.method).values
        for section in ("loss", "advantage", "token_reward", "select", "weigh"):
            terms, preset_terms = values[section], lower.get(section)
            if isinstance(terms, dict) and isinstance(preset_terms, dict):
                removed = {name: None for name in preset_terms if name not in terms}
                values[section] = {**removed, **terms}
    return yaml.dump(values, Dumper=RecipeDumper, sort_keys=False, allow_unicode=True, width=110)


def _methods() -> list[str]:
    return sorted(file.stem for file in (recipes_folder() / "methods").glob("*.yaml"))


@dataclass(frozen=True)
class _Folders:
    """Where relative paths of a recipe are looked up: first ``start``, then the working folder, then the others."""

    start: Path | None
    others: tuple[Path, ...]
    keys: tuple[str, ...] = _DATA


def _folders(file: Path) -> _Folders:
    """The recipe's own folder; of a run's config.yaml, where the run was started, and what its folder is in."""
    if file.name != "config.yaml":
        return _Folders(None, (data_folder(file),))
    try:
        start = json.loads((file.parent / "run.json").read_bytes())["folder"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # it informs, and may be damaged
        start = None
    parents = tuple(file.absolute().parents[1:4])
    begun = Path(start) if isinstance(start, str) else None
    return _Folders(begun, (file.parent, *parents), (*_DATA, *_MODELS))


def _beside(value: Yaml, folders: _Folders, key: str = "") -> Yaml:
    """Relative paths made such that they are found from the working folder."""
    if key in _WITHOUT_PATHS:
        return value
    if isinstance(value, dict):
        return {_locate(name, folders): _beside(item, folders, name) for name, item in value.items()}
    if isinstance(value, list):
        return [_beside(item, folders, key) for item in value]
    if isinstance(value, str) and (
        key in folders.keys or ".py:" in value or value.startswith(f"{REWARD_MODEL}:")
    ):
        is_preset = key == "method" and not value.endswith((".yaml", ".yml"))
        if is_preset or value in (*_WORDS, *KNOWN):
            return value
        return _locate(value, folders, is_path=True)
    return value


def _locate(text: str, folders: _Folders, is_path: bool = False) -> str:
    if text.startswith(f"{REWARD_MODEL}:"):
        named = text.removeprefix(f"{REWARD_MODEL}:")
        return f"{REWARD_MODEL}:{named if named in KNOWN else _locate(named, folders, is_path=True)}"
    if ".py:" not in text and not is_path:
        return text
    path, colon, function = text.rpartition(":") if ".py:" in text else (text, "", "")
    if Path(path).expanduser().is_absolute():
        return text
    start, present = folders.start, Path(path).exists()
    if start is not None and (start / path).exists():
        if present and (start / path).samefile(path):
            return text
        return f"{start / path}{colon}{function}"
    if not present:
        folder = next((folder for folder in folders.others if (folder / path).exists()), None)
        return text if folder is None else f"{folder / path}{colon}{function}"
    return text


def _merged(recipe: Layer, overrides: Layer, default_name: str) -> Layer:
    """The method's preset, the recipe over it, the overrides over that."""
    method = overrides.values.get("method", recipe.values.get("method"))
    if method is None:
        lowest = Layer({}, source=recipe.source)
    else:
        lowest = preset(str(method), overrides.origins.get(("method",)) or recipe.origin(("method",)))
        lowest.source = recipe.source
    lowest.values = {"name": default_name, **lowest.values}
    return merge(merge(lowest, recipe), overrides)


def _check(layer: Layer) -> Recipe:
    values = dict(layer.values)
    for choice in ("advantage", "token_reward", "reward", "select", "weigh"):
        if values.get(choice) == {}:  # its last entry was set to null
            values[choice] = None
    problems: list[Problem] = []
    if "loss" not in values:
        problems.append(Problem((), "`loss` is missing; name a method (method: grpo) or write a loss"))
        values["loss"] = {}
    bind_terms(values, problems)
    terms_are_valid = not problems
    recipe = _validate(values, problems)
    if recipe is not None and terms_are_valid:
        problems.extend(usage_problems(recipe))
        problems.extend(control_problems(recipe))
        problems.extend(mixture_problems(recipe))
        problems.extend(sampler_problems(recipe))
        problems.extend(policy_problems(recipe))
        problems.extend(shard_problems(recipe))
    refuse(problems, layer)
    assert recipe is not None
    return recipe


def _validate(values: Mapping[str, Yaml], problems: list[Problem]) -> Recipe | None:
    """The recipe, without the keys that do not belong; None where a value is wrong or missing."""
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        problems.extend(shape_problems(error))
        if any(item["type"] != "extra_forbidden" for item in error.errors()):
            return None
        return Recipe.model_validate(without(values, [key_path(item) for item in error.errors()]))
