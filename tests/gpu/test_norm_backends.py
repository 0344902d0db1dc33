"""The norm family on a GPU: every routine and backend that runs there, and that each runs kernels of its own."""

from __future__ import annotations

import pytest
import torch

from flashinfer_perf.routines import all_routines
from tests.gpu.harness import assert_all_right, kernels_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

NORMS = [routine.name for routine in all_routines().values() if routine.family == "norm"]
WITH_TWO = [name for name in NORMS if "fp4" not in name]
SHAPES = [
    "--batch_size 1 --hidden_size 4096",
    "--batch_size 33 --hidden_size 8192 --enable_pdl",
    "--batch_size 300 --hidden_size 16384 --input_dtype float16",
    "--batch_size 5 --hidden_size 352 --eps 0.1",
]
QUANTISED = {
    "rmsnorm_quant": [
        "--scale 0.37",
        "--scale 3 --out_dtype fp8_e5m2",
        "--scale 1e-5",
        "--scale 1e-5 --out_dtype fp8_e5m2",
    ],
    "fused_add_rmsnorm_quant": ["--scale 0.37", "--scale 1e-5 --out_dtype fp8_e5m2"],
    "rmsnorm_fp4quant": ["", "--use_global_scale --is_sf_swizzled_layout", "--out_dtype mxfp4", "--num_heads 3"],
    "add_rmsnorm_fp4quant": ["--use_global_scale", "--output_both_sf_layouts", "--out_dtype mxfp4", "--num_heads 3"],
}
THREE_DIMENSIONS = "--batch_size 7 --num_heads 13 --hidden_size 128"
ODD = "--batch_size 9 --hidden_size 111"


def variants() -> list[tuple[str, str]]:
    every = [(name, f"{shape} {extra}") for name in NORMS for shape in SHAPES for extra in QUANTISED.get(name, [""])]
    odd = [(name, ODD) for name in WITH_TWO]
    return every + odd + [(name, THREE_DIMENSIONS) for name in ("rmsnorm", "gemma_rmsnorm")]


@pytest.mark.parametrize(("name", "flags"), variants())
def test_every_backend_that_runs_here_is_right(name, flags):
    assert_all_right(name, flags)


@pytest.mark.parametrize("name", WITH_TWO)
def test_cuda_and_cute_dsl_run_different_kernels_in_one_process(name):
    import flashinfer

    before = flashinfer.norm._USE_CUDA_NORM
    flags = "--batch_size 16 --hidden_size 4096"
    rounds = [{backend: kernels_of(name, flags, backend) for backend in ("cuda", "cute-dsl")} for _ in range(2)]
    assert rounds[0] == rounds[1], "each again after the other"
    (cuda, cuda_resolved), (dsl, dsl_resolved) = rounds[0]["cuda"], rounds[0]["cute-dsl"]
    assert (cuda_resolved, dsl_resolved) == ("cuda", "cute-dsl")
    assert len(cuda) == len(dsl) == 1, "one kernel to a call, and nothing else: no fill, no cast"
    assert all("flashinfer::norm::" in kernel for kernel in cuda)
    assert all("cutlass" in kernel and "flashinfer::norm::" not in kernel for kernel in dsl)
    assert flashinfer.norm._USE_CUDA_NORM is before


@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability()[0] < 10, reason="needs a Blackwell GPU"
)
@pytest.mark.parametrize("name", [name for name in NORMS if name not in WITH_TWO])
@pytest.mark.parametrize("flags", ["", "--use_global_scale --is_sf_swizzled_layout"])
def test_an_fp4_norm_is_one_kernel(name, flags):
    """Without a global scale of ours the library would fill one, in every call."""
    kernels, resolved = kernels_of(name, f"--batch_size 16 --hidden_size 4096 {flags}", "cute-dsl")
    assert len(kernels) == 1
    assert resolved == "cute-dsl"
