"""The RoPE family on a GPU: every routine and backend that runs there is right, and starts one kernel."""

from __future__ import annotations

import pytest
import torch

from flashinfer_perf.device.machine import find_machine
from flashinfer_perf.routines import all_routines
from tests.gpu.harness import assert_all_right, case_of, kernels_of, runnable

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

NAMES = [routine.name for routine in all_routines().values() if routine.family == "rope"]
MLA = "mla_rope_quantize_fp8"
APPEND = "rope_quantize_fp8_append_paged_kv_cache"
QUANTISING = [name for name in NAMES if "fp8" in name]
APPLY = [name for name in NAMES if name not in QUANTISING]
COMPUTING = [name for name in APPLY if "cache" not in name]
HEADS = "--num_qo_heads 7 --num_kv_heads 3"
SHAPES = [
    f"--batch_size 1 --seq_len 1 {HEADS} --head_dim 128",
    f"--batch_size 3 --seq_len 333 {HEADS} --head_dim 64 --input_dtype bfloat16",
    f"--batch_size 2 --seq_len 50 {HEADS} --head_dim 128 --rotary_dim 64",
    f"--batch_size 2 --seq_len 50 {HEADS} --head_dim 256 --rotary_dim 32 --input_dtype bfloat16",
    "--batch_size 40 --seq_len 1024 --num_qo_heads 8 --num_kv_heads 1 --head_dim 128",  # the other kernel: many tokens
]
WIDE = f"--batch_size 2 --seq_len 50 {HEADS} --head_dim 512"
FAR_OUT = "--batch_size 1 --seq_len 131072 --num_qo_heads 1 --num_kv_heads 1 --head_dim 64 --rope_theta 5e5"
GENERIC = f"--batch_size 3 --seq_len 33 {HEADS}"
GENERIC_DIMS = ("96", "72 --rotary_dim 32", "80 --rotary_dim 16 --interleave")
"""Head dims that apply_rope_with_cos_sin_cache hands to another kernel."""
MLA_SHAPES = [
    "--batch_size 1 --seq_len 1 --num_qo_heads 128 --head_dim 576 --no_rope_dim 512 --input_dtype bfloat16",
    "--batch_size 3 --seq_len 100 --num_qo_heads 16 --head_dim 576 --no_rope_dim 512",
    "--batch_size 3 --seq_len 33 --num_qo_heads 5 --head_dim 192 --no_rope_dim 64 --input_dtype bfloat16",
    "--batch_size 3 --seq_len 33 --num_qo_heads 5 --head_dim 112 --no_rope_dim 48",
    "--batch_size 3 --seq_len 33 --num_qo_heads 5 --head_dim 64",
]
SCALED = "--quant_scale_q 0.3 --quant_scale_kv 5 --quant_dtype fp8_e5m2 --enable_pdl"
SATURATING = "--quant_scale_q 1e5 --quant_scale_kv 1e-3"
PAGES = ["--page_size 16", "--page_size 7 --kv_layout HND", "--page_size 64 --kv_layout HND"]


def variants() -> list[tuple[str, str]]:
    layouts = ("", "--interleave")
    found = [(name, f"{shape} {layout}") for name in NAMES if name != MLA for shape in SHAPES for layout in layouts]
    found += [(name, f"{WIDE} {layout}") for name in APPLY for layout in layouts]
    found += [(name, f"{FAR_OUT} --rope_scale 8 {layout}") for name in COMPUTING for layout in layouts]
    found += [("apply_rope_with_cos_sin_cache", f"{GENERIC} --head_dim {dims}") for dims in GENERIC_DIMS]
    found += [("rope_quantize_fp8", f"{SHAPES[2]} --no_rope_dim {rest} {SCALED}") for rest in (16, 64, 80)]
    found += [
        (MLA, f"{shape} {layout} {scaled}") for shape in MLA_SHAPES for layout in layouts for scaled in ("", SCALED)
    ]
    found += [(name, f"{SHAPES[1]} {SATURATING}") for name in QUANTISING if name != MLA]
    return found + [(APPEND, f"{SHAPES[index]} {pages} {SCALED}") for index in (0, 1, 2) for pages in PAGES]


@pytest.mark.parametrize(("name", "flags"), variants())
def test_every_backend_that_runs_here_is_right(name, flags):
    assert_all_right(name, flags)


@pytest.mark.parametrize("name", NAMES)
def test_a_call_of_flashinfer_is_one_kernel(name):
    """No fill, no cast: index tensors have the format that the library wants."""
    if "cuda" not in runnable(case_of(name, MLA_SHAPES[1] if name == MLA else SHAPES[0]), find_machine("cuda")):
        pytest.skip("does not run here")
    kernels, _ = kernels_of(name, MLA_SHAPES[1] if name == MLA else SHAPES[0], "cuda")
    assert len(kernels) == 1, kernels
