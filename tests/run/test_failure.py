from __future__ import annotations

import numpy as np
import pytest
import torch

from flashinfer_perf.core.errors import DoesNotFit, InvalidInput, Unsupported
from flashinfer_perf.core.record import Status
from flashinfer_perf.run.failure import FailedElsewhere, classify, first_line, libraries_may_refuse


class OutOfMemoryError(RuntimeError):
    """As torch and CuPy call theirs."""


class BackendSupportedError(Exception):
    """As FlashInfer calls its own."""


def numpy_out_of_memory() -> BaseException:
    with pytest.raises(MemoryError) as caught:
        np.empty(1 << 60, dtype=np.uint8)
    return caught.value


def torch_out_of_memory() -> BaseException:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    return caught.value


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (Unsupported("it needs SM 9.0"), Status.UNSUPPORTED, "it needs SM 9.0"),
        (InvalidInput("k must be even"), Status.INVALID, "k must be even"),
        (KeyboardInterrupt(), Status.INTERRUPTED, "interrupted by Ctrl-C"),
        (MemoryError("no more"), Status.OUT_OF_MEMORY, "MemoryError: no more"),
        (OutOfMemoryError("tried 2 GiB"), Status.OUT_OF_MEMORY, "OutOfMemoryError: tried 2 GiB"),
        (torch.OutOfMemoryError("tried"), Status.OUT_OF_MEMORY, "OutOfMemoryError: tried"),
        (RuntimeError("CUDA error: out of memory"), Status.OUT_OF_MEMORY, "RuntimeError: CUDA error: out of memory"),
        (ValueError("\n  bad shape\nmore"), Status.FAILED, "ValueError: bad shape"),
        (FailedElsewhere(1, Status.OUT_OF_MEMORY, "MemoryError: x"), Status.OUT_OF_MEMORY, "rank 1: MemoryError: x"),
        (NotImplementedError("later"), Status.FAILED, "NotImplementedError: later"),
    ],
)
def test_exceptions_have_a_status_and_a_reason_in_one_line(error: BaseException, status: Status, reason: str):
    assert classify(error) == (status, reason)


@pytest.mark.parametrize("make", [numpy_out_of_memory, torch_out_of_memory])
def test_a_real_allocation_that_fails_is_out_of_memory(make):
    status, reason = classify(make())
    assert status is Status.OUT_OF_MEMORY
    assert "\n" not in reason


def test_memory_that_was_not_even_asked_for_is_out_of_memory_with_both_numbers():
    status, reason = classify(DoesNotFit("x", 4000, 900))
    assert status is Status.OUT_OF_MEMORY
    assert "4000 bytes" in reason
    assert "900 bytes" in reason


def test_an_exception_without_a_text_says_where_it_came_from():
    def bare() -> None:
        raise AssertionError

    with pytest.raises(AssertionError) as caught:
        bare()
    status, reason = classify(caught.value)
    assert status is Status.FAILED
    assert reason.startswith("AssertionError in ")
    assert __file__ in reason
    assert classify(AssertionError()) == (Status.FAILED, "AssertionError in an unknown place")


@pytest.mark.parametrize("error", [NotImplementedError("no fp8 here"), BackendSupportedError("no fp8 here\nsee docs")])
def test_a_librarys_own_not_supported_is_unsupported_where_the_library_runs(error: Exception):
    with pytest.raises(Unsupported) as caught, libraries_may_refuse():
        raise error
    assert str(caught.value) == f"{type(error).__name__}: no fp8 here"
    assert caught.value.__cause__ is error


def test_other_exceptions_of_a_library_stay_what_they_are():
    with pytest.raises(ValueError, match="bad"), libraries_may_refuse():
        raise ValueError("bad")


def test_first_line_is_the_first_that_is_not_blank():
    assert first_line(ValueError("\n \n  a \nb")) == "a"
    assert first_line(ValueError("")) == ""
