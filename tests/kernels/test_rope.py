"""RoPE in Triton without a GPU: its arithmetic in Triton's interpreter, what the compiler makes of it, its arguments.

``tests/gpu/test_rope_backends.py`` asks the same of the compiled kernel.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed: it comes with the extra 'dev' on Linux")

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from flashinfer_perf.kernels import rope

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_every_case_passes_the_routines_check():
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "tests.kernels.interpreted_rope"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment, cwd=ROOT)
    found = json.loads(done.stdout)
    assert found.pop("broken") == [False, False]
    assert len(found) == 49
    assert {label: passed for label, passed in found.items() if passed != [True, True]} == {}


def compiled(capability: int, **changes: object) -> str:
    """PTX for bfloat16, 128 dimensions."""
    tiles = rope.RopeTiling()
    constants = {"HEAD_DIM": 128, "HALF": 64, "PAIRS": 64, "REST": 0, "INTERLEAVE": False, "BY_OFFSETS": False}
    constants |= {"STEPS": 0, "BLEND": True, "TOKENS": tiles.tokens, "HEADS": tiles.heads, **changes}
    tensors = dict.fromkeys(("q", "k", "q_rope", "k_rope"), "*bf16") | dict.fromkeys(("places", "offsets"), "*i32")
    numbers = dict.fromkeys(("octaves", "inverse_divisor", "slope", "shift"), "fp32")
    arguments = rope.rotate_heads.arg_names
    signature = {key: "constexpr" if key in constants else (tensors | numbers).get(key, "i32") for key in arguments}
    source = ASTSource(
        rope.rotate_heads,
        signature,
        {(arguments.index(key),): value for key, value in constants.items()},
        {(arguments.index(key),): [["tt.divisibility", 16]] for key in tensors},
    )
    target = GPUTarget("cuda", capability, 32)
    return str(triton.compile(source, target=target, options={"num_warps": tiles.warps}).asm["ptx"])


@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize(
    "changes", [{}, {"INTERLEAVE": True}, {"BY_OFFSETS": True, "STEPS": 5}, {"HALF": 32, "PAIRS": 32, "REST": 64}]
)
def test_it_compiles_to_wide_loads_and_stores(capability, changes):
    ptx = compiled(capability, **changes)
    assert re.search(r"ld\.global\.v[24]\.b32", ptx)
    assert re.search(r"st\.global\.v[24]\.b32", ptx)


Q, K = torch.zeros(6, 2, 8).half(), torch.zeros(6, 1, 8).half()
POS_IDS = torch.arange(6, dtype=torch.int32)


@pytest.mark.parametrize(
    ("q", "k", "rotary_dim", "message"),
    [
        (Q.float(), K.float(), 8, "q is torch.float32 .*: give bfloat16 or float16"),
        (Q, K.bfloat16(), 8, "k torch.bfloat16"),
        (Q, K[:5], 8, r"k \(5, 1, 8\): give \(tokens, heads, head_dim\)"),
        (Q.flatten(1), K, 8, "head_dim"),
        (Q.transpose(1, 2).contiguous().transpose(1, 2), K, 8, "must be contiguous"),
        (Q, K, 7, "rotary_dim is 7: give an even number up to 8"),
        (Q, K, 10, "rotary_dim is 10"),
        (Q, K, 0, "rotary_dim is 0"),
    ],
)
def test_wrong_arguments_are_named(q, k, rotary_dim, message):
    with pytest.raises(ValueError, match=message):
        rope.apply_rope_pos_ids(q, k, POS_IDS, rotary_dim, False, 1e4, rope.Scaling())


def test_wrong_places_are_named():
    with pytest.raises(ValueError, match=r"pos_ids is \(5,\): give \(6,\)"):
        rope.apply_rope_pos_ids(Q, K, POS_IDS[:5], 8, False, 1e4, rope.Scaling())
    with pytest.raises(ValueError, match=r"indptr is \(6,\) and offsets \(6,\): give \(batch \+ 1,\) and \(batch,\)"):
        rope.apply_rope(Q, K, POS_IDS, POS_IDS, 8, False, 1e4, rope.Scaling())
