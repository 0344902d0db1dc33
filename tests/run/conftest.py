"""What all tests of the engine share."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

from tests.fakes import Fake, fake_routine

settings.register_profile("deterministic", derandomize=True, database=None, deadline=None)
settings.load_profile("deterministic")


@pytest.fixture(scope="package", autouse=True)
def _one_thread() -> Iterator[None]:
    """Cases are tiny: threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _quick_collections() -> Iterator[None]:
    """What torch holds needs no collection after each backend; a session's end undoes a freeze."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def fake() -> Iterator[Fake]:
    """The fake routine, without any backend."""
    with fake_routine() as declared:
        yield declared
