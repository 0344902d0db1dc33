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
    (lengths,) = factory().lengths(16, 1024)
    assert lengths.tolist() == [103, 436, 861, 271, 107, 72, 701, 21, 615, 122, 467, 215, 331, 459, 88, 373]
    assert lengths.dtype is torch.int32
    assert lengths.device.type == "cpu"


@given(seed=st.integers(0, 2**63 - 1), count=st.integers(1, 20), maximum=st.integers(1, 2**31 - 2))
def test_lengths_are_between_one_and_the_maximum(seed: int, count: int, maximum: int):
    (lengths,) = factory(seed).lengths(count, maximum)
    assert lengths.shape == (count,)
    assert int(lengths.min()) >= 1
    assert int(lengths.max()) <= maximum


def test_lengths_do_not_depend_on_what_was_made_before():
    make = factory()
    make.normal("x", (4,), DType.FLOAT32)
    assert torch.equal(*make.lengths(16, 1024), *factory().lengths(16, 1024))


def test_lengths_of_several_maxima_are_drawn_one_after_the_other():
    first, second, third = factory().lengths(4000, 1024, 1024, 7)
    assert first[:4].tolist() == [103, 436, 861, 271]
    assert not torch.equal(first, second)
    assert (int(third.min()), int(third.max())) == (1, 7)
    for lengths in (first, second, third):
        assert (lengths.shape, lengths.dtype) == ((4000,), torch.int32)
    generator = torch.Generator().manual_seed(42)
    for lengths, maximum in ((first, 1024), (second, 1024), (third, 7)):
        assert torch.equal(lengths, torch.randint(1, maximum + 1, (4000,), generator=generator).int())


def test_other_seeds_make_other_lengths():
    assert not torch.equal(*factory().lengths(16, 1024), *factory(43).lengths(16, 1024))


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
        return make.normal("x", (8,), DType.FLOAT32).tolist(), make.lengths(4, 1024)[0].tolist()

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


# ---- scales, and FP8 ----

FP8 = [DType.FP8_E4M3, DType.FP8_E5M2]
WIDE = [DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16]


@pytest.mark.parametrize("dtype", [*WIDE, *FP8])
@pytest.mark.parametrize("scale", [0.02, 1.0, 4.0])
def test_an_element_stands_for_its_value_times_the_scale(dtype: DType, scale: float):
    found = factory().normal("x", (200, 100), dtype, scale)
    assert (found.shape, found.dtype) == ((200, 100), dtype.torch)
    stands_for = found.float() * scale
    assert abs(float(stands_for.mean())) < 0.03
    assert float(stands_for.std()) == pytest.approx(1, rel=0.03)
    assert found.float().isfinite().all()


@pytest.mark.parametrize("dtype", WIDE)
def test_wide_formats_are_drawn_as_they_are(dtype: DType):
    make = factory()
    generator = make.generator("x", "cpu")
    drawn = torch.randn((9, 7), dtype=dtype.torch, generator=generator)
    assert torch.equal(make.normal("x", (9, 7), dtype), drawn)
    assert torch.equal(make.normal("x", (9, 7), dtype, 0.3), drawn / 0.3)


@pytest.mark.parametrize("dtype", FP8)
@pytest.mark.parametrize("scale", [0.02, 1.0])
def test_fp8_is_rounded_from_bfloat16(dtype: DType, scale: float):
    drawn = torch.randn((90 * 70,), dtype=torch.bfloat16, generator=factory().generator("x", "cpu"))
    found = factory().normal("x", (90, 70), dtype, scale)
    assert torch.equal(found.float().flatten(), (drawn / scale).to(dtype.torch).float())


@pytest.mark.parametrize("dtype", FP8)
@pytest.mark.parametrize("scale", [1e-6, 1e-38])
def test_what_does_not_fit_fp8_saturates(dtype: DType, scale: float):
    """A cast alone makes NaN or infinities of it."""
    found = factory().normal("x", (200, 100), dtype, scale).float()
    largest = torch.finfo(dtype.torch).max
    assert found.isfinite().all()
    assert (float(found.min()), float(found.max())) == (-largest, largest)
    assert ((found > 0).float().mean() - 0.5).abs() < 0.02


@pytest.mark.parametrize("dtype", FP8)
def test_fp8_is_the_seeds_and_the_names(dtype: DType):
    made = [
        factory().normal("x", (64,), dtype),
        factory().normal("x", (64,), dtype),
        factory().normal("y", (64,), dtype),
        factory(43).normal("x", (64,), dtype),
    ]
    assert len({tuple(tensor.tolist()) for tensor in made}) == 3
    assert torch.equal(*(tensor.view(torch.uint8) for tensor in made[:2]))


@pytest.mark.parametrize("dtype", FP8)
@pytest.mark.parametrize("size", [64, 128, 512, 2048])
def test_slices_do_not_change_the_values(dtype: DType, size: int, monkeypatch: pytest.MonkeyPatch):
    whole = factory().normal("x", (32, 33), dtype, 0.02)
    monkeypatch.setattr(module, "_SLICE", size)
    assert torch.equal(factory().normal("x", (32, 33), dtype, 0.02).float(), whole.float())


@pytest.mark.parametrize("dtype", FP8)
def test_there_is_never_a_whole_tensor_of_twice_the_size(dtype: DType, monkeypatch: pytest.MonkeyPatch):
    randn, drawn = torch.randn, []

    def watched(count: int, **how: object) -> torch.Tensor:
        drawn.append(count)
        return randn(count, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(module.torch, "randn", watched)
    monkeypatch.setattr(module, "_SLICE", 100)
    factory().normal("x", (25, 10), dtype)
    assert drawn == [100, 100, 50]


@pytest.mark.parametrize("dtype", FP8)
@pytest.mark.parametrize("shape", [(0, 4), (1,), (3, 5)])
def test_fp8_tensors_of_any_size(dtype: DType, shape: tuple[int, ...]):
    found = factory().normal("x", shape, dtype)
    assert (found.shape, found.dtype) == (shape, dtype.torch)
    assert found.is_contiguous()


def test_fp8_takes_a_byte_an_element():
    make = factory(free_bytes=1000)
    make.normal("x", (900,), DType.FP8_E4M3)
    with pytest.raises(DoesNotFit) as caught:
        make.normal("y", (1,), DType.FP8_E5M2)
    assert caught.value.needed_bytes == 901


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
@pytest.mark.parametrize(
    ("draw", "dtype"), [("normal", DType.BFLOAT16), ("normal", DType.FP8_E4M3), ("uniform", DType.BFLOAT16)]
)
def test_absurd_sizes_are_refused_before_anything_is_allocated(
    draw: str, dtype: DType, shape: tuple[int, ...], monkeypatch
):
    for function in ("randn", "rand", "empty"):
        monkeypatch.setattr(module.torch, function, lambda *_, **__: pytest.fail("allocated"))
    with pytest.raises(DoesNotFit):
        getattr(factory(), draw)("x", shape, dtype)


@pytest.mark.parametrize("seed", [0, 2**63, 10**30])
def test_any_seed_will_do(seed: int):
    make = factory(seed)
    assert make.normal("x", (2,), DType.FLOAT32).isfinite().all()
    (lengths,) = make.lengths(3, 10)
    assert len(lengths) == 3
