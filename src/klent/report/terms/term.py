"""What is said of a metric."""

from typing import NamedTuple


class Term(NamedTuple):
    """What one number is.

    Attributes:
        unit: nats, fraction, tokens, ...; empty for a pure number.
        definition: one sentence.
        reading: how to interpret it, and what is healthy.
    """

    unit: str
    definition: str
    reading: str
