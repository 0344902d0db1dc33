"""The documented commands of the GEMM family, word for word."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

BMM = (
    "--routine bmm_fp8 --batch_size 256 --m 1 --n 1024 --k 7168 --input_dtype fp8_e4m3 --mat2_dtype fp8_e4m3 "
    "--out_dtype bfloat16 --backends cudnn cublas cutlass --refcheck -vv --generate_repro_command"
)
PLAIN = "--routine gemm_fp8_nt_groupwise --m 8192 --n 4096 --k 16384 --mma_sm 2 --refcheck -vv"
GROUPED = (
    "--routine group_gemm_fp8_nt_groupwise --m 8192 --n 4096 --k 16384 --mma_sm 2 --group_size 2 --no_cuda_graph "
    "--scale_major_mode K --refcheck -vv"
)
NEEDS_GPU = "it needs a CUDA GPU of compute capability"


def test_bmm_fp8_as_documented_says_on_a_cpu_why_nothing_runs(bench):
    outcome = bench(f"{BMM} --device cpu")
    assert outcome.code == 1
    assert outcome.lines("INFO")[1] == "Running testBmmFp8"
    repro = "To reproduce this test case, run the following command: python3 flashinfer_benchmark.py"
    assert outcome.lines("INFO")[-1] == f"{repro} {BMM} --device cpu"
    warnings = outcome.lines("WARNING")
    assert [line.split(" for routine")[0] for line in warnings] == ["cudnn", "cublas", "cutlass"]
    assert all(NEEDS_GPU in line for line in warnings)
    assert outcome.lines("ERROR") == ["No backends to test. Exiting. Try --backends torch."]


def test_bmm_fp8_with_torch_prints_the_documented_lines(bench):
    outcome = bench(f"{BMM.replace('256', '2').replace('cudnn cublas cutlass', 'torch')} --device cpu --num_iters 2")
    assert outcome.code == 0
    names = [line.split(" = ")[0] for line in outcome.lines("VVERBOSE")]
    assert names[names.index("input_fp8.shape") :] == [
        *("input_fp8.shape", "input_fp8.dtype", "mat2_fp8.shape", "mat2_fp8.dtype"),
        *("input_inv_s", "input_inv_s.dtype", "mat2_inv_s", "mat2_inv_s.dtype"),
    ]
    (checked,) = outcome.lines("REFCHECK")
    assert checked.startswith("Backend torch: 0/2048 (0.00%) elements differ from the reference")
    (line,) = outcome.lines("PERF")
    assert line.startswith("torch          :: median time ")


@pytest.mark.parametrize("command", [PLAIN, GROUPED])
def test_the_products_with_tiles_are_understood(bench, command):
    outcome = bench(f"{command} --plan")
    assert outcome.code == 0
    assert "default: cutlass" in outcome.out
    assert "1 case, 0 invalid lines" in outcome.out


@pytest.mark.parametrize(("command", "groups"), [(PLAIN, 1), (GROUPED, 2)])
def test_a_small_one_is_measured_by_the_backend_that_runs(bench, command, groups):
    small = command.replace("8192", "16").replace("4096", "256").replace("16384", "512")
    outcome = bench(f"{small} --device cpu --num_iters 2")
    assert outcome.code == 0
    warning, *others = outcome.lines("WARNING")
    assert "--mma_sm is ignored by backend torch." in others
    assert warning.startswith("The default backend cutlass cannot run here: ")
    assert warning.endswith("Using torch instead.")
    (checked,) = outcome.lines("REFCHECK")
    assert checked.startswith(f"Backend torch: 0/{groups * 16 * 256} (0.00%) elements differ from the reference")
    assert len(outcome.lines("PERF")) == 1


def test_rows_have_the_documented_columns(bench, tmp_path: Path):
    path = tmp_path / "out.csv"
    for line in (
        "--routine group_gemm_fp8_nt_groupwise --m 4 --n 128 --k 256 --group_size 3 --scale_major_mode K --mma_sm 2",
        "--routine bmm_fp8 --batch_size 2 --m 4 --n 16 --k 32 --mat2_dtype fp8_e5m2 --out_dtype float16 --autotune",
        "--routine mm_fp4 --m 4 --n 16 --k 32 --use_nvfp4 --use_128x4_sf_layout",
    ):
        command = f"{line} --backends torch --refcheck --device cpu --num_iters 2 --output_path {path} --append"
        assert bench(command).code == 0
    grouped, bmm, fp4 = csv.DictReader(path.open())
    columns = ("m", "n", "k", "group_size", "tile_size", "scale_major_mode")
    assert [grouped[name] for name in columns] == ["4", "128", "256", "3", "128", "K"]
    assert grouped["out_dtype"] == "bfloat16"
    assert grouped["mma_sm"] == ""  # PyTorch has no use for it: it is not echoed as if it had taken effect
    assert (bmm["batch_size"], bmm["input_dtype"], bmm["mat2_dtype"]) == ("2", "fp8_e4m3", "fp8_e5m2")
    assert (bmm["backend"], bmm["autotune"], bmm["ignored_flags"]) == ("torch", "", "autotune")
    assert (fp4["use_nvfp4"], fp4["use_128x4_sf_layout"]) == ("True", "True")
    assert float(fp4["cosine"]) > 0.9999
    assert float(fp4["relative_l2_error"]) < 0.01
