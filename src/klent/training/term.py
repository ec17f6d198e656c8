"""One function of a recipe, ready to be called."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

from torch import Tensor

from klent.config.binding import optional_of, parameters_of, resolve, streams_of
from klent.objectives.kinds import declaration, weighs_itself, whole_sequences
from klent.objectives.returned import as_token_loss
from klent.objectives.types import TokenLoss
from klent.streams.registry import Streams


@dataclass(frozen=True)
class Term:
    """A function of klent.objectives (or the user's) with its settings.

    Attributes:
        name: as the recipe writes it.
        function: what is called.
        settings: its hyper-parameters; a thermostat may change one from step to step.
        streams: names of the numbers it reads.
        weighted: whether an importance weight multiplies it, where there is one.
        weighs_itself: whether the ratio to the sampler is in it already, so that the weight only drops.
        renamed: parameters that take a stream of another name.
    """

    name: str
    function: Callable[..., Any]
    settings: dict[str, Any]
    streams: frozenset[str]
    weighted: bool = True
    weighs_itself: bool = False
    renamed: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def named(cls, name: str, settings: Mapping[str, Any] | None) -> "Term":
        """The term that a recipe writes as ``name: settings``."""
        function = resolve(name)
        return cls(
            name,
            function,
            dict(settings or {}),
            frozenset(streams_of(function, settings)),
            weighted=not whole_sequences(function),
            weighs_itself=weighs_itself(function),
            renamed={name: stream for name, stream in parameters_of(function).items() if name != stream},
        )

    @classmethod
    def made_of(cls, term: "Term", **changes: Any) -> Self:
        """A term of this kind out of a plain one: all that it has, with these fields set or changed."""
        return cls(**{one.name: getattr(term, one.name) for one in fields(Term)} | changes)

    @property
    def required(self) -> frozenset[str]:
        """The numbers that it cannot do without."""
        return self.streams - optional_of(self.function)

    def __call__(self, streams: Streams, **supplied: object) -> Any:
        """Call the function with what it reads; ``supplied`` is data that is no stream, such as a generator.

        A stream that the function can do without is given where the step has it.
        """
        absent = {name for name in self.streams - self.required if streams.get(name) is None}
        values = streams.read(self.streams - absent)
        given = {name: values.pop(stream) for name, stream in self.renamed.items() if stream in values}
        return self.function(**values, **given, **supplied, **self.settings)

    def loss(self, streams: Streams) -> TokenLoss:
        """Call the function as a loss; one of the user's may return the loss per token alone."""
        return as_token_loss(self(streams))

    def idle(self, streams: Streams) -> Tensor | None:
        """The actions at which the gradient is 0 whatever the policy's numbers are, ``[B, T]`` bool.

        None where the function does not say.
        """
        declared = declaration(self.function)
        if declared is None or declared.idle is None:
            return None
        values = {name: streams.get(name) for name in self.streams}
        return declared.idle(**values, **self.settings)
