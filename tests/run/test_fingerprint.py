from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flashinfer_perf.run import fingerprint as module
from flashinfer_perf.run.fingerprint import Fingerprints, fingerprint


def value(tensor: torch.Tensor) -> int:
    return int(fingerprint(tensor))


@given(data=st.binary(min_size=1, max_size=70), position=st.integers(0, 69), change=st.integers(1, 255))
def test_any_single_byte_that_changes_is_noticed(data: bytes, position: int, change: int):
    tensor = torch.tensor(list(data), dtype=torch.uint8)
    before = value(tensor)
    tensor[position % len(data)] ^= change
    assert value(tensor) != before


@given(data=st.binary(min_size=1, max_size=70))
def test_equal_bytes_have_equal_fingerprints(data: bytes):
    first, second = (torch.tensor(list(data), dtype=torch.uint8) for _ in range(2))
    assert value(first) == value(second)


@given(
    data=st.lists(st.integers(0, 255), min_size=16, max_size=64),
    a=st.integers(0, 63),
    b=st.integers(0, 63),
)
def test_bytes_that_change_places_are_noticed(data: list[int], a: int, b: int):
    a, b = a % len(data), b % len(data)
    tensor = torch.tensor(data, dtype=torch.uint8)
    before = value(tensor)
    tensor[[a, b]] = tensor[[b, a]]
    assert (value(tensor) != before) == (data[a] != data[b])


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 63, 64, 65])
@pytest.mark.parametrize("chunk", [1, 3, 1 << 18])
def test_every_byte_counts_whatever_the_size_and_the_chunks(size: int, chunk: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(module._CHUNK, "cpu", chunk)
    tensor = torch.arange(size, dtype=torch.int16).to(torch.uint8)
    values = {value(tensor)}
    for position in range(size):
        tensor[position] ^= 0x80
        values.add(value(tensor))
        tensor[position] ^= 0x80
    assert len(values) == size + 1


@pytest.mark.parametrize("count", module._CHUNK.values())
def test_no_two_words_of_a_chunk_weigh_the_same(count: int):
    """Words that change places would not be noticed."""
    weights = module._weights(torch.device("cpu"), count)
    assert bool((weights.sort().values.diff() != 0).all())


def test_the_sign_of_zero_and_the_payload_of_nan_are_bytes_like_any_other():
    """Comparing values would see no difference in the one, and always one in the other."""
    zero, nan = torch.tensor([0.0]), torch.tensor([float("nan")])
    assert value(zero) != value(-zero)
    assert value(nan) == value(nan.clone())
    assert value(nan) != value((nan.view(torch.int32) + 1).view(torch.float32))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.bfloat16, torch.bool, torch.int64, torch.float64])
def test_every_format_is_hashed(dtype: torch.dtype):
    tensor = torch.zeros(5, 3).to(dtype)
    before = value(tensor)
    tensor.view(torch.uint8)[4, 1] = 1
    assert value(tensor) != before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("step", [1, 2, 4])
def test_signs_that_change_do_not_cancel_each_other(dtype: torch.dtype, step: int):
    """A rotary embedding in place negates every other element."""
    tensor = torch.randn(8, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    before = value(tensor)
    tensor[:, step - 1 :: step].neg_()
    assert value(tensor) != before


def test_views_are_hashed_by_their_whole_storage():
    """A kernel that writes beside the view that it was given changes an input, too."""
    pool = torch.zeros(4, 6)
    view = pool[1:3, ::2].T
    before = value(view)
    pool[0, 0] = 1
    assert value(view) != before


def test_changed_names_the_tensors_that_changed():
    tensors = {"x": torch.zeros(3), "ids": torch.zeros(5, dtype=torch.int32), "empty": torch.zeros(0)}
    fingerprints = Fingerprints(tensors)
    assert fingerprints.changed() == []
    tensors["ids"][4] = 1
    assert fingerprints.changed() == ["ids"]
    tensors["ids"][4] = 0
    assert fingerprints.changed() == []
