"""Another attention function for a transformers model, for the time of a block of code."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def attending(model: Any, name: str) -> Iterator[None]:
    """Within this, the model's attention is the function that transformers knows by ``name``."""
    config = model.config.get_text_config()
    usual = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = usual
