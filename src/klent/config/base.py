"""What every section of a recipe is built from."""

from typing import Annotated, TypeAlias, Union

from pydantic import BaseModel, ConfigDict, Field

#: whatever a YAML file can say
Yaml: TypeAlias = Union[bool, int, float, str, list["Yaml"], dict[str, "Yaml"], None]  # noqa: UP007

PositiveInt = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Names = Annotated[tuple[str, ...], Field(strict=False)]
#: arguments of a function; the function itself says which ones it takes
Arguments = dict[str, object]
#: functions by name, each with its arguments
Terms = dict[str, Arguments]
#: choices of tokens by name, each made by one function
Choices = dict[str, Terms]


class Settings(BaseModel):
    """Base of every section: no unknown key, no silent conversion, no change after loading."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )
