"""mxfp4_quantize: its call, its checks, and quantisers that those must find out."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from flashinfer_perf.core.errors import InvalidInput
from flashinfer_perf.core.work import Work
from flashinfer_perf.formats import e2m1, e8m0, mxfp4
from flashinfer_perf.formats.scale_layout import swizzle_128x4
from flashinfer_perf.routines.quantization.mxfp4_quantize import quantise
from flashinfer_perf.run.launch import Launch
from tests.contract import Gives, contract, covers
from tests.routines.harness import assert_caught, assert_passes, launch_of, problem_of, run, run_broken, unconditional

NAME = "mxfp4_quantize"
CASE = "--m 40 --k 160"


# ---- The call of the library ----


@covers(NAME, "cuda")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_cuda_calls_flashinfer_as_it_declares(dtype):
    gives = (Gives((40, 80), torch.uint8), Gives((128, 8), torch.uint8))
    with contract("flashinfer.mxfp4_quantize", gives) as kernel:
        launch, problem = launch_of(NAME, "cuda", f"{CASE} --input_dtype {dtype}")
        returned = launch()
    assert kernel.call.pop("backend") == "cuda"
    assert kernel.call.pop("a") is problem["x"]
    assert not kernel.call, "an argument that this test knows nothing of"
    assert problem["x"].dtype is getattr(torch, dtype)
    outputs, truth = launch.outputs(returned), problem.truth()
    assert {name: output.shape for name, output in outputs.items()} == {name: t.shape for name, t in truth.items()}


@pytest.fixture
def blackwell(monkeypatch):
    """FlashInfer's quantiser believes to be on a B200: all its own code runs, but for the compiled module."""

    def fp4_quantize_sm100(x, global_scale, block, ue8m0, swizzled, is_8x4, inversed, enable_pdl, four_over_six):
        assert (global_scale, block, ue8m0, swizzled, is_8x4, inversed) == (None, 32, True, True, False, False)
        packed, scales = quantise(x)
        return packed, scales.flatten()

    inside = "flashinfer.quantization.fp4_quantization"
    monkeypatch.setattr(torch.Tensor, "cuda", lambda tensor: tensor)
    monkeypatch.setattr(f"{inside}.get_compute_capability", lambda device: (10, 0))
    monkeypatch.setattr(f"{inside}.device_support_pdl", lambda device: True)
    module = SimpleNamespace(fp4_quantize_sm100=fp4_quantize_sm100)
    monkeypatch.setattr(f"{inside}.get_fp4_quantization_module", lambda capability: module)


@pytest.mark.parametrize("flags", [CASE, "--m 1 --k 32", "--m 129 --k 128 --input_dtype float16"])
def test_what_flashinfer_makes_of_its_kernels_output_passes(blackwell, flags):
    """Layout and shape of the scales are as its own code gives them, also where columns are padded."""
    with unconditional(NAME, "cuda"):
        assert_passes(run(NAME, flags, "cuda"))


# ---- Right quantisers pass ----


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(("m", "k"), [(1, 32), (1, 4096), (3, 96), (127, 64), (128, 128), (129, 160), (300, 224)])
def test_torch_passes(m, k, dtype):
    assert_passes(run(NAME, f"--m {m} --k {k} --input_dtype {dtype}", "torch"))


@pytest.mark.parametrize("k", [1, 16, 33, 100])
def test_columns_that_are_no_whole_blocks_are_invalid(k):
    with pytest.raises(InvalidInput, match=rf"k \({k}\) must be divisible by the block size, 32"):
        problem_of(NAME, f"--m 4 --k {k}")


# ---- Wrong quantisers are caught ----


def blocks_of(x):
    return x.float().unflatten(-1, (-1, 32))


def with_scales(x, scales, encode=e2m1.encode):
    """Packed elements and swizzled scales for scale bytes (rows, blocks)."""
    codes = encode(blocks_of(x) * e8m0.reciprocal(scales)[..., None])
    return e2m1.pack(codes.flatten(-2)), swizzle_128x4(scales)


def right_scales(x):
    return mxfp4.encode(x).scales


def zeros(x):
    return tuple(torch.zeros_like(part) for part in quantise(x))


def zero_scales(x):
    packed, scales = quantise(x)
    return packed, torch.zeros_like(scales)


def floor_of_the_scale(x):
    """The rule of the OCP specification: 2^(floor(log2(amax)) - 2), with which elements above 6 saturate."""
    exponent = blocks_of(x).abs().amax(dim=-1).log2().floor() - 2
    return with_scales(x, (exponent + 127).to(torch.uint8))


def scale_one_code_high(x):
    return with_scales(x, right_scales(x) + 1)


def one_scale_one_code_off(x):
    packed, scales = quantise(x)
    scales[0, 0] += 1
    return packed, scales


def not_a_number(x):
    packed, scales = quantise(x)
    scales[0, 0] = 0xFF
    return packed, scales


def scale_of_16_elements(x):
    halves = x.float().abs().unflatten(-1, (-1, 2, 16)).amax(dim=-1)[..., 0]
    return with_scales(x, mxfp4.encode((halves[..., None] * torch.ones(32)).flatten(-2)).scales)


def half_away_from_zero(x):
    def encode(values):
        ties = torch.tensor(e2m1.TIES)
        return torch.bucketize(values.abs(), ties, right=True).to(torch.uint8) + 8 * torch.signbit(values)

    return with_scales(x, right_scales(x), encode)


def half_towards_zero(x):
    def encode(values):
        ties = torch.tensor(e2m1.TIES)
        return torch.bucketize(values.abs(), ties).to(torch.uint8) + 8 * torch.signbit(values)

    return with_scales(x, right_scales(x), encode)


def truncates(x):
    def encode(values):
        steps = torch.tensor(e2m1.MAGNITUDES)[1:]
        return torch.bucketize(values.abs(), steps, right=True).to(torch.uint8) + 8 * torch.signbit(values)

    return with_scales(x, right_scales(x), encode)


def loses_the_sign_of_zero(x):
    def encode(values):
        codes = e2m1.encode(values)
        return torch.where(codes == 8, torch.zeros_like(codes), codes)

    return with_scales(x, right_scales(x), encode)


def nibbles_swapped(x):
    packed, scales = quantise(x)
    return (packed >> 4) | (packed << 4), scales


def scales_row_by_row(x):
    packed, scales = quantise(x)
    linear = torch.zeros_like(scales)
    linear[: x.shape[0], : x.shape[1] // 32] = right_scales(x)
    return packed, linear


def swizzled_the_other_way_round(x):
    packed, scales = quantise(x)
    tiles = scales.view(-1, 32, 4, 4)
    return packed, tiles.transpose(2, 3).reshape(scales.shape).contiguous()


def padding_not_zeroed(x):
    packed, scales = quantise(x)
    return packed, torch.where(scales == 0, torch.full_like(scales, 127), scales)


def one_row_off(x):
    return quantise(x.roll(1, dims=0))


def one_block_off(x):
    return quantise(x.roll(32, dims=1))


def one_element_off(x):
    packed, scales = quantise(x)
    return e2m1.pack(e2m1.unpack(packed).roll(1, dims=1)), scales


def one_bit_off(x):
    packed, scales = quantise(x)
    packed[-1, -1] ^= 1
    return packed, scales


def last_row_forgotten(x):
    packed, scales = quantise(x)
    packed[-1] = 0
    return packed, scales


def flat_scales(x):
    packed, scales = quantise(x)
    return packed, scales.flatten()


def changes_its_input(x):
    result = quantise(x)
    x[0, 0] += 1
    return result


BROKEN = [
    zeros, zero_scales, floor_of_the_scale, scale_one_code_high, one_scale_one_code_off, not_a_number,
    scale_of_16_elements, half_away_from_zero, half_towards_zero, truncates, loses_the_sign_of_zero, nibbles_swapped,
    scales_row_by_row, swizzled_the_other_way_round, padding_not_zeroed, one_row_off, one_block_off, one_element_off,
    one_bit_off, last_row_forgotten, flat_scales, changes_its_input,
]  # fmt: skip


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("kernel", BROKEN, ids=lambda kernel: kernel.__name__)
def test_a_broken_quantiser_is_caught(kernel, dtype):
    def prepare(case, problem):
        return Launch(kernel, kwargs={"x": problem["x"]}, returns=("packed", "scales"))

    assert_caught(run_broken(NAME, prepare, f"{CASE} --input_dtype {dtype}"))


# ---- The problem ----


def test_work():
    """3 FLOPs an element; the input, half a byte an element and a byte for every 32."""
    _, problem = problem_of(NAME, "--m 4 --k 64")
    assert problem.work == Work(flops=3 * 256, bytes=2 * 256 + 128 + 8)
