"""What lies between an expert's two products."""

from __future__ import annotations

import triton
import triton.language as tl

GATED = ("Swiglu", "Geglu", "SwigluBias")
UNGATED = ("Gelu", "Relu", "Silu", "Relu2", "Identity")
ACTIVATIONS = (*GATED, *UNGATED)
SQRT_HALF = tl.constexpr(0.7071067811865476)


@triton.jit
def _silu(value):
    return value * tl.sigmoid(value)


@triton.jit
def _gelu(value):
    """The exact one, by the normal distribution's integral."""
    return 0.5 * value * (1.0 + tl.erf(value * SQRT_HALF))


@triton.jit
def activate(up, gate, NAME: tl.constexpr):
    """fp32 of a linear part and its gate; ``gate`` is not read by those that have none.

    SwigluBias is as FlashInfer's CUTLASS backend has it while neither alpha, beta nor a limit is given: 1, 0 and
    infinity, which makes it Swiglu.
    """
    if NAME == "Swiglu" or NAME == "SwigluBias":
        result = up * _silu(gate)
    elif NAME == "Geglu":
        result = up * _gelu(gate)
    elif NAME == "Gelu":
        result = _gelu(up)
    elif NAME == "Silu":
        result = _silu(up)
    elif NAME == "Relu":
        result = tl.maximum(up, 0.0)
    elif NAME == "Relu2":
        result = tl.maximum(up, 0.0) * tl.maximum(up, 0.0)
    else:
        result = up
    return result
