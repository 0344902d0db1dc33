"""The table of exchanges, on one rank of a CPU."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "a2a_table.py"


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    spec = importlib.util.spec_from_file_location("a2a_table", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def printed(table, monkeypatch, tmp_path, capsys, testlist: str) -> tuple[int, list[list[str]]]:
    file = tmp_path / "cases.txt"
    file.write_text(testlist)
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--testlist", str(file), "--jsonl", str(tmp_path / "out.jsonl")])
    status = table.main()
    lines = capsys.readouterr().out.splitlines()
    return status, [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


CASE = "--routine moe_a2a_dispatch_combine --num_tokens 6 --hidden_size 16 --num_experts 4 --top_k 2 --device cpu -n 2"


def test_a_row_for_every_phase(table, monkeypatch, tmp_path, capsys):
    status, (header, _, *rows) = printed(
        table, monkeypatch, tmp_path, capsys, f"{CASE} --validate --per_phase_timing\n{CASE} --backends nccl gloo\n"
    )
    assert status == 0
    found = [dict(zip(header, row, strict=True)) for row in rows]
    phases = ["a2a_dispatch", "a2a_combine", "a2a_total", "", "a2a_total"]
    assert [row["phase"] for row in found] == phases
    assert [row["backend"] for row in found] == ["gloo", "gloo", "gloo", "nccl", "gloo"]
    assert [row["check"] for row in found[:3]] == ["", "", "passed"]
    assert found[3]["check"].startswith("unsupported: it sends from GPU to GPU")
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 3


def test_the_plain_exchange_has_the_same_bytes_in_equal_shares(table, monkeypatch):
    from tests.routines.moe_comm.ranks import Rank

    sent = []
    monkeypatch.setattr(table.torch.distributed, "all_to_all_single", lambda output, input, group: sent.append(input))
    measured = table.plain_all_to_all(Rank(0, 4), 12 * 700)
    assert {tensor.numel() for tensor in sent} == {4 * 700}
    assert measured.ranks == 4


def test_what_failed_ends_with_an_error(table, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(table.Session, "run", lambda self, items: 0)
    status, _ = printed(table, monkeypatch, tmp_path, capsys, CASE)
    assert status == 1
