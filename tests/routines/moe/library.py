"""FlashInfer's fused MoE functions in plain mathematics, from the very arguments that the kernels would get.

They undo the order of weights and scales by the library's own tables, multiply by the scalars where the kernels do, and
round what goes into the second product. So a wrong layout, scale or expert shows in the output.
"""

from __future__ import annotations

from typing import Any

import torch

from flashinfer_perf.formats import nvfp4
from flashinfer_perf.formats.nvfp4 import Nvfp4
from flashinfer_perf.formats.scale_layout import unswizzle_128x4
from flashinfer_perf.routines.moe.layer import activate
from flashinfer_perf.routines.moe.router import Router

GATED = ("Swiglu", "Geglu", "SwigluBias")
FP8 = torch.float8_e4m3fn


def names(arguments: dict[str, Any]) -> tuple[str, str]:
    """Of the routing method and the activation."""
    from flashinfer.tllm_enums import ActivationType, RoutingMethodType

    return (
        RoutingMethodType(arguments["routing_method_type"]).name,
        ActivationType(arguments["activation_type"]).name,
    )


def unordered(rows: torch.Tensor, tile: int, interleaved: bool) -> torch.Tensor:
    """An expert's rows as they were before the library's own functions ordered them."""
    from flashinfer.fused_moe.core import get_reorder_rows_for_gated_act_gemm_row_indices
    from flashinfer.utils import get_shuffle_matrix_a_row_indices

    order = get_shuffle_matrix_a_row_indices(rows, tile)
    if interleaved:
        order = get_reorder_rows_for_gated_act_gemm_row_indices(rows)[order]
    before = torch.empty_like(rows)
    before[order] = rows
    return before


def routed(arguments: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Experts and weights of each token, written where the library writes them; or as they are given."""
    if "topk_ids" in arguments:
        experts, weights = arguments["topk_ids"]
        assert (experts.dtype, weights.dtype) == (torch.int32, torch.float32)
        assert 0 <= experts.min() <= experts.max() < arguments["num_experts"]
        return experts.long(), weights
    methods = {"DeepSeekV3": "deepseek_v3", "Llama4": "llama4", "TopK": "topk", "Renormalize": "renormalize"}
    method = methods.get(names(arguments)[0], "renormalize_naive")
    groups = (arguments["n_group"] or 1, arguments["topk_group"] or 1)
    router = Router(method, arguments["top_k"], *groups, arguments["routed_scaling_factor"] or 1.0)
    logits, bias = arguments["routing_logits"], arguments["routing_bias"]
    if method == "deepseek_v3":
        assert bias is not None, "the kernel reads the bias without asking whether there is one"
    experts = router.select(router.scores(logits, bias))
    arguments["routing_replay_out"].copy_(experts)
    return experts, router.weights(logits, experts).bfloat16().float()


def finalised(arguments: dict[str, Any], expert: Any, weigh: bool = True) -> torch.Tensor:
    """The sum over the experts that are here, of what ``expert(index, tokens, weights)`` gives."""
    experts, weights = routed(arguments)
    out = arguments["output"]
    total = torch.zeros(out.shape)
    for index in range(arguments["local_num_experts"]):
        tokens, slots = (experts == index + arguments["local_expert_offset"]).nonzero(as_tuple=True)
        scale = weights[tokens, slots, None]
        second = expert(index, tokens, scale)
        total.index_add_(0, tokens, second * scale if weigh else second)
    out.copy_(total)
    return out


def fp8_block(**arguments: Any) -> torch.Tensor:
    x = tiles(arguments["hidden_states"], arguments["hidden_states_scale"].T, (1, 128))
    assert names(arguments)[1] == "Swiglu"

    def matrix(name: str, index: int) -> torch.Tensor:
        rows = arguments[f"{name}_weights"][index]
        if arguments["weight_layout"] == 2:
            rows = rows.transpose(0, 1).flatten(1)
        if arguments["use_shuffled_weight"]:
            rows = unordered(rows, 64, interleaved=False)
        return tiles(rows, arguments[f"{name}_weights_scale"][index], (128, 128))

    def expert(index: int, tokens: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        between = activate("Swiglu", x[tokens] @ matrix("gemm1", index).T)
        scale = between.unflatten(1, (-1, 128)).abs().amax(-1).clamp(min=1e-30) / 448
        rounded = (between / scale.repeat_interleave(128, 1)).to(FP8)
        return tiles(rounded, scale, (1, 128)) @ matrix("gemm2", index).T

    return finalised(arguments, expert)


def tiles(elements: torch.Tensor, scales: torch.Tensor, tile: tuple[int, int]) -> torch.Tensor:
    assert scales.dtype is torch.float32
    return elements.float() * scales.repeat_interleave(tile[0], 0).repeat_interleave(tile[1], 1)


def fused(activation: str, first: torch.Tensor, value: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """The activation of raw sums, as the fused kernels scale it: the gate's factor goes before it, the value's is on
    the linear half; without a gate, the one before and the other behind.
    """
    if activation in GATED:
        up, gated = first.chunk(2, dim=-1)
        return value * up * activate(activation, torch.cat((torch.ones_like(gated), gate * gated), dim=-1))
    return value * activate(activation, gate * first)


def fp8_per_tensor(**arguments: Any) -> torch.Tensor:
    activation = names(arguments)[1]
    x, on_input = arguments["hidden_states"].float(), arguments["use_routing_scales_on_input"]

    def expert(index: int, tokens: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        w1 = unordered(arguments["gemm1_weights"][index], 128, activation in GATED).float()
        w2 = unordered(arguments["gemm2_weights"][index], 128, False).float()
        first = x[tokens] @ w1.T * (weights if on_input else 1)
        gate = arguments["output1_scales_gate_scalar"][index]
        between = fused(activation, first, arguments["output1_scales_scalar"][index], gate)
        return between.clamp(-448, 448).to(FP8).float() @ w2.T * arguments["output2_scales_scalar"][index]

    return finalised(arguments, expert, weigh=not on_input)


def fp4(**arguments: Any) -> list[torch.Tensor]:
    from flashinfer.tllm_enums import SfLayout

    activation = names(arguments)[1]
    assert arguments["hidden_states_scale_layout"] is SfLayout.layout_linear
    assert arguments["hidden_states_scale"].dtype is FP8
    x = nvfp4.decode(Nvfp4(arguments["hidden_states"], arguments["hidden_states_scale"].view(torch.uint8)))

    def matrix(name: str, index: int, interleaved: bool) -> torch.Tensor:
        packed, scales = arguments[f"{name}_weights"][index], arguments[f"{name}_weights_scale"][index]
        assert scales.dtype is FP8
        linear = unswizzle_128x4(scales.view(torch.uint8), len(packed), packed.shape[1] * 2 // 16)
        rows = (unordered(part, 128, interleaved) for part in (packed, linear))
        return nvfp4.decode(Nvfp4(*rows))

    def expert(index: int, tokens: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        first = x[tokens] @ matrix("gemm1", index, activation in GATED).T
        gate = arguments["output1_scale_gate_scalar"][index]
        between = fused(activation, first, arguments["output1_scale_scalar"][index], gate)
        rounded = nvfp4.decode(nvfp4.encode(between)) if len(between) else between
        return rounded @ matrix("gemm2", index, False).T * arguments["output2_scale_scalar"][index]

    return [finalised(arguments, expert)]


def cutlass(**arguments: Any) -> torch.Tensor:
    """Of one rank: expert e of rank r is the (r * experts here + e)-th."""
    first, second = arguments["fc1_expert_weights"], arguments["fc2_expert_weights"]
    decode = {torch.int64: _nvfp4_operands, FP8: _fp8_operands}.get(first.dtype, _plain_operands)
    x, matrix, rounded, factors = decode(arguments)
    activation = arguments["activation_type"].name
    ids, weights, out = arguments["token_selected_experts"], arguments["token_final_scales"], arguments["output"]
    assert (ids.dtype, weights.dtype) == (torch.int32, torch.float32)
    assert out.dtype is arguments["output_dtype"]
    total = torch.zeros(out.shape)
    for index in range(len(first)):
        tokens, slots = (ids == index + arguments["ep_rank"] * len(first)).nonzero(as_tuple=True)
        between = activate(activation, x[tokens] @ matrix(first, 1, index).T * factors[0][index])
        result = rounded(between) @ matrix(second, 4, index).T * factors[1][index]
        total.index_add_(0, tokens, result * weights[tokens, slots, None])
    out.copy_(total)
    return out


def _plain_operands(arguments: dict[str, Any]) -> tuple[Any, ...]:
    assert arguments["quant_scales"] == []
    ones = torch.ones(len(arguments["fc1_expert_weights"]))

    def rounded(between: torch.Tensor) -> torch.Tensor:
        return between.to(arguments["output_dtype"]).float()

    return arguments["input"].float(), lambda whole, _, index: whole[index].float(), rounded, (ones, ones)


def _fp8_operands(arguments: dict[str, Any]) -> tuple[Any, ...]:
    first, between, second, x_scale = arguments["quant_scales"]
    count = len(arguments["fc1_expert_weights"])
    shapes = [scale.shape for scale in (first, between, second, x_scale)]
    assert shapes == [(count,), (), (count,), ()]

    def rounded(values: torch.Tensor) -> torch.Tensor:
        return (values * between).clamp(-448, 448).to(FP8).float()

    return arguments["input"].float(), lambda whole, _, index: whole[index].float(), rounded, (first, second)


def _nvfp4_operands(arguments: dict[str, Any]) -> tuple[Any, ...]:
    """Scales: of x, blocks and alpha of the first product; of its result, blocks and alpha of the second."""
    scales = arguments["quant_scales"]
    assert [scale.dtype for scale in scales] == [torch.float32, torch.int32, torch.float32] * 2

    def decoded(packed: torch.Tensor, blocks: torch.Tensor) -> torch.Tensor:
        packed = packed.view(torch.uint8)
        rows, columns = packed.shape
        return nvfp4.decode(Nvfp4(packed, unswizzle_128x4(blocks.view(torch.uint8), rows, columns // 8)))

    def matrix(whole: torch.Tensor, place: int, index: int) -> torch.Tensor:
        return decoded(whole[index], scales[place][index])

    def rounded(values: torch.Tensor) -> torch.Tensor:
        return nvfp4.decode(nvfp4.encode(values, scales[3])) if len(values) else values

    x = arguments["input"]
    if x.dtype is torch.uint8:
        assert arguments["swizzled_input_sf"] is True
        x = decoded(x, arguments["input_sf"])
    else:
        assert arguments["input_sf"] is None
        x = nvfp4.decode(nvfp4.encode(x.float(), scales[0]))
    return x, matrix, rounded, (scales[2], scales[5])
