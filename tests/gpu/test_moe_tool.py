"""NVFP4 against FP8 mixtures of experts on a GPU: the table's columns, and the call for programs inside a graph."""

from __future__ import annotations

import shlex

import pytest
import torch

from flashinfer_perf.cli.moe_fp4 import main
from flashinfer_perf.moe_tool.measure import bench_run
from tests.cli.conftest import rows_of
from tests.moe_tool.layers import Sizes

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

COLUMNS = ["triton_moe", "triton_moe_cuda_graphs", "cutlass_moe_fp4", "cutlass_moe_fp4_cuda_graphs"]


@pytest.mark.parametrize("m", [1, 64, 1024])
@pytest.mark.parametrize(("per_act_token", "per_out_ch"), [(False, False), (True, False), (False, True), (True, True)])
def test_both_contestants_are_right_and_timed_without_and_with_graphs(m, per_act_token, per_out_ch, capsys):
    results = []
    bench_run(results, "reduced", 16, 4, per_act_token, per_out_ch, (m, 1024, 512))
    assert [result.description for result in results] == COLUMNS, capsys.readouterr().err
    assert all(result.median > 0 for result in results)


def test_the_programme_prints_its_table_and_writes_records(tmp_path, capsys):
    csv = tmp_path / "results.csv"
    assert main(shlex.split(f"--models tiny --batch-sizes 4 128 --num_iters 5 --output_path {csv}")) == 0
    head = capsys.readouterr().out.splitlines()[1]
    assert [cell.strip() for cell in head.split("|")] == ["", *COLUMNS]
    rows = rows_of(csv)
    assert [row["status"] for row in rows] == ["ok"] * 8
    assert [row["check"] for row in rows] == ["passed"] * 8
    assert [row["in_graph"] for row in rows] == ["False", "True"] * 4


@pytest.mark.parametrize("m", [1, 17])
def test_the_call_for_programmes_is_right(m):
    layer = Sizes(m=m, n=448, k=256, e=16, top_k=8).made("cuda")
    assert layer.is_right(layer.call())


def test_a_graph_holds_it_and_reads_its_inputs_anew_at_each_replay():
    layer = Sizes(m=16, n=448, k=256, e=16, top_k=8).made("cuda")
    layer.call()
    torch.cuda.synchronize()
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.cuda.graph(graph, stream=stream):
        output = layer.call()
    layer.a.neg_()
    torch.cuda.synchronize()
    graph.replay()
    torch.cuda.synchronize()
    assert layer.is_right(output)
