"""What a run writes, and where: consoles, result files, several ranks."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest

from flashinfer_perf.cli import measure
from flashinfer_perf.core.case import line_grammar, make_case
from flashinfer_perf.core.options import Options
from flashinfer_perf.routines import all_routines
from flashinfer_perf.run.ranks import SingleRank
from flashinfer_perf.sinks.columns import columns_of
from tests.cli.conftest import records_of, rows_of

QUICK = "--device cpu --num_iters 3 --dry_run_iters 0"
CASE = f"--routine mxfp4_quantize --m 16 --k 64 {QUICK}"
PERF = "[PERF] torch          :: median time "


def test_text_is_the_documented_lines(bench):
    outcome = bench(f"{CASE} --backends torch")
    assert (outcome.code, outcome.err) == (0, "")
    (line,) = outcome.out.splitlines()
    assert line.startswith(PERF)


def test_table_comes_at_the_end(bench):
    outcome = bench(f"{CASE} --backends torch --format table --case_tag mine --refcheck")
    lines = outcome.out.splitlines()
    assert outcome.code == 0
    assert lines[-3].startswith(PERF)
    assert lines[-2].split()[:5] == ["routine", "case", "backend", "status", "check"]
    assert lines[-1].split()[0] == "mxfp4_quantize"
    assert "  # mine  torch    ok      passed" in lines[-1]


def test_json_is_a_record_a_line_and_nothing_else(bench, testlist):
    path = testlist(f"{CASE} --backends torch cuda\n{CASE} --typo\n")
    outcome = bench(f"--testlist {path} --format json")
    records = [json.loads(line) for line in outcome.out.splitlines()]
    assert [(record["backend"], record["status"]) for record in records] == [
        ("cuda", "unsupported"),
        ("torch", "ok"),
        ("", "invalid"),
    ]
    assert len(records[1]["measurement"]["samples_ms"]) == 3
    assert PERF in outcome.err, "people read the documented lines beside it"
    assert outcome.code == 1


def test_result_files(bench, tmp_path):
    csv, jsonl = tmp_path / "new" / "folders" / "out.csv", tmp_path / "out.jsonl"
    outcome = bench(f"{CASE} --backends torch --refcheck --output_path {csv} --jsonl {jsonl}")
    assert outcome.code == 0
    (row,), (record,) = rows_of(csv), records_of(jsonl)
    assert list(row) == list(columns_of(all_routines()))
    assert (row["routine"], row["backend"], row["status"], row["check"]) == ("mxfp4_quantize", "torch", "ok", "passed")
    assert (row["m"], row["k"], row["input_dtype"], row["samples"]) == ("16", "64", "bfloat16", "3")
    assert float(row["median_time"]) == record["measurement"]["summary"]["median_ms"]
    assert (row["case_id"], row["timer"], row["cache_policy"]) == (record["case_id"], "cpu", "warm")


def test_an_existing_file_is_kept_under_another_name(bench, tmp_path):
    path = tmp_path / "out.csv"
    for tag in ("first", "second", "third"):
        bench(f"{CASE} --output_path {path} --case_tag {tag}")
    kept = {name: [row["case_tag"] for row in rows_of(tmp_path / name)] for name in ("out.1.csv", "out.2.csv")}
    assert kept == {"out.1.csv": ["first"], "out.2.csv": ["second"]}
    assert [row["case_tag"] for row in rows_of(path)] == ["third"]


def test_an_existing_file_is_not_touched_by_a_run_that_cannot_start(bench, tmp_path):
    path = tmp_path / "out.csv"
    path.write_text("precious\n", encoding="utf-8")
    assert bench(f"--routine mxfp4_quantize --m 16 --output_path {path}").code == 2
    assert [file.name for file in tmp_path.iterdir()] == ["out.csv"]
    assert path.read_text(encoding="utf-8") == "precious\n"


def test_append(bench, tmp_path):
    csv, jsonl = tmp_path / "out.csv", tmp_path / "out.jsonl"
    for tag in ("first", "second"):
        assert bench(f"{CASE} --append --output_path {csv} --jsonl {jsonl} --case_tag {tag}").code == 0
    assert [row["case_tag"] for row in rows_of(csv)] == ["first", "second"]
    assert [record["options"]["case_tag"] for record in records_of(jsonl)] == ["first", "second"]


def test_append_to_other_columns_is_refused(bench, tmp_path):
    path = tmp_path / "out.csv"
    path.write_text("routine,colour\n", encoding="utf-8")
    outcome = bench(f"{CASE} --append --output_path {path}")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err == (
        f"[ERROR] cannot append to {path}: its header is another one (lacks median_time, std_time, tflops; "
        "has colour); choose another --output_path, or leave out --append to keep it under another name\n"
    )
    assert path.read_text(encoding="utf-8") == "routine,colour\n"


def test_two_kinds_of_results_do_not_fit_in_one_file(bench, tmp_path):
    outcome = bench(f"{CASE} --output_path {tmp_path}/out --jsonl {tmp_path}/./out")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err == f"[ERROR] --output_path and --jsonl both name {tmp_path}/./out; give them two files\n"


@pytest.mark.parametrize(("flags", "samples", "reason"), [
    ("-n5", "5", "num_iters 5"),
    ("-n 1000000 --max_time 20ms", None, "max_time 0.02 s spent"),
    ("--target_precision 90%", None, "target_precision 0.9 reached"),
    ("--target_precision 0.001% --max_time 0.02", None, "max_time 0.02 s spent"),
])  # fmt: skip
def test_when_to_stop(bench, tmp_path, flags, samples, reason):
    path = tmp_path / "out.csv"
    assert bench(f"--routine mxfp4_quantize --m 16 --k 64 --device cpu {flags} --output_path {path}").code == 0
    (row,) = rows_of(path)
    assert row["stop_reason"].startswith(reason)
    assert samples in (None, row["samples"])


@pytest.mark.parametrize(
    ("flags", "policy"), [("", "warm"), ("--cache warm", "warm"), ("--cache cold", "cold: ")]
)  # fmt: skip
def test_cache(bench, tmp_path, flags, policy):
    path = tmp_path / "out.csv"
    assert bench(f"{CASE} {flags} --output_path {path}").code == 0
    assert rows_of(path)[0]["cache_policy"].startswith(policy)


@dataclass
class Rank(SingleRank):
    """One of two processes, alone: what the other one gathers is what this one does."""

    rank: int
    size: int = 2
    aborted: bool = False

    def all_gather(self, value: Any) -> list[Any]:
        return [value, value]

    def abort(self, error: BaseException) -> None:
        self.aborted = True


def measured_by(rank: Rank, tmp_path, path: str = "out.csv") -> int:
    routines = all_routines()
    routine = routines["mxfp4_quantize"]
    case = make_case(routine, line_grammar(routine.flags).parse(f"{CASE} --backends torch".split()))
    run = Options(**{**vars(case.options), "output_path": str(tmp_path / path)})
    return measure.measure_items([case], run, routines, rank)


def test_of_several_ranks_only_the_first_one_writes(tmp_path, capsys):
    assert measured_by(Rank(1), tmp_path) == 0
    assert capsys.readouterr() == ("", "")
    assert not (tmp_path / "out.csv").exists()
    assert measured_by(Rank(0), tmp_path) == 0
    said = capsys.readouterr().out
    assert said.startswith("[INFO] torch on 2 ranks: medians ")
    assert said.splitlines()[1].startswith(PERF)
    assert len(rows_of(tmp_path / "out.csv")) == 1


def test_a_result_file_that_the_first_rank_cannot_write_ends_all_of_them(tmp_path, capsys):
    assert measured_by(Rank(0), tmp_path, ".") == 2
    assert capsys.readouterr() == ("", f"[ERROR] cannot write results to {tmp_path}: it is a folder\n")


def test_a_rank_that_breaks_down_takes_the_others_with_it(monkeypatch, tmp_path):
    def broken(*_):
        raise RuntimeError("a bug")

    rank = Rank(1)
    monkeypatch.setattr(measure.Session, "run", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        measured_by(rank, tmp_path)
    assert rank.aborted
