"""What all tests of sinks share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.fakes import Fake, fake_routine

settings.register_profile(
    "deterministic",
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
settings.load_profile("deterministic")


@pytest.fixture
def fake() -> Iterator[Fake]:
    """The fake routine, with one backend."""
    with fake_routine() as declared:
        declared.add("torch")
        yield declared
