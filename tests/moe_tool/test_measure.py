from __future__ import annotations

import importlib.util
import sys

import pytest
import torch.utils.benchmark

from flashinfer_perf.core.errors import InvalidInput
from flashinfer_perf.moe_tool.measure import bench_run
from tests.cli.conftest import ROOT

LAUNCHER = ROOT / "benchmarks" / "kernels" / "benchmark_cutlass_fp4_moe.py"


@pytest.fixture
def on_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.usefixtures("on_the_cpu")
def test_it_appends_measurements_and_reports_on_standard_error(capsys):
    results = []
    assert bench_run(results, "mine", 4, 2, False, False, (3, 64, 32)) is None
    assert [type(result) for result in results] == [torch.utils.benchmark.Measurement] * 2
    assert [result.description for result in results] == ["triton_moe", "cutlass_moe_fp4"]
    bench_run(results, "mine", 4, 2, True, True, (3, 64, 32))
    assert [result.sub_label for result in results[::2]] == [
        "mine, num_experts=4, topk=2, per_act_token=False per_out_ch=False, MKN=((3, 64, 32))",
        "mine, num_experts=4, topk=2, per_act_token=True per_out_ch=True, MKN=((3, 64, 32))",
    ]
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("[REFCHECK] Backend torch: 0/192 (0.00%) elements differ from the reference") == 4
    assert "cutlass_moe_fp4" in str(torch.utils.benchmark.Compare(results))


@pytest.mark.usefixtures("on_the_cpu")
def test_what_fails_is_named_by_the_call(capsys, monkeypatch):
    monkeypatch.setattr("flashinfer_perf.run.engine.free_bytes", lambda machine: 1000)
    results = []
    bench_run(results, "mine", 4, 2, False, False, (3, 64, 32))
    assert results == []
    call = "bench_run(results, 'mine', 4, 2, False, False, (3, 64, 32))"
    assert f"[ERROR] Error running test: {call}\n[ERROR] Error: needs at least " in capsys.readouterr().err


def test_a_shape_that_cannot_be_is_refused():
    with pytest.raises(InvalidInput, match=r"top_k \(5\) exceeds num_experts \(4\)"):
        bench_run([], "mine", 4, 5, False, False, (3, 64, 32))


@pytest.mark.usefixtures("on_the_cpu")
def test_it_can_be_imported_from_the_launcher(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec = importlib.util.spec_from_file_location("benchmark_cutlass_fp4_moe", LAUNCHER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    results = []
    module.bench_run(results, model="mine", num_experts=4, topk=2, per_act_token=0, per_out_ch=0, mkn=(3, 64, 32))
    assert len(results) == 2
