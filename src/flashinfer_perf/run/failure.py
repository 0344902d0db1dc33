"""What an exception means for a record."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator

from flashinfer_perf.core.errors import DoesNotFit, InvalidInput, Unsupported
from flashinfer_perf.core.record import Status

UNSUPPORTED_BY_NAME = ("BackendSupportedError", "_BackendPlanUnsupportedError", "cudnnGraphNotSupportedError")
"""Exceptions by which libraries say 'not supported'; by name, so that no library has to be imported to ask."""
OUT_OF_MEMORY_BY_NAME = ("OutOfMemoryError", "AcceleratorOutOfMemoryError")
OUT_OF_MEMORY_TEXTS = ("can't allocate memory", "not enough memory", "out of memory")


class FailedElsewhere(Exception):
    """Another rank failed in a step that all have to finish. Its status is everybody's: ranks must decide alike."""

    def __init__(self, rank: int, status: Status, reason: str) -> None:
        super().__init__(f"rank {rank}: {reason}")
        self.status = status


def classify(error: BaseException) -> tuple[Status, str]:
    """The status and the reason, in one line, of an exception that a case or a backend raised."""
    text = first_line(error)
    name = type(error).__name__
    if isinstance(error, KeyboardInterrupt):
        return Status.INTERRUPTED, "interrupted by Ctrl-C"
    if isinstance(error, FailedElsewhere):
        return error.status, text
    if isinstance(error, InvalidInput):
        return Status.INVALID, text
    if isinstance(error, Unsupported):
        return Status.UNSUPPORTED, text
    if isinstance(error, DoesNotFit):
        return Status.OUT_OF_MEMORY, text
    if (
        isinstance(error, MemoryError)
        or name in OUT_OF_MEMORY_BY_NAME
        or any(t in str(error) for t in OUT_OF_MEMORY_TEXTS)
    ):
        return Status.OUT_OF_MEMORY, f"{name}: {text}"
    return Status.FAILED, f"{name}: {text}" if text else f"{name} in {_where(error)}"


@contextlib.contextmanager
def libraries_may_refuse() -> Iterator[None]:
    """Turns a library's own 'not supported' into Unsupported. Only for its own code: a check that is not implemented
    for a format is a failure.
    """
    try:
        yield
    except Exception as error:
        name = type(error).__name__
        if isinstance(error, NotImplementedError) or name in UNSUPPORTED_BY_NAME:
            raise Unsupported(f"{name}: {first_line(error)}") from error
        raise


def first_line(error: BaseException) -> str:
    """The first line of an exception's text that is not blank."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "")


def _where(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "an unknown place"
