"""The documents' commands from beginning to end: what is printed, in which order, and what is written down."""

from __future__ import annotations

import csv
import re
import shlex

import pytest

from flashinfer_perf.cli.bench import main

DOCUMENTED = (
    "--routine mxfp8_quantize --m 2048 --k 8192 --input_dtype bfloat16 --refcheck -vv --generate_repro_command "
    '--case_tag "mxfp8_quantize"'
)
QUICK = "--device cpu --num_iters 2 --dry_run_iters 0"
NO_GPU = "it needs a CUDA GPU of compute capability 10.x, 11.x or 12.x, and this run is on 'cpu'"
REFCHECK = re.compile(
    r"\[REFCHECK\] Backend torch: \d+/\d+ \(\d\.\d\d%\) elements differ from the reference \((x_q|sf), "
)


@pytest.fixture
def bench(capsys):
    def run(line):
        code = main(shlex.split(line))
        captured = capsys.readouterr()
        assert captured.err == ""
        return code, captured.out.splitlines()

    return run


def middle(lines):
    """The lines between the header and the check's, numbers and all."""
    first = next(n for n, line in enumerate(lines) if line.startswith("[VVERBOSE] input_tensor.shape"))
    return [line for line in lines[first:] if not line.startswith(("[REFCHECK]", "[PERF]"))]


@pytest.mark.slow
def test_the_documents_command_prints_what_they_show(bench):
    """Where their cuda cannot run, and torch is asked for."""
    code, lines = bench(f"{DOCUMENTED} {QUICK} --backends torch")
    assert code == 0
    assert lines[0].startswith("[INFO] args = Namespace(routine='mxfp8_quantize', no_cuda_graph=False, ")
    assert lines[1] == "[INFO] Running testMxfp8Quantize"
    assert lines[2].startswith("[INFO] FlashInfer version: ")
    assert lines[3] == "[VVERBOSE] gpu_name = 'cpu'"
    assert lines[4].startswith("[INFO] To reproduce this test case, run the following command: python3 ")
    assert lines[5:12] == [
        "[VVERBOSE] input_tensor.shape = torch.Size([2048, 8192])",
        "[VVERBOSE] input_tensor.dtype = torch.bfloat16",
        "[VVERBOSE] is_sf_swizzled_layout = True",
        "[VVERBOSE] alignment = 32",
        "[VVERBOSE] enable_pdl = False",
        "[VVERBOSE] Backend torch: x_q.shape = torch.Size([2048, 8192]), x_q.dtype = torch.float8_e4m3fn, "
        "sf.shape = torch.Size([524288]), sf.dtype = torch.uint8",
        "[VVERBOSE] Round-trip error: 0/16777216 (0.00%) elements differ",
    ]
    assert [REFCHECK.match(line)[1] for line in lines[12:-1]] == ["x_q", "sf"]
    assert re.fullmatch(
        r"\[PERF\] torch          :: median time [\d.]+ ms; std [\d.]+ ms; achieved tflops [\d.]+ TFLOPs/sec; "
        r"achieved tb_per_sec [\d.]+ TB/sec",
        lines[-1],
    )


@pytest.mark.parametrize(
    ("line", "label", "shown"),
    [
        ("mxfp4_quantize --m 40 --k 160", "testMxfp4Quantize", [
            "Backend torch: x_q.shape = torch.Size([40, 80]), x_q.dtype = torch.uint8, "
            "sf.shape = torch.Size([128, 8]), sf.dtype = torch.uint8",
            "Round-trip error: 0/6400 (0.00%) elements differ",
        ]),
        ("nvfp4_quantize --m 128 --k 64 --do_shuffle --global_scale 2", "testNvfp4Quantize", [
            "global_scale = 2.0",
            "sf_layout_str = '128x4'",
            "do_shuffle = True",
            "sf_vec_size = 16",
            "enable_pdl = False",
            "Backend torch: x_q.shape = torch.Size([128, 32]), x_q.dtype = torch.uint8, "
            "sf.shape = torch.Size([128, 4]), sf.dtype = torch.uint8",
        ]),
        ("nvfp4_batched_quantize --batch_size 2 --m 3 --k 64", "testNvfp4BatchedQuantize", [
            "global_scale = 1.0",
            "sf_vec_size = 16",
            "Backend torch: x_q.shape = torch.Size([2, 3, 32]), x_q.dtype = torch.uint8, "
            "sf.shape = torch.Size([2, 512]), sf.dtype = torch.uint8",
        ]),
    ],
)  # fmt: skip
def test_the_lines_of_the_others(bench, line, label, shown):
    code, lines = bench(f"--routine {line} {QUICK} --refcheck -vv --backends torch")
    assert code == 0
    assert f"[INFO] Running {label}" in lines
    assert middle(lines)[2:] == [f"[VVERBOSE] {text}" for text in shown]


@pytest.mark.parametrize("backends", ["", "--backends cuda", "--backends cuda torch"])
def test_a_machine_without_blackwell_says_so(bench, backends):
    code, lines = bench(f"{DOCUMENTED.replace('2048', '16').replace('8192', '64')} {QUICK} {backends}")
    skipped = f"[WARNING] cuda for routine mxfp8_quantize cannot run: {NO_GPU}. Skipping."
    instead = f"[WARNING] The default backend cuda cannot run here: {NO_GPU}. Using torch instead."
    assert [line for line in lines if line.startswith("[WARNING]")] == [skipped if backends else instead]
    assert code == (1 if backends == "--backends cuda" else 0)
    assert ("[ERROR] No backends to test. Exiting. Try --backends torch." in lines) == (code == 1)


FILLED = {
    "mxfp8_quantize": ("--m 4 --k 64 --alignment 64", {
        "m": "4", "k": "64", "input_dtype": "bfloat16", "is_sf_swizzled_layout": "True", "alignment": "64",
    }),
    "mxfp4_quantize": ("--m 4 --k 64 --sf_layout 8x4", {
        "m": "4", "k": "64", "input_dtype": "bfloat16", "sf_layout": "8x4",
    }),
    "nvfp4_quantize": ("--m 128 --k 64 --do_shuffle --global_scale 0.5 --input_dtype float16", {
        "m": "128", "k": "64", "input_dtype": "float16", "global_scale": "0.5", "sf_layout": "128x4",
        "do_shuffle": "True", "sf_vec_size": "16",
    }),
    "nvfp4_batched_quantize": ("--batch_size 2 --m 4 --k 64", {
        "batch_size": "2", "m": "4", "k": "64", "input_dtype": "bfloat16", "global_scale": "1.0", "sf_vec_size": "16",
    }),
}  # fmt: skip
FAMILY = [
    "m", "k", "input_dtype", "is_sf_swizzled_layout", "alignment", "enable_pdl", "batch_size", "global_scale",
    "sf_layout", "do_shuffle", "sf_vec_size",
]  # fmt: skip


@pytest.mark.parametrize("name", FILLED)
def test_the_csv_has_the_flags_that_took_effect_and_no_others(bench, tmp_path, name):
    flags, filled = FILLED[name]
    path = tmp_path / "out.csv"
    assert bench(f"--routine {name} {flags} --enable_pdl {QUICK} --backends torch --output_path {path}")[0] == 0
    with path.open(newline="") as stream:
        (row,) = csv.DictReader(stream)
    assert {column: row[column] for column in FAMILY if row[column]} == filled
    assert (row["ignored_flags"], row["status"]) == ("enable_pdl", "ok")
    assert float(row["tflops"]) > 0
    assert float(row["tb_per_sec"]) > 0
