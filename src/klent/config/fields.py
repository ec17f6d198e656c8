"""The keys of a recipe as a tree: which section a key belongs to, and what each key means."""

import typing
from collections.abc import Iterable, Iterator

from pydantic.fields import FieldInfo

from klent.config.base import Settings
from klent.config.layers import KeyPath
from klent.config.recipe import TAGS, Recipe


def describe_fields() -> Iterator[tuple[str, str, str]]:
    """Every key of a recipe as ``(dotted key, default, meaning)``."""
    for key, field in field_paths():
        yield key, _default(field), field.description or ""


def field_paths(section: type[Settings] = Recipe, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every dotted key of a recipe with its pydantic field, sections flattened."""
    for name, field in section.model_fields.items():
        yield f"{prefix}{name}", field
        if name != "reward":
            for option in sections_in(field.annotation):
                yield from field_paths(option, f"{prefix}{name}.")


def sections_in(annotation: object) -> list[type[Settings]]:
    """Every section class inside a type, through unions, tuples and annotations."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return [annotation]
    return [section for argument in typing.get_args(annotation) for section in sections_in(argument)]


def section_at(path: KeyPath, tags: Iterable[str]) -> type[Settings]:
    """The class of the section at ``path``; ``tags`` say which member of each union is meant."""
    members = [TAGS[tag] for tag in tags]
    section: type[Settings] = Recipe
    for part in path:
        if isinstance(part, str) and part in section.model_fields:
            options = sections_in(section.model_fields[part].annotation)
            section = next((option for option in options if option in members), options[0])
    return section


def up_to_field(path: KeyPath) -> tuple[KeyPath, FieldInfo | None]:
    """``path`` cut where it leaves the recipe's fields for the members of a union, and its last field."""
    sections: list[type[Settings]] = [Recipe]
    field = None
    for depth, part in enumerate(path):
        fields = [section.model_fields[str(part)] for section in sections if part in section.model_fields]
        if not fields:
            return path[:depth], field
        field = fields[0]
        sections = sections_in(field.annotation)
    return path, field


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is None:
        return "null"
    if isinstance(value, Settings):
        return ""
    return str(list(value) if isinstance(value, tuple) else value)
