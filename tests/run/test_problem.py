from __future__ import annotations

import torch

from flashinfer_perf.core.work import Work
from flashinfer_perf.run.problem import Problem, Shown, messages
from flashinfer_perf.run.ranks import SingleRank


def test_tensors_are_reached_by_name():
    x = torch.ones(2)
    assert Problem({"x": x}, lambda x: {}, Work(1, 1), {}, SingleRank())["x"] is x


def test_the_truth_is_computed_from_the_tensors_by_name_in_full_precision():
    seen = {}

    def reference(x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
        seen.update(precision=torch.get_float32_matmul_precision(), grad=torch.is_grad_enabled())
        return {"out": x - y}

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        problem = Problem({"y": torch.ones(1), "x": torch.zeros(1)}, reference, Work(1, 1), {}, SingleRank())
        assert problem.truth()["out"].item() == -1
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert seen == {"precision": "highest", "grad": False}


def test_shown_lines_read_as_the_documents_have_them():
    assert Shown("q.shape", torch.Size([2, 3])).text == "q.shape = torch.Size([2, 3])"
    assert Shown("out_tensor.dtype", torch.float8_e4m3fn).text == "out_tensor.dtype = torch.float8_e4m3fn"
    assert Shown("layout", "128x4").text == "layout = '128x4'"
    assert Shown("Average actual seq len", 327, level=1).text == "Average actual seq len: 327"


def test_lines_become_messages_and_those_that_are_info_only_where_they_are_wanted():
    lines = [
        Shown("x.shape", 3),
        Shown("Rows", 4, level=1),
        Shown("for -v", level=1, as_info=True),
        Shown("always", level=0, as_info=True),
    ]
    told = ["[VVERBOSE] x.shape = 3", "[VERBOSE] Rows: 4", "[INFO] for -v", "[INFO] always"]
    assert [message.line for message in messages(lines, verbosity=1)] == told
    assert [message.line for message in messages(lines, verbosity=0)] == [*told[:2], told[3]]


def test_a_remark_is_a_label_without_a_value():
    remark = "s_qo == s_kv, making actual_seq_lens_kv the same as actual_seq_lens_q"
    assert Shown(remark).text == remark
    assert Shown(remark, level=1).text == remark
    assert Shown(remark).level == 2


def test_none_is_a_value_and_no_remark():
    assert Shown("head_dim_ckv", None).text == "head_dim_ckv = None"
    assert Shown("head_dim_ckv", None, level=1).text == "head_dim_ckv: None"
