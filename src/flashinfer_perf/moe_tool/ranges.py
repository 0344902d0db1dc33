"""NVTX ranges, by which a profiler's timeline names what it shows."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

from flashinfer_perf.lazy import torch


@contextlib.contextmanager
def ranged(name: str) -> Iterator[None]:
    """A range around a block; none without a GPU, where torch has no NVTX."""
    if not torch.cuda.is_available():
        yield
        return
    with torch.cuda.nvtx.range(name):
        yield


def in_range(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """The same call with a range around each invocation. One on the CPU stays as it is."""
    if not torch.cuda.is_available():
        return call

    @functools.wraps(call, updated=())
    def annotated(*args: Any, **kwargs: Any) -> Any:
        with torch.cuda.nvtx.range(name):
            return call(*args, **kwargs)

    return annotated
