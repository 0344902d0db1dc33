"""FlashInfer's quantisers on a CPU: all their own Python runs, but for the compiled kernels."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch

from flashinfer_perf.formats import mxfp4, mxfp8, nvfp4
from flashinfer_perf.formats.scale_layout import arrange

LAYOUTS = ("128x4", "8x4", "linear")
"""By the library's numbers."""
UNWRITTEN = 0xAB


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(torch.uint8)


def write(x_q: torch.Tensor, sf: torch.Tensor, quantised: Any, layout: str) -> None:
    """What a kernel writes: elements, and scales in a layout; what is behind them stays as it was."""
    elements, scales = quantised
    as_bytes(x_q).copy_(as_bytes(elements))
    placed = arrange(scales, layout).flatten()
    sf.view(-1).fill_(UNWRITTEN)
    sf.view(-1)[: placed.numel()] = placed


class Fp4Module:
    """The raw functions of the compiled FP4 module."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def build_and_load(self) -> Fp4Module:
        return self

    def fp4_quantize(self, x, global_scale, x_q, sf, block, ue8m0, swizzled, is_8x4, inversed, pdl, recipe):
        assert (block, inversed) == (32 if ue8m0 else 16, False)
        self.calls.append({"enable_pdl": pdl, "recipe": recipe})
        layout = ("8x4" if is_8x4 else "128x4") if swizzled else "linear"
        write(x_q, sf, mxfp4.encode(x) if ue8m0 else nvfp4.encode(x, global_scale), layout)

    def fp4_batched_quantize(self, x, global_scale, x_q, sf, block, ue8m0, recipe):
        assert (block, ue8m0, tuple(global_scale.shape)) == (16, False, (1,))
        self.calls.append({"recipe": recipe})
        write(x_q, sf, nvfp4.encode(x, global_scale), "128x4")

    def block_scale_interleave_sm100(self, scales, out):
        out.copy_(arrange(scales, "128x4").flatten())


@contextlib.contextmanager
def cuda_kernels() -> Iterator[Fp4Module]:
    """``--backends cuda`` believes to be on a B200. Gives what the FP4 module was called with."""
    from flashinfer.quantization import fp4_quantization as fp4
    from flashinfer.quantization import fp8_quantization as fp8

    module = Fp4Module()

    def mxfp8_quantize_sm100(x, layout, alignment, enable_pdl):
        x_q = torch.empty((*x.shape[:-1], -(-x.shape[-1] // alignment) * alignment), dtype=torch.float8_e4m3fn)
        quantised = mxfp8.encode(x, alignment)
        sf = torch.empty(arrange(quantised.scales, LAYOUTS[layout.value]).numel(), dtype=torch.uint8)
        write(x_q, sf, quantised, LAYOUTS[layout.value])
        return x_q, sf

    with contextlib.ExitStack() as stack:
        patch = lambda owner, name, value: stack.enter_context(mock.patch.object(owner, name, value))  # noqa: E731
        patch(torch.Tensor, "cuda", lambda tensor: tensor)
        patch(fp4, "get_compute_capability", lambda device: (10, 0))
        patch(fp4, "device_support_pdl", lambda device: True)
        patch(fp4, "gen_fp4_quantization_sm100_module", lambda: module)
        patch(fp4, "get_fp4_quantization_module", fp4.get_fp4_quantization_module.__wrapped__)
        namespace = SimpleNamespace(mxfp8_quantize_sm100=mxfp8_quantize_sm100)
        patch(fp8, "get_mxfp8_quantization_sm100_module", lambda: namespace)
        yield module


@contextlib.contextmanager
def cute_dsl_kernels() -> Iterator[list[str]]:
    """``--backends cute-dsl`` believes to be on a B200. Gives the names of the kernels that ran."""
    import flashinfer.utils
    from flashinfer.quantization import fp4_quantization as fp4
    from flashinfer.quantization.kernels import mxfp4_quantize, mxfp8_quantize, nvfp4_quantize

    ran: list[str] = []

    def stand_in(name: str, layout_of: Callable[[tuple[Any, ...]], int], encode: Callable[..., Any]) -> Any:
        def compiled(*config: Any, **_: Any) -> Any:
            def call(x: torch.Tensor, x_q: torch.Tensor, sf: torch.Tensor, *rest: Any) -> None:
                ran.append(name)
                write(x_q, sf, encode(x, rest), LAYOUTS[layout_of(config)])

            return call, 4

        return compiled

    def nvfp4_encode(x: torch.Tensor, rest: tuple[Any, ...]) -> Any:
        return nvfp4.encode(x, rest[3])

    replaced = [
        (mxfp8_quantize, "_get_compiled_kernel_mxfp8_swizzled", lambda config: config[4], _mxfp8),
        (mxfp8_quantize, "_get_compiled_kernel_mxfp8_linear", lambda config: 2, _mxfp8),
        (mxfp4_quantize, "_get_compiled_kernel_mxfp4", lambda config: config[2], _mxfp4),
        (nvfp4_quantize, "_get_compiled_kernel_nvfp4", lambda config: config[2], nvfp4_encode),
        (nvfp4_quantize, "_get_compiled_kernel_nvfp4_tma", lambda config: config[2], nvfp4_encode),
    ]
    with contextlib.ExitStack() as stack:
        patch = lambda owner, name, value: stack.enter_context(mock.patch.object(owner, name, value))  # noqa: E731
        for module, name, layout_of, encode in replaced:
            patch(module, name, stand_in(name, layout_of, encode))
        for module in (mxfp8_quantize, mxfp4_quantize, nvfp4_quantize):
            patch(module, "get_num_sm", lambda device: 148)
        patch(torch.Tensor, "cuda", lambda tensor: tensor)
        stack.enter_context(mock.patch.object(torch.Tensor, "is_cuda", new=True, create=True))
        patch(flashinfer.utils, "get_compute_capability", lambda device: (10, 0))
        patch(flashinfer.utils, "device_support_pdl", lambda device: True)
        patch(fp4, "get_compute_capability", lambda device: (10, 0))
        patch(fp4, "gen_fp4_quantization_sm100_module", Fp4Module)
        patch(fp4, "get_fp4_quantization_module", fp4.get_fp4_quantization_module.__wrapped__)
        yield ran


def _mxfp8(x: torch.Tensor, rest: tuple[Any, ...]) -> Any:
    return mxfp8.encode(x)


def _mxfp4(x: torch.Tensor, rest: tuple[Any, ...]) -> Any:
    return mxfp4.encode(x)


KERNELS = {"cuda": cuda_kernels, "cute-dsl": cute_dsl_kernels}
