from __future__ import annotations

import dataclasses
import json

import pytest

from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.core.record import (
    SCHEMA_VERSION,
    CheckState,
    Finding,
    Measurement,
    Record,
    Status,
    TensorStatistics,
    Verdict,
)
from flashinfer_perf.core.statistics import summarise
from flashinfer_perf.core.work import Work

STATISTICS = TensorStatistics(minimum=-1.0, maximum=2.0, mean=0.5, std=0.1, worst=2.0)
FINDING = Finding("out", False, "2 of 8 differ", 8, 2, 0.5, 0.1, 0.99, (0, 3), STATISTICS, STATISTICS)
MEASUREMENT = Measurement(
    samples_ms=(1.0, 2.0),
    phases_ms={"dispatch": (0.5, 1.0), "combine": (0.5, 1.0)},
    summary=summarise([1.0, 2.0]),
    timer="cpu",
    fallback_reason="",
    cache_policy="warm",
    tick_ms=1e-6,
    calls_per_sample=1,
    dry_runs=5,
    stop_reason="num_iters 2",
    ranks=1,
)
RECORD = Record(
    Status.MISMATCH,
    "2 of 8 differ",
    "rmsnorm",
    "cuda",
    case={"batch_size": 4, "input_dtype": DType.BFLOAT16, "num_heads": None},
    options={"allow_output_mismatch": True},
    ignored_flags=("scale",),
    measurement=MEASUREMENT,
    work=Work(flops=1.0, bytes=2.0),
    verdict=Verdict(CheckState.MISMATCH, (FINDING,), (FINDING,), "torch"),
    facts={"plan_ms": 1.5},
)


def test_the_statuses_are_the_documented_ones():
    names = "ok mismatch unsupported invalid failed out_of_memory timeout crashed interrupted"
    assert [str(status) for status in Status] == names.split()
    assert [str(state) for state in CheckState] == ["passed", "mismatch", "not_checked"]


def test_a_record_becomes_json_with_everything_in_it():
    plain = json.loads(json.dumps(RECORD.as_dict()))
    assert set(plain) == {field.name for field in dataclasses.fields(Record)}
    assert plain["status"] == "mismatch"
    assert plain["schema_version"] == SCHEMA_VERSION
    assert plain["case"] == {"batch_size": 4, "input_dtype": "bfloat16", "num_heads": None}
    assert plain["measurement"]["phases_ms"]["combine"] == [0.5, 1.0]
    assert plain["measurement"]["summary"]["median_ms"] == 1.5
    assert plain["verdict"]["findings"][0]["worst_index"] == [0, 3]
    assert plain["verdict"]["state"] == "mismatch"
    assert plain["work"] == {"flops": 1.0, "bytes": 2.0}


def test_a_record_of_nothing_becomes_json_too():
    plain = json.loads(json.dumps(Record(Status.INVALID, "unknown flag --x", "", "").as_dict()))
    assert plain["measurement"] is None
    assert plain["verdict"]["state"] == "not_checked"


@pytest.mark.parametrize("part", [RECORD, MEASUREMENT, FINDING, STATISTICS, RECORD.verdict, RECORD.work])
def test_records_and_their_parts_are_frozen(part):
    name = dataclasses.fields(part)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(part, name, getattr(part, name))


@pytest.mark.parametrize(
    ("status", "options", "allowed"),
    [
        ("mismatch", {"allow_output_mismatch": True}, True),
        ("mismatch", {"allow_output_mismatch": False}, False),
        ("mismatch", {}, False),
        ("failed", {"allow_output_mismatch": True}, False),
        ("ok", {"allow_output_mismatch": True}, False),
    ],
)
def test_only_a_mismatch_that_was_asked_for_is_allowed(status, options, allowed):
    assert Record(Status(status), "", "rmsnorm", "cuda", options=options).mismatch_allowed is allowed


def test_the_fraction_of_differing_elements_is_zero_for_an_empty_output():
    assert FINDING.fraction == 0.25
    assert Finding("out", True, "").fraction == 0.0
