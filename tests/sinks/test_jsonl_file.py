from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from flashinfer_perf.core.record import CheckState, Finding, Status, Verdict
from flashinfer_perf.run.events import Message, Severity
from flashinfer_perf.run.session import SinkFailed
from flashinfer_perf.sinks.jsonl_file import JsonlFile, json_line
from tests.fakes import Fake, measurement, record


def strict(line: str) -> dict[str, Any]:
    """Parses JSON that has no NaN and no Infinity."""

    def refuse(word: str) -> None:
        raise ValueError(f"{word} is not JSON")

    return json.loads(line, parse_constant=refuse)


def test_a_record_is_one_line_with_its_samples():
    line = json_line(record(measurement=measurement(0.5, 0.25, 1 / 3)))
    assert "\n" not in line
    found = strict(line)
    assert found["measurement"]["samples_ms"] == [0.5, 0.25, 1 / 3]
    assert found["measurement"]["summary"]["median_ms"] == 1 / 3
    assert (found["status"], found["routine"], found["schema_version"]) == ("ok", "fake", 1)


def test_what_json_has_no_words_for_becomes_text():
    finding = Finding("out", False, "", max_abs=math.inf, relative_l2=math.nan, cosine=-math.inf)
    found = strict(json_line(record(verdict=Verdict(CheckState.MISMATCH, (finding,)))))
    first = found["verdict"]["findings"][0]
    assert (first["max_abs"], first["relative_l2"], first["cosine"]) == ("inf", "nan", "-inf")
    assert found["verdict"]["state"] == "mismatch"


def test_a_fact_of_an_unforeseen_kind_costs_no_run():
    found = strict(json_line(record(facts={"shape": torch.Size([2, 3]), "dtype": torch.float16, "path": Path("/x")})))
    assert found["facts"] == {"shape": [2, 3], "dtype": "torch.float16", "path": "/x"}


def test_texts_come_back_whatever_they_are():
    tag = 'a "quoted"\nline, größe \udce9'
    assert strict(json_line(record(options={"case_tag": tag})))["options"]["case_tag"] == tag


def test_every_field_of_a_real_record_is_there(fake: Fake):
    real = fake.record("--refcheck")
    found = strict(json_line(real))
    assert set(found) == set(real.as_dict())
    assert len(found["measurement"]["samples_ms"]) == 3
    assert found["environment"]["device"] == "cpu"


def test_a_line_per_record_and_nothing_for_messages(tmp_path: Path):
    path = tmp_path / "o.jsonl"
    sink = JsonlFile(str(path))
    assert not path.exists()
    for event in (Message(Severity.INFO, "x"), record(), record(status=Status.FAILED, measurement=None)):
        sink.take(event)
    sink.close()
    assert [strict(line)["status"] for line in path.read_text().splitlines()] == ["ok", "failed"]


def test_an_existing_file_is_kept_or_appended_to(tmp_path: Path):
    path = tmp_path / "o.jsonl"
    for append in (False, True, False):
        sink = JsonlFile(str(path), append)
        sink.take(record())
        sink.close()
    assert len(path.read_text().splitlines()) == 1
    assert len((tmp_path / "o.1.jsonl").read_text().splitlines()) == 2


def test_a_file_that_cannot_be_written_is_refused_at_once_or_fails_the_sink(tmp_path: Path):
    with pytest.raises(SinkFailed):
        JsonlFile(str(tmp_path))
    with pytest.raises(SinkFailed, match="No space"):
        JsonlFile("/dev/full").take(record())
