"""A fused mixture of FP8 or 16-bit experts for Hopper and many rows of an expert: rows are sorted in memory before they
are multiplied, so that both products' operands come by the copy engine.

A call starts five kernels, six where the intermediate values are quantised by scales that are not known before, and two
more for dynamic scales of whole tensors.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from triton.experimental.gluon.language import NVMMASharedLayout, bfloat16, float8e4nv, float16
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from flashinfer_perf.kernels.gemm_fp8_hopper import BLOCK, PART
from flashinfer_perf.kernels.moe.activations import GATED
from flashinfer_perf.kernels.moe.conversion import Conversion, Operand, find_scale, form_of, width_of
from flashinfer_perf.kernels.moe.hopper_product import OUT_WIDTH, ROW_BYTES, hopper_product
from flashinfer_perf.kernels.moe.overlap import NONE
from flashinfer_perf.kernels.moe.prepare import prepare
from flashinfer_perf.kernels.moe.reduce import reduce_pairs
from flashinfer_perf.kernels.moe.sorting import chunk_of, most_blocks
from flashinfer_perf.kernels.moe.spread import spread_rows
from flashinfer_perf.kernels.moe.tuning import HopperProduct, HopperTiles
from flashinfer_perf.kernels.moe.weights import ExpertFormat, ExpertWeights

GLUON = {torch.float8_e4m3fn: float8e4nv, torch.bfloat16: bfloat16, torch.float16: float16}
SCALES = {
    ExpertFormat.BF16: "none",
    ExpertFormat.FP8_TENSOR: "tensor",
    ExpertFormat.FP8_CHANNEL: "channel",
    ExpertFormat.FP8_BLOCK: "blocks",
}
SORT_WARPS, SPREAD_WARPS, REDUCE_WARPS, PRODUCT_WARPS = 8, 8, 4, 4
REDUCE_WIDTH = 1024


class Mixture(NamedTuple):
    """What is planned, as ``TritonExperts`` has it."""

    weights: ExpertWeights
    num_tokens: int
    top_k: int
    dtype: torch.dtype
    activation: str
    expert_offset: int
    input_scale: torch.Tensor | None
    intermediate_scale: torch.Tensor | None
    per_token: bool
    scales_on_input: bool


class HopperExperts:
    """Allocates all workspaces; see ``TritonExperts``, which checks what it gives."""

    def __init__(self, mixture: Mixture, tiles: HopperTiles) -> None:
        self.mixture, self.tiles = mixture, tiles
        weights, pairs = mixture.weights, mixture.num_tokens * mixture.top_k
        device = weights.w1.device
        self._gated = mixture.activation in GATED
        self._scales = torch.empty(2, device=device)
        self._one = torch.ones(1, device=device)
        self._plan_sorting(pairs, device)
        unused = min(pairs, weights.num_experts) * (PART.value - 1)
        room = triton.cdiv(pairs + unused, PART.value) * PART.value
        self._plan_rows(max(room, PART.value), device)
        self._plan_products()
        self._count = torch.full((1,), mixture.num_tokens, dtype=torch.int32, device=device)
        self._width = width_of(weights.hidden_size)

    def use(self, weights: ExpertWeights) -> None:
        """As ``TritonExperts`` has it."""
        self.mixture = self.mixture._replace(weights=weights)
        self._plan_products()

    def __call__(
        self,
        x: torch.Tensor,
        given: Operand | None,
        topk_ids: torch.Tensor,
        topk_weights: torch.Tensor,
        out: torch.Tensor,
    ) -> None:
        """As ``TritonExperts`` has it; ``given`` is x that comes in FP8, with its scales."""
        self.sort(topk_ids)
        self.spread(x, given, topk_weights)
        self.multiply_first()
        if self._second_input.form not in ("", "given"):
            self.convert()
        self.multiply_second()
        self.reduce(topk_ids, topk_weights, out)

    def sort(self, topk_ids: torch.Tensor) -> None:
        mixture = self.mixture
        pairs = mixture.num_tokens * mixture.top_k
        prepare[(1,)](
            topk_ids, self._rows, self._offsets, self._cursors, self._blocks, pairs, mixture.expert_offset,
            mixture.weights.num_experts, self._stride, self._scales, None, None, None, 0,
            ROWS=self.tiles.parts * PART.value, BINS=self._bins, CHUNK=chunk_of(pairs), FORM="", WIDTH=0,
            ALIGNED=PART.value, INVERSE=True, num_warps=SORT_WARPS, **NONE,
        )  # fmt: skip

    def spread(self, x: torch.Tensor, given: Operand | None, topk_weights: torch.Tensor) -> None:
        mixture, form, columns = self.mixture, self._first_form, x.shape[1]
        scale, scale_stride = (self._first_scale, 0) if given is None else given[1:]
        if form == "tensor":
            if given is None:
                find_scale(x, scale, self._count, NONE)
            form = "given"
        spread_rows[(mixture.num_tokens,)](
            x, scale, scale_stride, self._rows, topk_weights, self._spread, self._spread_scale, columns,
            TOP_K=mixture.top_k, FORM=form, WEIGHTED=mixture.scales_on_input, WIDTH=self._width,
            num_warps=SPREAD_WARPS,
        )  # fmt: skip

    def multiply_first(self) -> None:
        size, stride = self.mixture.weights.intermediate_size, 1
        if self.mixture.weights.format is ExpertFormat.FP8_BLOCK:
            stride = self.mixture.weights.hidden_size // BLOCK.value
        self._multiply(self._first, self._spread_scale, stride, size, self.mixture.activation)

    def convert(self) -> None:
        self._second_input.launch(self._intermediate, self._rows, NONE, listed=True)

    def multiply_second(self) -> None:
        scale, stride = self._second_input.scale, self._second_input.scale_stride
        self._multiply(self._second, scale, stride, self.mixture.weights.hidden_size, "Identity")

    def reduce(self, topk_ids: torch.Tensor, topk_weights: torch.Tensor, out: torch.Tensor) -> None:
        mixture, columns = self.mixture, self.mixture.weights.hidden_size
        reduce_pairs[(mixture.num_tokens, triton.cdiv(columns, REDUCE_WIDTH))](
            self._products, self._rows, topk_ids, topk_weights, out, columns, mixture.expert_offset,
            mixture.weights.num_experts, TOP_K=mixture.top_k, WEIGHTED=not mixture.scales_on_input, WIDTH=REDUCE_WIDTH,
            LISTED=True, num_warps=REDUCE_WARPS, **NONE,
        )  # fmt: skip

    def _plan_sorting(self, pairs: int, device: torch.device) -> None:
        experts = self.mixture.weights.num_experts
        self._bins = triton.next_power_of_2(max(experts, 32))
        self._stride = most_blocks(pairs, experts, self.tiles.parts * PART.value)
        self._rows, self._offsets, self._cursors, self._blocks = (
            torch.empty(length, dtype=torch.int32, device=device)
            for length in (pairs, self._bins + 1, self._bins, 1 + 3 * self._stride)
        )

    def _plan_rows(self, room: int, device: torch.device) -> None:
        mixture, weights = self.mixture, self.mixture.weights
        blocks, hidden = weights.format is ExpertFormat.FP8_BLOCK, weights.hidden_size
        stored = torch.float8_e4m3fn if weights.format.fp8 else mixture.dtype
        self._first_form = form_of(weights.format, mixture.input_scale, mixture.per_token)
        self._first_scale = self._scales[:1] if mixture.input_scale is None else mixture.input_scale
        self._spread = torch.empty(room, hidden, dtype=stored, device=device)
        self._spread_scale = torch.empty((room, hidden // BLOCK.value) if blocks else (room,), device=device)
        form = form_of(weights.format, mixture.intermediate_scale, mixture.per_token)
        found = self._scales[1:] if form else self._one
        own = found if mixture.intermediate_scale is None else mixture.intermediate_scale
        self._second_input = Conversion(form, room, weights.intermediate_size, mixture.dtype, own)
        written = 0 if form == "given" else room
        self._intermediate = torch.empty(written, weights.intermediate_size, dtype=mixture.dtype, device=device)
        self._inner = self._second_input.elements if form == "given" else self._intermediate
        self._products = torch.empty(room, hidden, dtype=mixture.dtype, device=device)

    def _plan_products(self) -> None:
        first, second = self.tiles.first, self.tiles.second
        if not self._gated:  # its results are twice as wide, and leave no room for another stage
            first = first._replace(stages=min(first.stages, second.stages))
        self._first = self._product("w1", self._spread, self._inner, first, gated=self._gated)
        inner = self._second_input.elements if self._second_input.form else self._intermediate
        self._second = self._product("w2", inner, self._products, second, gated=False)

    def _product(self, name: str, x: torch.Tensor, out: torch.Tensor, tiles: HopperProduct, *, gated: bool) -> _Product:
        w = getattr(self.mixture.weights, name)
        box = tiles.columns // 2 if gated else tiles.columns
        depth = ROW_BYTES.value // w.element_size()
        matrices = (
            _blocks_of(x, PART.value, depth),
            _blocks_of(w.view(-1, w.shape[2]), box, depth),
            _blocks_of(out, PART.value, min(box, OUT_WIDTH.value)),
        )
        scale = getattr(self.mixture.weights, f"{name}_scale")
        scale = self._one if scale is None else scale
        return _Product(*matrices, scale, triton.cdiv(w.shape[2], depth), box, tiles, gated)

    def _multiply(self, product: _Product, x_scale: torch.Tensor, stride: int, n: int, activation: str) -> None:
        across = triton.cdiv(n, product.width)
        grid = min(self._stride * across, _processors(x_scale.device))
        hopper_product[(grid,)](
            product.x, x_scale, stride, product.w, product.w_scale, product.out, self._second_input.scale,
            self._blocks, self._stride, self.tiles.neighbours, n, across, product.blocks_of_k,
            SCALES=SCALES[self.mixture.weights.format], ACTIVATION=activation, GATED=product.gated,
            COLUMNS=product.tiles.columns, PARTS=self.tiles.parts, STAGES=product.tiles.stages,
            num_warps=PRODUCT_WARPS, enable_fp_fusion=True,
        )  # fmt: skip


class _Product(NamedTuple):
    x: TensorDescriptor
    w: TensorDescriptor
    out: TensorDescriptor
    w_scale: torch.Tensor
    blocks_of_k: int
    width: int
    """Columns of the result that a tile has."""
    tiles: HopperProduct
    gated: bool


def _blocks_of(matrix: torch.Tensor, rows: int, columns: int) -> TensorDescriptor:
    """For the copy engine."""
    shape = [rows, columns]
    return TensorDescriptor.from_tensor(matrix, shape, NVMMASharedLayout.get_default_for(shape, GLUON[matrix.dtype]))


def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count
