"""Softmax in Triton without a GPU: its arithmetic in Triton's interpreter, what the compiler makes of it, how it is
cut, its arguments.

``tests/gpu/test_sampling_backends.py`` asks the same of the compiled kernels.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed: it comes with the extra 'dev' on Linux")

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from flashinfer_perf.kernels import softmax
from flashinfer_perf.kernels.softmax import PartTiling, RowTiling, tiling

ROOT = Path(__file__).parents[2]
HOPPER = 132
"""Multiprocessors."""


@pytest.mark.slow
def test_every_case_passes_the_routines_check():
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "tests.kernels.interpreted_softmax"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment, cwd=ROOT)
    found = json.loads(done.stdout)
    broken = {label: found.pop(label) for label in list(found) if label.startswith("broken")}
    assert list(broken.values()) == [False] * 6
    assert len(found) == 6 * (3 * 6 + 1)
    assert [label for label, passed in found.items() if not passed] == []


# ---- What the compiler makes of it ----


def compiled(kernel: object, dtype: str, capability: int, warps: int, **constants: int) -> SimpleNamespace:
    """PTX, and bytes of shared memory; the vocabulary is a multiple of 16."""
    arguments = kernel.arg_names
    types = {"logits": f"*{dtype}", "partials": "*fp32", "probs": "*fp32", "vocabulary": "i32", "scale": "fp32"}
    signature = {name: "constexpr" if name in constants else types[name] for name in arguments}
    aligned = [name for name in arguments if name in types and name != "scale"]
    source = ASTSource(
        kernel,
        signature,
        {(arguments.index(name),): value for name, value in constants.items()},
        {(arguments.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps})
    return SimpleNamespace(ptx=made.asm["ptx"], shared=made.metadata.shared)


@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_rows_are_moved_in_wide_words_and_the_rest_is_loaded_ahead(dtype, capability):
    tiles = tiling(256, 128256, HOPPER)
    made = compiled(
        softmax.softmax_of_rows, dtype, capability, tiles.warps, KEPT=tiles.kept, PIECE=tiles.piece, STAGES=tiles.stages
    )
    assert set(re.findall(r"ld\.global\S*", made.ptx)) == {"ld.global.v4.b32"}
    assert set(re.findall(r"st\.global\S*", made.ptx)) == {"st.global.cs.v4.b32"}
    assert "cp.async.cg.shared.global" in made.ptx
    assert made.shared <= 96 * 1024, "what the smallest of these GPUs has for a block"


@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_parts_are_moved_in_wide_words(dtype, capability):
    for tiles, parts in ((tiling(1, 128256, HOPPER), 128), (tiling(32, 128256, HOPPER), 16)):
        sums = compiled(softmax.sums_of_parts, dtype, capability, tiles.warps, PIECE=tiles.piece)
        assert set(re.findall(r"ld\.global\S*", sums.ptx)) == {"ld.global.v4.b32"}
        made = compiled(softmax.softmax_of_parts, dtype, capability, tiles.warps, PIECE=tiles.piece, PARTS=parts)
        assert "ld.global.v4.b32" in made.ptx
        assert set(re.findall(r"st\.global\S*", made.ptx)) == {"st.global.cs.v4.b32"}


# ---- How the work is cut ----


@pytest.mark.parametrize(
    ("rows", "vocabulary", "expected", "programs"),
    [
        (1, 32000, PartTiling(1024, 4), 32),
        (1, 128256, PartTiling(1024, 4), 126),
        (32, 32000, PartTiling(2048, 8), 512),
        (32, 128256, PartTiling(8192, 32), 512),
        (65, 50, PartTiling(1024, 4), 65),
        (66, 50, RowTiling(64, 8192, 4, 3), 66),
        (256, 32000, RowTiling(32768, 8192, 32, 3), 256),
        (256, 128256, RowTiling(32768, 8192, 32, 3), 256),
    ],
)
def test_many_rows_stay_whole_and_few_are_cut(rows, vocabulary, expected, programs):
    tiles = tiling(rows, vocabulary, HOPPER)
    assert tiles == expected
    assert programs == rows * (tiles.parts(vocabulary) if isinstance(tiles, PartTiling) else 1)


def test_the_workspace_has_two_numbers_to_a_part():
    logits = torch.zeros(5, 3000)
    assert tuple(softmax.workspace(logits, PartTiling(1024, 4)).shape) == (5, 3, 2)
    assert softmax.workspace(logits, RowTiling(1024, 1024, 4, 3)).numel() == 0


# ---- Arguments ----


@pytest.mark.parametrize("logits", [torch.zeros(3), torch.zeros(4, 6)[:, :3], torch.zeros(2, 3, 4)])
def test_other_shapes_are_refused(logits):
    with pytest.raises(ValueError, match=r"give \(rows, vocabulary\), contiguous"):
        softmax.softmax(logits, 1.0, torch.empty(0), PartTiling(1024, 4))


def test_the_workspace_of_other_tiles_is_refused():
    logits = torch.zeros(2, 3000)
    with pytest.raises(ValueError, match=r"partials are \(2, 2, 2\): give the workspace of these tiles, \(2, 3, 2\)"):
        softmax.softmax(logits, 1.0, softmax.workspace(logits, PartTiling(2048, 8)), PartTiling(1024, 4))
