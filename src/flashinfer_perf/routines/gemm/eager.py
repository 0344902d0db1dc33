"""Products by PyTorch: its own of 16-bit operands, its scaled one of FP8 where the GPU has it, or dequantised ones."""

from __future__ import annotations

from flashinfer_perf.lazy import torch

SCALED = "torch._scaled_mm"
"""The name of what ran where it is not the product of dequantised operands."""


def has_scaled_product(a: torch.Tensor, n: int, b_dtype: torch.dtype) -> bool:
    """Whether ``torch._scaled_mm`` takes A (…, k) and B (n, k) with a scale each: on compute capability 8.9 or newer,
    with k and n divisible by 16, and not e5m2 for both.
    """
    both_e5m2 = a.dtype is torch.float8_e5m2 and b_dtype is torch.float8_e5m2
    return has_fp8_units(a.device) and a.shape[-1] % 16 == 0 and n % 16 == 0 and not both_e5m2


def has_fp8_units(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)


def scaled_products(
    a: torch.Tensor, b: torch.Tensor, a_scale: torch.Tensor, b_scale: torch.Tensor, out: torch.Tensor
) -> None:
    """out (batch, m, n) = a (batch, m, k) b (batch, k, n) * a_scale * b_scale, one after the other of the batch."""
    for left, right, result in zip(a, b, out, strict=True):
        torch._scaled_mm(left, right, a_scale, b_scale, out_dtype=out.dtype, out=result)


def dequantised_products(
    a: torch.Tensor, b: torch.Tensor, a_scale: torch.Tensor, b_scale: torch.Tensor, out: torch.Tensor
) -> None:
    """The same, in fp32."""
    for left, right, result in zip(a, b, out, strict=True):
        result.copy_(left.float() @ right.float() * (a_scale * b_scale))


def plain_product(a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor) -> None:
    """out (m, n) = a (m, k) b (k, n) + bias (n,). Outputs of another format than the operands' come from fp32."""
    if out.dtype is not a.dtype:
        wide = a.float() @ b.float()
        out.copy_(wide if bias is None else wide + bias.float())
    elif bias is None:
        torch.mm(a, b, out=out)
    else:
        torch.addmm(bias, a, b, out=out)


def plain_products(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> None:
    """out (batch, m, n) = a (batch, m, k) b (batch, k, n)."""
    if out.dtype is a.dtype:
        torch.bmm(a, b, out=out)
    else:
        out.copy_(torch.bmm(a.float(), b.float()))
