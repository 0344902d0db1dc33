"""The quantisers on a GPU: every backend that runs there is right, and those that write nothing are refused."""

from __future__ import annotations

import pytest
import torch

from flashinfer_perf.core.record import Status
from flashinfer_perf.routines import all_routines
from tests.gpu.harness import assert_all_right, case_of, records_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

QUANTISERS = [routine.name for routine in all_routines().values() if routine.family == "quantization"]
SHAPES = ["--m 1 --k 32", "--m 300 --k 224", "--m 1024 --k 4096 --input_dtype float16", "--m 129 --k 8192"]
VARIANTS = {
    "mxfp8_quantize": ["", "--no_sf_swizzled_layout --enable_pdl", "--alignment 32"],
    "mxfp4_quantize": ["", "--sf_layout 8x4", "--sf_layout linear --enable_pdl"],
    "nvfp4_quantize": ["", "--sf_layout 8x4 --global_scale 500", "--sf_layout linear --global_scale 0.37 --enable_pdl"],
    "nvfp4_batched_quantize": ["--batch_size 1", "--batch_size 5 --global_scale 500"],
}
SHUFFLED = "--m 1024 --k 4096 --do_shuffle --global_scale"
BEFORE_BLACKWELL = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] < 10


def variants() -> list[tuple[str, str]]:
    every = [(name, f"{shape} {extra}") for name in QUANTISERS for shape in SHAPES for extra in VARIANTS[name]]
    return every + [("nvfp4_quantize", f"{SHUFFLED} {scale}") for scale in (1, 500)]


@pytest.mark.parametrize(("name", "flags"), variants())
def test_every_backend_that_runs_here_is_right(name, flags):
    assert_all_right(name, flags)


@pytest.mark.skipif(not BEFORE_BLACKWELL, reason="needs a GPU before Blackwell")
@pytest.mark.parametrize(("name", "flags"), [(name, f"--m 16 --k 64 {VARIANTS[name][-1]}") for name in QUANTISERS])
def test_before_blackwell_flashinfer_is_refused_with_the_reason(name, flags):
    (record,) = records_of(case_of(name, f"{flags} --backends cuda"))
    assert record.status is Status.UNSUPPORTED
    assert "FlashInfer's quantizers launch and write nothing, and this GPU has " in record.reason


@pytest.mark.parametrize("name", QUANTISERS)
def test_torch_on_a_gpu_is_torch_on_a_cpu_bit_for_bit(name):
    """The formats are exact wherever they are computed."""
    flags = case_of(name, f"--m 128 --k 512 {VARIANTS[name][-1]}").flags
    prepare = all_routines()[name].backends["torch"].prepare
    x = torch.randn((flags.batch_size or 1) * flags.m, flags.k, generator=torch.Generator().manual_seed(0)).bfloat16()
    shape = (flags.batch_size, flags.m, flags.k) if flags.batch_size else (flags.m, flags.k)
    tensors = {"x": x.reshape(shape), "global_scale": torch.full((1,), flags.global_scale)}
    on_cpu = prepare(flags, tensors)()
    on_gpu = prepare(flags, {key: tensor.cuda() for key, tensor in tensors.items()})()
    for ours, theirs in zip(on_cpu, on_gpu, strict=True):
        assert torch.equal(ours.view(torch.uint8), theirs.cpu().view(torch.uint8))
