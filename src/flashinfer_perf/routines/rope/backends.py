"""What FlashInfer's RoPE kernels need, each with its reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flashinfer_perf.core.requirement import Requirement, capability, case_rule, package
from flashinfer_perf.routines.ours import triton_installed
from flashinfer_perf.routines.rope.flags import RopeFlags, rotated, rotated_of_mla

EVERYWHERE = "7.5 8.0 8.6 8.9 9.0 10.0 10.3 12.0"
WITH_FP8 = "8.9 9.0 10.0 10.3 12.0"
"""Where the documented matrix lists ``cuda``: without quantisation, and with it."""
HEAD_DIMS = (64, 128, 256, 512)
"""For which its kernels are compiled."""
FP8_VECTOR = 16
"""Elements that a thread of the quantising kernels moves."""

flashinfer_installed = package("flashinfer", extra="flashinfer")
NEEDS_FLASHINFER: tuple[Requirement, ...] = (capability(minimum="7.5"), flashinfer_installed)
NEEDS_TRITON: tuple[Requirement, ...] = (capability(minimum="8.0"), triton_installed)
NEEDS_FP8: tuple[Requirement, ...] = (capability(minimum="8.9"), flashinfer_installed)

compiled_head_dim = case_rule(
    "head_dim 64, 128, 256 or 512",
    lambda case: case.head_dim in HEAD_DIMS,
    "FlashInfer compiles this kernel for head_dim 64, 128, 256 and 512; use --backends torch",
)


def _whole_vectors(case: RopeFlags) -> bool:
    """A thread rotates eight elements, or a 32nd of a head; all of them lie in one half, or all are neighbours."""
    vector = max(8, case.head_dim // 32)
    return rotated(case) % (vector if case.interleave else 2 * vector) == 0


whole_vectors = case_rule(
    "rotary_dim divisible by 16 (with --interleave by 8; twice that for head_dim 512)",
    _whole_vectors,
    "FlashInfer's kernel would rotate wrong pairs: a thread rotates 8 elements (16 for head_dim 512), so rotary_dim "
    "must be divisible by 16 (with --interleave by 8; twice that for head_dim 512); use --backends torch",
)


def _cached_vectors(case: RopeFlags) -> bool:
    """Head dims that no fast kernel is compiled for take the quantising kernel, without quantisation."""
    if case.head_dim in HEAD_DIMS:
        return _whole_vectors(case)
    return case.head_dim % 8 == 0 and _whole_fp8_vectors(rotated(case), case.interleave)


cached_vectors = case_rule(
    "rotary_dim of whole vectors",
    _cached_vectors,
    "FlashInfer's kernel would rotate wrong pairs: for head_dim 64, 128 and 256 rotary_dim must be divisible by 16, "
    "for others by 32 (with --interleave by half of that), and head_dim by 8; use --backends torch",
)


def _whole_fp8_vectors(rope_dim: int, interleave: bool) -> bool:
    return rope_dim % (FP8_VECTOR if interleave else 2 * FP8_VECTOR) == 0


def fp8_vectors(rope_dim: Callable[[Any], int]) -> Requirement:
    """Of the rotated part; ``rope_dim`` says how large it is."""
    return case_rule(
        "a rotated part divisible by 32 (with --interleave by 16)",
        lambda case: _whole_fp8_vectors(rope_dim(case), case.interleave),
        "FlashInfer's kernel would rotate wrong pairs: a thread rotates 16 elements, so the rotated part of a head "
        "must be divisible by 32 (with --interleave by 16); use --backends torch",
    )


whole_rest = case_rule(
    "no_rope_dim divisible by 16",
    lambda case: case.no_rope_dim % FP8_VECTOR == 0,
    "FlashInfer's kernel writes 16 bytes at a time, for which no_rope_dim must be divisible by 16; "
    "use --backends torch",
)
rest_of_whole_parts = case_rule(
    "head_dim divisible by rotary_dim",
    lambda case: case.head_dim % rotated(case) == 0,
    "FlashInfer's kernel moves the rest of a head in parts as large as the rotated one and would write past its end: "
    "head_dim must be divisible by rotary_dim; use --backends torch",
)

MOST_BLOCKS, MOST_THREADS = 65535, 1024
"""CUDA's limits: blocks along a grid's second dimension, and threads of a block."""


def launchable(
    rope_dim: Callable[[Any], int], vectors: Callable[[Any], int], rest: Callable[[Any], int]
) -> Requirement:
    """Of a kernel that has a row of blocks for each of these vectors' parts, as large as the rotated one."""

    def met(case: RopeFlags) -> bool:
        parts = 1 - (-rest(case) // rope_dim(case))
        return vectors(case) * parts <= MOST_BLOCKS and rope_dim(case) <= MOST_THREADS * FP8_VECTOR

    return case_rule(
        "at most 65535 parts of heads to a token",
        met,
        "FlashInfer's kernel has blocks for each part of each head, of which CUDA takes 65535, and a thread for 16 "
        "rotated elements, of which it takes 1024; use --backends torch",
    )


def _heads(case: RopeFlags) -> int:
    return case.num_qo_heads + case.num_kv_heads


def _given_rest(case: RopeFlags) -> int:
    return case.no_rope_dim


def _rest_of_head(case: RopeFlags) -> int:
    return case.head_dim - rotated(case)


launches = launchable(rotated, _heads, _rest_of_head)
launches_parts = launchable(rotated, _heads, _given_rest)
launches_mla = launchable(rotated_of_mla, lambda case: case.num_qo_heads + 1, _given_rest)
launches_append = launchable(rotated, lambda case: _heads(case) + case.num_kv_heads, _rest_of_head)

ROTATES: tuple[Requirement, ...] = (*NEEDS_FLASHINFER, compiled_head_dim, whole_vectors)
ROTATES_BY_CACHE: tuple[Requirement, ...] = (*NEEDS_FLASHINFER, cached_vectors, launches)
QUANTISES: tuple[Requirement, ...] = (*NEEDS_FP8, fp8_vectors(rotated), whole_rest, launches_parts)
QUANTISES_MLA: tuple[Requirement, ...] = (*NEEDS_FP8, fp8_vectors(rotated_of_mla), whole_rest, launches_mla)
APPENDS: tuple[Requirement, ...] = (*NEEDS_FP8, fp8_vectors(rotated), rest_of_whole_parts, launches_append)

interleaved = case_rule(
    "--interleave",
    lambda case: case.interleave,
    "FlashInfer's cuTile kernel rotates neighbours only; give --interleave",
)
powers_of_two = case_rule(
    "a rotated part that is a power of two",
    lambda case: rotated_of_mla(case) & (rotated_of_mla(case) - 1) == 0,
    "cuTile's tiles are powers of two, and one holds the rotated part of a head: head_dim minus "
    "no_rope_dim must be one",
)
