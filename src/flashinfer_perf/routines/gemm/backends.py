"""What the backends of the GEMM family need, each with its reason."""

from __future__ import annotations

from typing import Any

from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.core.machine import Machine
from flashinfer_perf.core.requirement import (
    Requirement,
    capability_in,
    case_rule,
    is_installed,
    on_generations,
    package,
)
from flashinfer_perf.lazy import flashinfer, torch

AMPERE_AND_NEWER = "8.0 8.6 8.7 8.9 9.0 10.0 10.3 10.7 11.0 12.0 12.1"
ADA_AND_NEWER = "8.9 9.0 10.0 10.3 10.7 11.0 12.0 12.1"
BLACKWELL = "10.0 10.3 10.7 11.0 12.0 12.1"
BLACKWELL_DATACENTRE = "10.0 10.3 10.7"
CUTILE = "9.0 10.0 10.3 10.7 11.0 12.0 12.1"
TINYGEMM = "9.0 10.0 10.3 11.0 12.0 12.1"
GROUPWISE = "10.0 10.3 10.7 12.0 12.1"
"""As the library lists them, backend by backend; a test compares them with its own lists."""
DOCUMENTED_FP8 = "8.9 9.0 10.0 10.3 12.0"
DOCUMENTED_BLACKWELL = "10.0 10.3"
"""As the documented matrix lists them."""

flashinfer_installed = package("flashinfer", extra="flashinfer")
cudnn_installed = package("cudnn", extra="flashinfer")
cute_dsl_installed = package("cutlass", extra="flashinfer")


def _unmet_cutile(machine: Machine, flags: Any) -> str | None:
    """The package may lack its compiler, or the compiler this GPU; both show in the first call only."""
    if not is_installed("cuda.tile"):
        return "cuda.tile is not installed; install it with: pip install cuda-tile"
    if machine.is_cuda and is_installed("flashinfer") and not flashinfer.cutile.is_cuda_tile_available(machine.device):
        return "cuda.tile's compiler, tileiras, is not installed or does not know this GPU"
    return None


cutile_installed = Requirement("cuda.tile and its compiler installed", _unmet_cutile, on_package=True)

not_e5m2_twice = case_rule(
    "e4m3 for one operand at least",
    lambda case: DType.FP8_E4M3 in (case.input_dtype, case.mat2_dtype),
    "cuBLASLt has no product of e5m2 with e5m2; give one operand --input_dtype or --mat2_dtype fp8_e4m3",
)
e4m3_only = case_rule(
    "e4m3 for both operands",
    lambda case: case.input_dtype is DType.FP8_E4M3 and case.mat2_dtype is DType.FP8_E4M3,
    "the kernel takes e4m3 operands only; leave --input_dtype and --mat2_dtype at fp8_e4m3",
)
aligned_16 = case_rule(
    "k divisible by 16 and n by 8",
    lambda case: case.k % 16 == 0 and case.n % 8 == 0,
    "cuBLASLt needs rows of 16 bytes in FP8 products: k divisible by 16 and n by 8",
)
to_bf16 = case_rule(
    "bfloat16 output",
    lambda case: case.out_dtype is DType.BFLOAT16,
    "the kernel writes bfloat16 only; leave --out_dtype at bfloat16",
)


no_bias = case_rule("no --bias", lambda case: not case.bias, "the kernel adds no bias; leave --bias away")
no_pdl = case_rule(
    "no --enable_pdl",
    lambda case: not case.enable_pdl,
    "the kernel has no programmatic dependent launch; leave --enable_pdl away",
)
bias_to_bf16 = case_rule(
    "bfloat16 output with --bias",
    lambda case: not case.bias or case.out_dtype is DType.BFLOAT16,
    "cuBLASLt adds a bias to a bfloat16 output only; leave --out_dtype at bfloat16",
)
up_to_8_rows = case_rule("m up to 8", lambda case: case.m <= 8, "the low-latency kernel takes 8 rows at most")
tiles_of_128 = case_rule(
    "tile_size of 128",
    lambda case: case.tile_size == 128,
    "the kernel's scales are those of tiles of 128; leave --tile_size at 128",
)
k_major = case_rule(
    "scale_major_mode K",
    lambda case: case.scale_major_mode == "K",
    "cuTile's kernel reads scales with the tiles along k fastest; use --scale_major_mode K",
)


def k_multiple_of(divisor: int, why: str) -> Requirement:
    return case_rule(
        f"k divisible by {divisor}", lambda case: case.k % divisor == 0, f"{why}: k must be divisible by {divisor}"
    )


def n_multiple_of(divisor: int, why: str) -> Requirement:
    return case_rule(
        f"n divisible by {divisor}", lambda case: case.n % divisor == 0, f"{why}: n must be divisible by {divisor}"
    )


def cuda_toolkit(minimum: str) -> Requirement:
    """PyTorch built with this CUDA version or a newer one."""
    least = tuple(int(part) for part in minimum.split("."))

    def unmet(machine: Machine, flags: Any) -> str | None:
        found = torch.version.cuda
        if found is not None and tuple(int(part) for part in found.split(".")[:2]) >= least:
            return None
        return f"it needs CUDA {minimum} or newer, and this PyTorch was built with {found or 'none'}"

    return Requirement(f"CUDA {minimum} or newer", unmet, on_package=True)


def _no_block_scales(machine: Machine, flags: Any) -> str | None:
    return None if hasattr(torch, "_scaled_mm_v2") else f"PyTorch {torch.__version__} has no block scales; 2.10 has"


block_scales = Requirement("a PyTorch with block scales", _no_block_scales, on_package=True)
"""torch._scaled_mm_v2, which is what torch.nn.functional.scaled_mm calls. The public function has no ``out``."""
one_group_on_12 = on_generations(
    (12,),
    case_rule(
        "group_size of 1",
        lambda case: case.group_size == 1,
        "on compute capability 12.x the library computes one group only; leave --group_size at 1",
    ),
)


def on(capabilities: str, *others: Requirement) -> tuple[Requirement, ...]:
    """FlashInfer on one of these compute capabilities, and what else it takes."""
    return (capability_in(capabilities), flashinfer_installed, *others)
