"""Certificates are made of small tensors: on one thread they take a fraction of the time."""

from collections.abc import Iterator

import pytest

from klent.kit.threads import one_thread


@pytest.fixture(scope="package", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield
