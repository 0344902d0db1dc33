"""cuBLAS's product with block scales, as PyTorch 2.11 with CUDA 13.0 took it on an H100."""

from __future__ import annotations

import torch


def scaled_mm_v2(
    a, b, scale_a, recipe_a, swizzle_a, scale_b, recipe_b, swizzle_b, bias, out_dtype, contraction, fast, *, out
):
    """Refuses what it refused there, and computes the rest in fp32."""
    scaling = torch.nn.functional.ScalingType
    (scale_a,), (scale_b,) = scale_a, scale_b
    assert (recipe_a, recipe_b) == ([scaling.BlockWise1x128.value], [scaling.BlockWise128x128.value])
    assert (swizzle_a, swizzle_b, bias, contraction, fast) == ([], [], None, (), False)
    (m, k), n = a.shape, b.shape[1]
    assert a.dtype is b.dtype is torch.float8_e4m3fn
    assert a.is_contiguous()
    assert b.stride() == (1, k)
    assert m % 4 == 0
    assert k % 128 == n % 16 == 0
    padded = -(-k // 512) * 4
    assert scale_a.dtype is scale_b.dtype is torch.float32
    assert (scale_a.shape, scale_a.stride()[0]) == ((m, k // 128), 1)
    assert scale_a.stride()[1] == m or scale_a.shape[1] == 1
    assert (scale_b.shape, scale_b.stride()[0]) == ((padded, -(-n // 128)), 1)
    assert scale_b.stride()[1] == padded or scale_b.shape[1] == 1
    assert out.dtype is out_dtype
    left = a.float() * scale_a.repeat_interleave(128, 1)
    right = b.float() * scale_b[: k // 128].repeat_interleave(128, 0).repeat_interleave(128, 1)[:, :n]
    return out.copy_(left @ right)
