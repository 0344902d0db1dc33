"""For all tests: Ctrl-C reaches the tests and the programs that they start, and collecting garbage costs little.

A shell starts what it runs in the background with SIGINT ignored, and children inherit that.
"""

from __future__ import annotations

import gc
import signal

import pytest

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    _keep_what_is_there()


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    if nextitem is None or nextitem.path != item.path:
        _keep_what_is_there()


def _keep_what_is_there() -> None:
    """The engine collects garbage after every backend: what tests, their reports and imported modules have left behind
    would be gone through each time.
    """
    gc.collect()
    gc.freeze()
