from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.core.errors import DoesNotFit
from flashinfer_perf.run import factory as module
from flashinfer_perf.run.factory import HEADROOM, TensorFactory
from flashinfer_perf.run.ranks import SingleRank
from tests.fakes import on_two_ranks

MIB = 1 << 20


def factory(seed: int = 42, free_bytes: int = MIB) -> TensorFactory:
    return TensorFactory("cpu", seed, free_bytes, SingleRank())


def test_lengths_are_the_documented_ones():
    lengths = factory().lengths(16, 1024)
    assert lengths.tolist() == [103, 436, 861, 271, 107, 72, 701, 21, 615, 122, 467, 215, 331, 459, 88, 373]
    assert lengths.dtype is torch.int32
    assert lengths.device.type == "cpu"


@given(seed=st.integers(0, 2**63 - 1), count=st.integers(1, 20), maximum=st.integers(1, 2**31 - 2))
def test_lengths_are_between_one_and_the_maximum(seed: int, count: int, maximum: int):
    lengths = factory(seed).lengths(count, maximum)
    assert lengths.shape == (count,)
    assert int(lengths.min()) >= 1
    assert int(lengths.max()) <= maximum


def test_lengths_do_not_depend_on_what_was_made_before():
    make = factory()
    make.normal("x", (4,), DType.FLOAT32)
    assert torch.equal(make.lengths(16, 1024), factory().lengths(16, 1024))


def test_adding_a_tensor_changes_no_other():
    alone = factory().normal("weight", (5, 3), DType.BFLOAT16)
    make = factory()
    make.uniform("x", (7,), DType.FLOAT32)
    make.normal("bias", (5, 3), DType.BFLOAT16)
    assert torch.equal(make.normal("weight", (5, 3), DType.BFLOAT16), alone)


def test_names_and_seeds_make_different_data():
    made = [
        factory().normal("x", (8,), DType.FLOAT32),
        factory().normal("y", (8,), DType.FLOAT32),
        factory(seed=43).normal("x", (8,), DType.FLOAT32),
    ]
    assert len({tuple(tensor.tolist()) for tensor in made}) == 3


def test_ranks_draw_different_data_and_the_same_lengths():
    def work(ranks: object) -> tuple[list[float], list[int]]:
        make = TensorFactory("cpu", 42, MIB, ranks)  # type: ignore[arg-type]
        return make.normal("x", (8,), DType.FLOAT32).tolist(), make.lengths(4, 1024).tolist()

    (first, lengths), (second, others) = on_two_ranks(work)
    assert first != second
    assert lengths == others == [103, 436, 861, 271]


def test_normal_and_uniform_are_what_they_say():
    normal = factory().normal("x", (20_000,), DType.FLOAT32)
    assert abs(float(normal.mean())) < 0.03
    assert abs(float(normal.std()) - 1) < 0.03
    uniform = factory().uniform("x", (20_000,), DType.FLOAT32)
    assert 0 <= float(uniform.min()) < 0.001
    assert 0.999 < float(uniform.max()) < 1


@pytest.mark.parametrize("dtype", [DType.FLOAT64, DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16])
def test_tensors_have_the_shape_and_the_format_asked_for(dtype: DType):
    for tensor in (factory().normal("x", (2, 3), dtype), factory().uniform("x", (2, 3), dtype)):
        assert tensor.shape == (2, 3)
        assert tensor.dtype is dtype.torch


def test_what_does_not_fit_is_refused_with_both_byte_counts():
    available = int(1000 * HEADROOM)
    with pytest.raises(DoesNotFit, match=rf"'x'.*{available} bytes") as caught:
        factory(free_bytes=1000).normal("x", (1000,), DType.FLOAT32)
    assert caught.value.needed_bytes == 4000
    assert caught.value.available_bytes == available
    assert "4000 bytes" in str(caught.value)


def test_tensors_are_added_up():
    make = factory(free_bytes=1000)
    make.normal("x", (100,), DType.FLOAT32)
    make.uniform("y", (100,), DType.FLOAT32)
    with pytest.raises(DoesNotFit) as caught:
        make.reserve("table", (100,), DType.BFLOAT16)
    assert caught.value.needed_bytes == 1000


def test_packed_formats_take_half_a_byte_an_element():
    make = factory(free_bytes=1000)
    make.reserve("packed", (45, 40), DType.NVFP4)
    with pytest.raises(DoesNotFit) as caught:
        make.reserve("one more", (1,), DType.MXFP4)
    assert caught.value.needed_bytes == 901


@pytest.mark.parametrize("shape", [(10**15,), (10**15, 10**15), (2**31, 2**31)])
@pytest.mark.parametrize("draw", ["normal", "uniform"])
def test_absurd_sizes_are_refused_before_anything_is_allocated(draw: str, shape: tuple[int, ...], monkeypatch):
    for function in ("randn", "rand", "empty"):
        monkeypatch.setattr(module.torch, function, lambda *_, **__: pytest.fail("allocated"))
    with pytest.raises(DoesNotFit):
        getattr(factory(), draw)("x", shape, DType.BFLOAT16)


@pytest.mark.parametrize("seed", [0, 2**63, 10**30])
def test_any_seed_will_do(seed: int):
    make = factory(seed)
    assert make.normal("x", (2,), DType.FLOAT32).isfinite().all()
    assert len(make.lengths(3, 10)) == 3
