"""What all tests of routines share."""

from __future__ import annotations

import contextlib
import gc
import importlib
from collections.abc import Iterator

import pytest
import torch

from flashinfer_perf.routines import all_routines


@pytest.fixture(scope="package", autouse=True)
def _quick_small_cases() -> Iterator[None]:
    """Hundreds of tiny cases: one thread each, for several only wait for each other on busy cores; and what torch and
    FlashInfer hold is exempt from the engine's garbage collections, as it is in a session.
    """
    for heavy in ("scipy.special", "torch.nn.attention.bias", "flashinfer", "flashinfer.mla"):
        with contextlib.suppress(ImportError):
            importlib.import_module(heavy)
    all_routines()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
    torch.set_num_threads(threads)
