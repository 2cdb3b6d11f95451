"""What holds for every test."""

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def _garbage_at_last() -> Iterator[None]:
    """What was kept from the collector by then is looked through once, at the end."""
    yield
    gc.unfreeze()


@pytest.fixture(scope="module", autouse=True)
def _little_garbage(_garbage_at_last: None) -> None:
    """Hundreds of tests collect garbage before they count descriptors: what their own module has made is looked through
    each time, and not all that pytest and the tests before have.
    """
    gc.collect()
    gc.freeze()
