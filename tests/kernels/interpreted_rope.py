"""Runs RoPE in Triton's interpreter, a process of its own, and prints {case: whether q and k pass the check}."""

from __future__ import annotations

import json
import os

os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined: before the imports

from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

from flashinfer_perf.kernels import rope
from tests.routines.harness import problem_of

SHAPE = "--batch_size 3 --seq_len 5 --num_qo_heads 5 --num_kv_heads 2 --rope_scale 8 --rope_theta 5e5"
CASES = {
    f"{name} {dims} {layout} {dtype}".strip(): (name, f"{SHAPE} {dims} {layout} --input_dtype {dtype}")
    for name in ("apply_rope", "apply_rope_pos_ids", "apply_llama31_rope", "apply_llama31_rope_pos_ids")
    for dims in ("--head_dim 16", "--head_dim 24 --rotary_dim 12", "--head_dim 64 --rotary_dim 32")
    for layout in ("", "--interleave")
    for dtype in ("float16", "bfloat16")
}
TILES = rope.RopeTiling(tokens=2, heads=4)


CONVERT = interpreter._convert_float


def as_the_hardware_does(values: Any, source: Any, target: Any, rounding: Any) -> Any:
    """The interpreter cuts off where fp32 becomes bfloat16; PTX rounds to nearest even."""
    if (source, target) != (tl.float32, tl.bfloat16):
        return CONVERT(values, source, target, rounding)
    rounded = torch.from_numpy(np.ascontiguousarray(values)).bfloat16()
    return rounded.view(torch.int16).numpy().view(np.uint16)


def passes(name: str, flags: str, **changes: Any) -> list[bool]:
    case, problem = problem_of(name, f"{flags} --old_context_len 64" if "llama31" in name else flags)
    llama31 = (case.low_freq_factor, case.high_freq_factor, 64) if "llama31" in name else ()
    how = {"rotary_dim": case.rotary_dim, "interleave": case.interleave, "rope_theta": case.rope_theta}
    how |= {"scaling": rope.Scaling(case.rope_scale, *llama31), "tiles": TILES, **changes}
    function = rope.apply_rope_pos_ids if name.endswith("pos_ids") else rope.apply_rope
    outputs = dict(zip(("q_rope", "k_rope"), function(**problem.tensors, **how), strict=True))
    truth = problem.truth()
    return [check.judge(output, outputs, truth).passed for output, check in problem.checks.items()]


def ragged() -> list[bool]:
    """Sequences of different lengths, an empty one among them, that begin anywhere."""
    q = torch.randn(9, 3, 8, generator=torch.Generator().manual_seed(0)).half()
    indptr = torch.tensor([0, 4, 4, 5, 9], dtype=torch.int32)
    offsets = torch.tensor([7, 0, 100, 3], dtype=torch.int32)
    pos_ids = torch.tensor([7, 8, 9, 10, 100, 3, 4, 5, 6], dtype=torch.int32)
    how = {"rotary_dim": 8, "interleave": False, "rope_theta": 1e4, "scaling": rope.Scaling(), "tiles": TILES}
    by_offsets = rope.apply_rope(q, q[:, :1].contiguous(), indptr, offsets, **how)
    by_positions = rope.apply_rope_pos_ids(q, q[:, :1].contiguous(), pos_ids, **how)
    return [torch.equal(*pair) for pair in zip(by_offsets, by_positions, strict=True)]


if __name__ == "__main__":
    interpreter._convert_float = as_the_hardware_does
    found = {label: passes(*case) for label, case in CASES.items()}
    found["ragged"] = ragged()
    found["broken"] = passes("apply_rope", f"{SHAPE} --head_dim 16", interleave=True)
    print(json.dumps(found))
