"""A fused mixture of experts for every NVIDIA GPU since Ada: sort, product, activation, product, weighted sum.

A call starts four kernels, five where the intermediate values are quantised by scales that are not known before, and
four more for dynamic scales of whole tensors; ``hopper_experts`` has others. The host learns nothing of what the GPU
finds, so a call can be captured.
"""

from __future__ import annotations

import torch
import triton

from flashinfer_perf.core.errors import Unsupported
from flashinfer_perf.kernels.moe.activations import GATED
from flashinfer_perf.kernels.moe.conversion import Conversion, Operand, form_of
from flashinfer_perf.kernels.moe.first_product import first_product
from flashinfer_perf.kernels.moe.fp4_weights import prepared
from flashinfer_perf.kernels.moe.hopper_experts import HopperExperts, Mixture
from flashinfer_perf.kernels.moe.options import check_options, check_static, check_tiles
from flashinfer_perf.kernels.moe.overlap import options as overlap_options
from flashinfer_perf.kernels.moe.prepare import prepare
from flashinfer_perf.kernels.moe.reduce import reduce_pairs
from flashinfer_perf.kernels.moe.second_product import second_product
from flashinfer_perf.kernels.moe.sorting import chunk_of, most_blocks
from flashinfer_perf.kernels.moe.tuning import HopperTiles, ProductTiles, Tiles, tiles_for
from flashinfer_perf.kernels.moe.weights import ExpertFormat, ExpertWeights

OLDEST = (8, 9)
"""Compute capability from which there are FP8 conversions and products."""
INTERPRETED = (0, 0)
PREPARE_WARPS = 8
REDUCE_WIDTH = 1024
REDUCE_WARPS = 4
KERNEL_FORMATS = {ExpertFormat.BF16: "16-bit", ExpertFormat.FP8_BLOCK: "blocks", ExpertFormat.NVFP4: "nvfp4"}
"""The others are scaled; see ``tiles.scaled_products``."""
COMPILER_OPTIONS = {"enable_fp_fusion": True}


class TritonExperts:
    """Plans one fused mixture of experts: workspaces are allocated here, a call allocates nothing.

    Args:
        weights: of the experts that are here, E of them. Those of NVFP4 are copied in another order, unless they are
            ``fp4_weights.prepared`` for ``dtype``, which serves many plans.
        num_tokens: T, of every call.
        top_k: K experts of a token.
        num_experts: of all.
        dtype: bfloat16 or float16, of x where it is not quantised, of the intermediate values and of the result.
        activation: one of ``activations.ACTIVATIONS``.
        expert_offset: global number of the first expert that is here.
        input_scale: for FP8 per tensor or per channel, fp32 (1,): what quantised x is multiplied by. Unless given, it
            is found in the call.
        intermediate_scale: likewise, of the second product's input.
        per_token: dynamic scales of x and of the intermediate values are one for each row, rather than one for all;
            by default where weights have them per channel.
        scales_on_input: routing weights multiply the first product, before the activation, instead of the result.
        tiles: how to cut the work; what suits the GPU unless given.

    Raises:
        ValueError: for tensors or options that are not so.
        Unsupported: on a GPU older than Ada.
    """

    def __init__(
        self,
        weights: ExpertWeights,
        *,
        num_tokens: int,
        top_k: int,
        num_experts: int,
        dtype: torch.dtype,
        activation: str = "Swiglu",
        expert_offset: int = 0,
        input_scale: torch.Tensor | None = None,
        intermediate_scale: torch.Tensor | None = None,
        per_token: bool | None = None,
        scales_on_input: bool = False,
        tiles: Tiles | HopperTiles | None = None,
    ) -> None:
        check_options(weights, num_tokens, top_k, num_experts, dtype, activation, expert_offset)
        weights.check(activation in GATED)
        weights = prepared(weights, dtype) if weights.format is ExpertFormat.NVFP4 else weights
        check_static("input_scale", input_scale, weights)
        check_static("intermediate_scale", intermediate_scale, weights)
        if per_token is None:
            per_token = weights.format is ExpertFormat.FP8_CHANNEL
        self.weights, self.activation, self.scales_on_input, self.dtype = weights, activation, scales_on_input, dtype
        self.top_k, self.expert_offset, self.num_tokens = top_k, expert_offset, num_tokens
        self.input_scale = input_scale
        device = weights.w1.device
        capability = _capability(device)
        self._interpreted, self._overlap = capability == INTERPRETED, overlap_options(capability)
        chosen = tiles or tiles_for(weights.format, num_tokens * top_k / num_experts, capability)
        check_tiles(chosen, weights.format, capability)
        self._on_hopper: HopperExperts | None = None
        if isinstance(chosen, HopperTiles):
            mixture = Mixture(
                weights, num_tokens, top_k, dtype, activation, expert_offset, input_scale, intermediate_scale,
                per_token, scales_on_input,
            )  # fmt: skip
            self._on_hopper = HopperExperts(mixture, chosen)
            return
        self.tiles = chosen
        self._scales = torch.empty(2, device=device)
        self._plan_sorting(device)
        self._plan_rows(input_scale, intermediate_scale, per_token)

    def use(self, weights: ExpertWeights) -> None:
        """Takes others of the same shapes for the calls to come, in the form that ``weights`` of this has.

        Raises:
            ValueError: for weights that are for another ``dtype``.
        """
        weights.check_dtype(self.dtype)
        self.weights = weights
        if self._on_hopper is not None:
            self._on_hopper.use(weights)

    def __call__(
        self,
        x: torch.Tensor,
        topk_ids: torch.Tensor,
        topk_weights: torch.Tensor,
        out: torch.Tensor,
        *,
        x_scale: torch.Tensor | None = None,
    ) -> None:
        """out[t] = sum over k of topk_weights[t, k] * (expert topk_ids[t, k] of x[t]).

        Args:
            x: (T, H) of ``dtype``, or float8_e4m3fn where the weights are of FP8.
            topk_ids: (T, K) int32, global numbers; experts that are not here contribute zero.
            topk_weights: (T, K) fp32.
            out: (T, H) of ``dtype``.
            x_scale: of x that is quantised, fp32: (T, H / 128) in blocks; otherwise (T,), or (1,), unless that was
                given as ``input_scale``.
        """
        self._check_call(x, topk_ids, topk_weights, out)
        if not self.num_tokens:
            return
        given = self._quantised(x, x_scale) if x.dtype == torch.float8_e4m3fn else None
        if self._on_hopper is not None:
            self._on_hopper(x, given, topk_ids, topk_weights, out)
            return
        left = self._prepare(x, topk_ids, given)
        self._first(left, topk_weights)
        if self._second_input.form not in ("", "given"):
            self._second_input.launch(self._intermediate, self._rows, self._overlap)
        self._second()
        self._reduce(topk_ids, topk_weights, out)

    def _plan_sorting(self, device: torch.device) -> None:
        pairs, experts = self.num_tokens * self.top_k, self.weights.num_experts
        self._pairs = pairs
        self._bins = triton.next_power_of_2(max(experts, 32))
        self._stride = most_blocks(pairs, experts, self.tiles.rows + self.tiles.extra)
        self._order, self._offsets, self._cursors, self._blocks = (
            torch.empty(length, dtype=torch.int32, device=device)
            for length in (pairs, self._bins + 1, self._bins, 1 + 3 * self._stride)
        )
        self._rows = self._offsets[self._bins :]

    def _plan_rows(
        self, input_scale: torch.Tensor | None, intermediate_scale: torch.Tensor | None, per_token: bool
    ) -> None:
        weights, pairs = self.weights, self._pairs
        hidden, intermediate = weights.hidden_size, weights.intermediate_size
        device = weights.w1.device
        form = "fp4 order" if weights.format is ExpertFormat.NVFP4 else form_of(weights.format, input_scale, per_token)
        own = self._scales[:1] if input_scale is None else input_scale
        self._first_input = Conversion(form, self.num_tokens, hidden, self.dtype, own)
        form = form_of(weights.format, intermediate_scale, per_token)
        own = self._scales[1:] if intermediate_scale is None else intermediate_scale
        self._second_input = Conversion(form, pairs, intermediate, self.dtype, own)
        written = 0 if form == "given" else pairs
        self._intermediate = torch.empty(written, intermediate, dtype=self.dtype, device=device)
        self._products = torch.empty(pairs, hidden, dtype=self.dtype, device=device)
        self._count = torch.full((1,), self.num_tokens, dtype=torch.int32, device=device)

    def _prepare(self, x: torch.Tensor, topk_ids: torch.Tensor, given: Operand | None) -> Operand:
        """Sorts, and gives the first product's input."""
        convert = self._first_input
        form = "" if given is not None or convert.form == "tensor" else convert.form
        prepare[(1 + (self.num_tokens if form else 0),)](
            topk_ids, self._order, self._offsets, self._cursors, self._blocks, self._pairs, self.expert_offset,
            self.weights.num_experts, self._stride, self._scales, x, convert.elements, convert.scale, convert.columns,
            ROWS=self.tiles.rows + self.tiles.extra, BINS=self._bins, CHUNK=chunk_of(self._pairs), FORM=form,
            WIDTH=convert.width, num_warps=PREPARE_WARPS, **self._overlap,
        )  # fmt: skip
        if given is not None:
            return given
        if convert.form == "tensor":
            convert.launch(x, self._count, self._overlap)
        return convert.operand if convert.form else Operand(x, convert.scale, 0)

    def _quantised(self, x: torch.Tensor, x_scale: torch.Tensor | None) -> Operand:
        """x that came in FP8."""
        scale = self.input_scale if x_scale is None else x_scale
        blocks = self.weights.format is ExpertFormat.FP8_BLOCK
        allowed = [(x.shape[0], x.shape[1] // 128)] if blocks else [(x.shape[0],), (1,)]
        if scale is None or tuple(scale.shape) not in allowed or scale.dtype != torch.float32:
            found = "missing" if scale is None else f"{tuple(scale.shape)} of {scale.dtype}"
            raise ValueError(
                f"x_scale is {found}: x is float8_e4m3fn, so give {' or '.join(map(str, allowed))} of fp32"
            )
        return Operand(x, scale.contiguous(), 0 if scale.numel() == 1 else 1)

    def _first(self, left: Operand, topk_weights: torch.Tensor) -> None:
        weights, size = self.weights, self.weights.intermediate_size
        out = self._second_input.elements if self._second_input.form == "given" else self._intermediate
        tiles = triton.cdiv(size, self.tiles.first.columns)
        first_product[self._grid(tiles)](
            left.elements, left.scale, left.scale_stride, *self._matrix("w1"), out, self._second_input.scale,
            self._order, self._blocks, self._stride, topk_weights, size, weights.hidden_size, tiles,
            self.tiles.neighbours, TOP_K=self.top_k, ACTIVATION=self.activation, GATED=self.activation in GATED,
            WEIGHTED=self.scales_on_input,
            **self._options(self.tiles.first, weights.hidden_size),
        )  # fmt: skip

    def _second(self) -> None:
        weights, convert = self.weights, self._second_input
        tiles = triton.cdiv(weights.hidden_size, self.tiles.second.columns)
        elements = convert.elements if convert.form else self._intermediate
        second_product[self._grid(tiles)](
            elements, convert.scale, convert.scale_stride, *self._matrix("w2"), self._products,
            self._order, self._blocks, self._stride, weights.hidden_size, weights.intermediate_size,
            tiles, self.tiles.neighbours, **self._options(self.tiles.second, weights.intermediate_size),
        )  # fmt: skip

    def _reduce(self, topk_ids: torch.Tensor, topk_weights: torch.Tensor, out: torch.Tensor) -> None:
        columns = self.weights.hidden_size
        reduce_pairs[(self.num_tokens, triton.cdiv(columns, REDUCE_WIDTH))](
            self._products, self._order, topk_ids, topk_weights, out, columns, self.expert_offset,
            self.weights.num_experts, TOP_K=self.top_k, WEIGHTED=not self.scales_on_input, WIDTH=REDUCE_WIDTH,
            LISTED=False, num_warps=REDUCE_WARPS, **self._overlap,
        )  # fmt: skip

    def _grid(self, tiles: int) -> tuple[int]:
        neighbours = self.tiles.neighbours
        return (triton.cdiv(self._stride, neighbours) * neighbours * tiles,)

    def _matrix(self, name: str) -> tuple[torch.Tensor, torch.Tensor, int, torch.Tensor]:
        """One of the weights, its scales, the stride between those of channels, and its global scales."""
        elements = getattr(self.weights, name)
        scale = getattr(self.weights, f"{name}_scale")
        if self.weights.format is ExpertFormat.NVFP4:
            return elements.view(torch.int32), scale.view(torch.uint16), 0, getattr(self.weights, f"{name}_global")
        scale = self._scales if scale is None else scale
        return elements, scale, int(self.weights.format is ExpertFormat.FP8_CHANNEL), self._scales

    def _options(self, tiles: ProductTiles, k: int) -> dict[str, object]:
        return {
            "ROWS": self.tiles.rows,
            "EXTRA": self.tiles.extra,
            "FORMAT": KERNEL_FORMATS.get(self.weights.format, "scaled"),
            "COLUMNS": tiles.columns,
            "DEPTH": tiles.depth,
            "WHOLE": k % tiles.depth == 0,
            "UPCAST": self._interpreted,
            "num_warps": tiles.warps,
            "num_stages": tiles.stages,
            **self._overlap,
            **COMPILER_OPTIONS,
        }

    def _check_call(
        self, x: torch.Tensor, topk_ids: torch.Tensor, topk_weights: torch.Tensor, out: torch.Tensor
    ) -> None:
        wide, narrow = (self.num_tokens, self.weights.hidden_size), (self.num_tokens, self.top_k)
        inputs = (self.dtype, torch.float8_e4m3fn) if self.weights.format.fp8 else (self.dtype,)
        for name, tensor, shape, dtypes in (
            ("x", x, wide, inputs),
            ("topk_ids", topk_ids, narrow, (torch.int32,)),
            ("topk_weights", topk_weights, narrow, (torch.float32,)),
            ("out", out, wide, (self.dtype,)),
        ):
            if tuple(tensor.shape) != shape or tensor.dtype not in dtypes or not tensor.is_contiguous():
                allowed = " or ".join(map(str, dtypes))
                found = f"{tuple(tensor.shape)} of {tensor.dtype}"
                raise ValueError(f"{name} is {found}: give {shape} of {allowed}, contiguous")


def _capability(device: torch.device) -> tuple[int, int]:
    if device.type != "cuda":
        return INTERPRETED
    found = torch.cuda.get_device_capability(device)
    if found < OLDEST:
        raise Unsupported(f"compute capability {found[0]}.{found[1]} converts no FP8 in hardware; needs 8.9")
    return found
