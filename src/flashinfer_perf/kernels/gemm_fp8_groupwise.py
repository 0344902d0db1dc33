"""Products of FP8 matrices in Triton, a scale to every 1 x 128 of one operand and every 128 x 128 of the other.

For compute capability 8.9 and later. Products of each 128 of k are summed by the tensor cores, as exactly as they do;
what is added over k is scaled and summed in fp32.
"""

from __future__ import annotations

import torch
import triton
from triton.tools.tensor_descriptor import TensorDescriptor

from flashinfer_perf.core.errors import Unsupported
from flashinfer_perf.kernels.gemm_fp8_tiles import gemm_tiles
from flashinfer_perf.kernels.gemm_fp8_tuning import GemmTiling, tiling

TILE = 128
FP8_PRODUCTS = (8, 9)
"""Compute capability from which tensor cores take E4M3."""
COPY_ENGINE = (9, 0)
"""Compute capability from which tiles are loaded by descriptors."""
INTERPRETED = (0, 0)
ALIGNMENT = 16


def gemm_fp8_groupwise(
    a: torch.Tensor,
    b: torch.Tensor,
    a_scale: torch.Tensor,
    b_scale: torch.Tensor,
    out: torch.Tensor,
    scale_major_mode: str,
    *,
    tiles: GemmTiling | None = None,
) -> None:
    """out = (a * a_scale) @ (b * b_scale).T, contiguous all.

    Args:
        a: (m, k) float8_e4m3fn; k a multiple of 128.
        b: (n, k) float8_e4m3fn; n a multiple of 128.
        a_scale: fp32, (m, k / 128) in mode K, (k / 128, m) in mode MN.
        b_scale: fp32, (n / 128, k / 128) in mode K, (k / 128, n / 128) in mode MN.
        out: (m, n) bf16, fp16 or fp32.
        scale_major_mode: K or MN.
        tiles: how to cut the work; what suits the GPU unless given.
    """
    _check_tensors(a, b[None], out)
    _launch(a, b[None], a_scale, b_scale[None], None, out, scale_major_mode, tiles)


def group_gemm_fp8_groupwise(
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
        tiles: how to cut the work; what suits the GPU, for groups of one size, unless given.
    """
    _check_tensors(a, b, out)
    if m_indptr.shape != (len(b) + 1,) or m_indptr.dtype != torch.int32 or not m_indptr.is_contiguous():
        raise ValueError(f"m_indptr is {tuple(m_indptr.shape)} of {m_indptr.dtype}: give ({len(b) + 1},) of int32")
    _launch(a, b, a_scale, b_scale, m_indptr, out, scale_major_mode, tiles)


def _launch(
    a: torch.Tensor,
    b: torch.Tensor,
    a_scale: torch.Tensor,
    b_scale: torch.Tensor,
    m_indptr: torch.Tensor | None,
    out: torch.Tensor,
    mode: str,
    tiles: GemmTiling | None,
) -> None:
    (rows, k), (groups, n, _) = a.shape, b.shape
    a_strides = _strides("a_scale", a_scale, (rows, k // TILE), mode)
    b_strides = _strides("b_scale", b_scale, (groups, n // TILE, k // TILE), mode)
    if not out.numel():
        return
    capability = _capability(a.device)
    tiles = tiles or tiling(capability, -(-rows // groups))
    limit = 256 if tiles.overlap else 128
    if tiles.columns > limit:
        raise ValueError(f"tiles have {tiles.columns} columns: at most {limit} with overlap={tiles.overlap}")
    by_copy_engine = capability >= COPY_ENGINE
    b_tile_rows = tiles.columns // 2 if tiles.overlap else tiles.columns
    gemm_tiles[(_programs(rows, groups, n, tiles, a.device),)](
        TensorDescriptor.from_tensor(a, [tiles.rows, TILE]) if by_copy_engine else a,
        TensorDescriptor.from_tensor(b.view(groups * n, k), [b_tile_rows, TILE]) if by_copy_engine else b,
        a_scale,
        b_scale,
        out,
        out if m_indptr is None else m_indptr,
        groups,
        rows,
        n,
        k // TILE,
        *a_strides,
        *b_strides,
        GROUPED=m_indptr is not None,
        ROWS=tiles.rows,
        COLUMNS=tiles.columns,
        OVERLAP=tiles.overlap,
        SPECIALIZE=tiles.specialize and by_copy_engine,
        NEIGHBOURS=tiles.neighbours,
        TMA=by_copy_engine,
        UPCAST=capability == INTERPRETED,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
        maxnreg=tiles.registers,
        enable_fp_fusion=True,  # scaled and added in one instruction; Triton's default is about to change
    )


def _capability(device: torch.device) -> tuple[int, int]:
    if device.type != "cuda":
        return INTERPRETED
    found = torch.cuda.get_device_capability(device)
    if found < FP8_PRODUCTS:
        raise Unsupported(f"compute capability {found[0]}.{found[1]} multiplies no FP8; needs 8.9")
    return found


def _programs(rows: int, groups: int, n: int, tiles: GemmTiling, device: torch.device) -> int:
    """A group's last tile may be a small one, so groups may have one more tile each than their rows fill."""
    most = (triton.cdiv(rows, tiles.rows) + groups - 1) * triton.cdiv(n, tiles.columns)
    if not tiles.programs:
        return most
    processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
    return min(most, tiles.programs * processors)


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
