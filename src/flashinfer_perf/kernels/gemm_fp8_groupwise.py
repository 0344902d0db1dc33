"""Products of FP8 matrices in Triton, a scale to every 1 x 128 of one operand and every 128 x 128 of the other.

For compute capability 8.9 and later; Hopper has a kernel of its own. Products of each 128 of k are summed by the tensor
cores, as exactly as they do; what is added over k is scaled and summed in fp32.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from triton.experimental.gluon.language import NVMMASharedLayout, bfloat16, float8e4nv, float16
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from flashinfer_perf.core.errors import Unsupported
from flashinfer_perf.kernels.gemm_fp8_hopper import BLOCK, PART, TILE_ROWS, gemm_hopper
from flashinfer_perf.kernels.gemm_fp8_tiles import gemm_tiles
from flashinfer_perf.kernels.gemm_fp8_tuning import FEW_ROWS, GemmTiling, tiling

TILE = 128
FP8_PRODUCTS = (8, 9)
"""Compute capability from which tensor cores take E4M3."""
HOPPER = (9, 0)
INTERPRETED = (0, 0)
ALIGNMENT = 16
COMPILER_OPTIONS = {"enable_fp_fusion": True}
"""Scaling and adding is one instruction to an element; Triton's own default is about to change."""
GLUON = {torch.float8_e4m3fn: float8e4nv, torch.bfloat16: bfloat16, torch.float16: float16}


def gemm_fp8_groupwise(
    a: torch.Tensor,
    b: torch.Tensor,
    a_scale: torch.Tensor,
    b_scale: torch.Tensor,
    m_indptr: torch.Tensor,
    out: torch.Tensor,
    scale_major_mode: str,
    *,
    tiles: GemmTiling | None = None,
) -> None:
    """out[i] = (a[i] * a_scale[i]) @ (b[g] * b_scale[g]).T for the rows i of each group g, contiguous all.

    Args:
        a: (rows of all groups, k) float8_e4m3fn; k a multiple of 128.
        b: (groups, n, k) float8_e4m3fn; n a multiple of 128.
        a_scale: fp32, (rows, k / 128) in mode K, (k / 128, rows) in mode MN.
        b_scale: fp32, (groups, n / 128, k / 128) in mode K, (groups, k / 128, n / 128) in mode MN.
        m_indptr: (groups + 1,) int32: group g has the rows from m_indptr[g] to m_indptr[g + 1].
        out: (rows, n) bf16, fp16 or fp32.
        scale_major_mode: K or MN.
        tiles: takes the kernel for any GPU, and cuts its work so. Unless given, it is Hopper's own where there are
            many rows in a group, on average, and 16 bits in an output.

    Raises:
        ValueError: for tensors that are not so.
        Unsupported: on a GPU that does not multiply FP8.
    """
    _check_tensors(a, b, out)
    if m_indptr.shape != (len(b) + 1,) or m_indptr.dtype != torch.int32 or not m_indptr.is_contiguous():
        raise ValueError(f"m_indptr is {tuple(m_indptr.shape)} of {m_indptr.dtype}: give ({len(b) + 1},) of int32")
    (rows, k), (groups, n, _) = a.shape, b.shape
    strides = (
        *_strides("a_scale", a_scale, (rows, k // TILE), scale_major_mode),
        *_strides("b_scale", b_scale, (groups, n // TILE, k // TILE), scale_major_mode),
    )
    call = _Call(a, b, a_scale, b_scale, m_indptr, out, strides)
    capability = _capability(a.device)
    in_group = -(-rows // groups)
    if not rows:
        return
    if capability == HOPPER and in_group > FEW_ROWS and out.dtype in GLUON and tiles is None:
        _on_hopper(call)
    else:
        _anywhere(call, tiles or tiling(in_group), interpreted=capability == INTERPRETED)


class _Call(NamedTuple):
    """Valid operands; strides are those of the scales."""

    a: torch.Tensor
    b: torch.Tensor
    a_scale: torch.Tensor
    b_scale: torch.Tensor
    m_indptr: torch.Tensor
    out: torch.Tensor
    strides: tuple[int, ...]

    def most_tiles(self, rows: int, columns: int) -> int:
        """A group's last tile may be a small one, so groups may have one more tile each than their rows fill."""
        groups, n, _ = self.b.shape
        return (triton.cdiv(len(self.a), rows) + groups - 1) * (n // columns)


def _on_hopper(call: _Call) -> None:
    (rows, k), (groups, n, _) = call.a.shape, call.b.shape
    processors = torch.cuda.get_device_properties(call.a.device).multi_processor_count
    gemm_hopper[(min(call.most_tiles(TILE_ROWS, TILE), processors),)](
        _blocks_of(call.a, PART.value),
        _blocks_of(call.b.view(groups * n, k), BLOCK.value),
        call.a_scale,
        call.b_scale,
        _blocks_of(call.out, PART.value),
        call.out,
        call.m_indptr,
        groups,
        rows,
        n,
        k // TILE,
        *call.strides,
        num_warps=4,
        **COMPILER_OPTIONS,
    )


def _anywhere(call: _Call, tiles: GemmTiling, *, interpreted: bool) -> None:
    groups, n, k = call.b.shape
    gemm_tiles[(call.most_tiles(tiles.rows, tiles.columns),)](
        call.a,
        call.b,
        call.a_scale,
        call.b_scale,
        call.out,
        call.m_indptr,
        groups,
        n,
        k // TILE,
        *call.strides,
        ROWS=tiles.rows,
        COLUMNS=tiles.columns,
        UPCAST=interpreted,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
        **COMPILER_OPTIONS,
    )


def _blocks_of(matrix: torch.Tensor, rows: int) -> TensorDescriptor:
    """For the copy engine: blocks of so many rows and 128 columns."""
    shape = [rows, BLOCK.value]
    return TensorDescriptor.from_tensor(matrix, shape, NVMMASharedLayout.get_default_for(shape, GLUON[matrix.dtype]))


def _capability(device: torch.device) -> tuple[int, int]:
    if device.type != "cuda":
        return INTERPRETED
    found = torch.cuda.get_device_capability(device)
    if found < FP8_PRODUCTS:
        raise Unsupported(f"compute capability {found[0]}.{found[1]} multiplies no FP8; needs 8.9")
    return found


def _strides(name: str, scale: torch.Tensor, shape: tuple[int, ...], mode: str) -> tuple[int, ...]:
    """Strides of a scale in the order (…, row, block of k)."""
    if mode not in ("K", "MN"):
        raise ValueError(f"scale_major_mode is {mode!r}: give 'K' or 'MN'")
    expected = shape if mode == "K" else (*shape[:-2], shape[-1], shape[-2])
    if tuple(scale.shape) != expected or scale.dtype != torch.float32 or not scale.is_contiguous():
        found = f"{tuple(scale.shape)} of {scale.dtype}"
        raise ValueError(f"{name} is {found}: give {expected} of float32, contiguous, in mode {mode}")
    strides = scale.stride()
    return strides if mode == "K" else (*strides[:-2], strides[-1], strides[-2])


def _check_tensors(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> None:
    for name, tensor in (("a", a), ("b", b)):
        if tensor.dtype != torch.float8_e4m3fn:
            raise ValueError(f"{name} is {tensor.dtype}: give float8_e4m3fn")
    if a.dim() != 2 or b.dim() != 3 or a.shape[1] != b.shape[2] or a.shape[1] % TILE or b.shape[1] % TILE:
        raise ValueError(f"a is {tuple(a.shape)} and b {tuple(b.shape)}: k must agree; n and k are multiples of {TILE}")
    if tuple(out.shape) != (a.shape[0], b.shape[1]) or not out.is_floating_point():
        raise ValueError(f"out is {tuple(out.shape)} of {out.dtype}: give {(a.shape[0], b.shape[1])} of floats")
    for name, tensor in (("a", a), ("b", b), ("out", out)):
        if not tensor.is_contiguous() or tensor.data_ptr() % ALIGNMENT:
            raise ValueError(f"{name} must be contiguous and start at a multiple of {ALIGNMENT} bytes")
