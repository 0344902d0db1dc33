from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from flashinfer_perf.kernels import token_rows

ROOT = Path(__file__).parents[2]
NO_ROW = torch.full((1, 1), -1, dtype=torch.int32)


@pytest.mark.slow
def test_rows_are_those_that_pytorch_plans_packs_and_sums():
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "tests.kernels.interpreted_token_rows"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment, cwd=ROOT)
    found = json.loads(done.stdout)
    assert len(found) == 29
    assert [label for label, equal in found.items() if not equal] == []


def compiled(kernel, tensors: dict[str, str], constants: dict[str, int], capability: int) -> str:
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else tensors.get(name, "i32") for name in names}
    source = ASTSource(
        kernel,
        signature,
        {(names.index(name),): value for name, value in constants.items()},
        {(names.index(name),): [["tt.divisibility", 16]] for name in tensors},
    )
    return str(triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm["ptx"])


@pytest.mark.parametrize("capability", [80, 90, 100])
def test_wide_rows_move_sixteen_bytes_at_once(capability):
    tensors = dict.fromkeys(("first", "second", "third", "fourth", "packed", "order"), "*i32")
    starts = {"START1": 16, "START2": 32, "START3": 48 + 3584}
    constants = {"WIDTH0": 8, "WIDTH1": 8, "WIDTH2": 3584, "WIDTH3": 0, "TOTAL": 32 + 3584, "RANKS": 8}
    constants |= {"BLOCK": token_rows.BLOCK, **starts}
    ptx = compiled(token_rows._pack, tensors, constants, capability)
    assert "ld.global.v4.b32" in ptx
    assert "st.global.v4.b32" in ptx


def test_answers_are_added_in_fp32():
    constants = {"RANKS": 8, "BLOCK": token_rows.BLOCK}
    ptx = compiled(token_rows._sum, {"returned": "*bf16", "out": "*bf16", "order": "*i32"}, constants, 90)
    assert "add.f32" in ptx


@pytest.mark.parametrize("count", [1, 5])
def test_another_number_of_parts_is_refused(count):
    with pytest.raises(ValueError, match=f"{count} parts: give two to 4"):
        token_rows.pack_rows([torch.zeros(1, 4, dtype=torch.uint8)] * count, NO_ROW, torch.zeros(1, 80), [0] * count)
