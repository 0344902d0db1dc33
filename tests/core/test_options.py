from __future__ import annotations

import pytest

from flashinfer_perf.core.flags import REQUIRED, build, specs_of
from flashinfer_perf.core.options import Options, parse_device, parse_precision, parse_seconds

SPECS = specs_of(Options)

UPSTREAM = [  # 0.6.2's general flags in the order of its Namespace line: name, short form, default
    ("routine", "R", None),
    ("no_cuda_graph", "", False),
    ("use_cupti", "", False),
    ("use_cuda_events", "", False),
    ("refcheck", "", False),
    ("allow_output_mismatch", "", False),
    ("random_seed", "", 42),
    ("verbose", "v", 0),
    ("output_path", "", None),
    ("num_iters", "n", 30),
    ("dry_run_iters", "d", 5),
    ("case_tag", "", None),
    ("generate_repro_command", "", False),
    ("repro_command", "", ""),
]


def test_upstreams_general_flags_come_first_with_its_short_forms_and_defaults():
    ours = [(spec.name, spec.short, spec.default) for spec in SPECS.values()]
    assert ours[: len(UPSTREAM)] == UPSTREAM


def test_this_programs_own_flags_exist():
    added = "device list plan cache format append target_precision max_time jsonl help testlist"
    assert set(added.split()) <= set(SPECS)


def test_flags_of_the_process_are_those_of_files_and_of_the_program_itself():
    per_process = {name for name, spec in SPECS.items() if spec.per_process}
    assert per_process == {"output_path", "testlist", "format", "append", "jsonl", "list", "plan", "version", "help"}


def test_every_option_has_a_default_and_a_help_text():
    assert all(spec.default is not REQUIRED and spec.help.endswith(".") for spec in SPECS.values())
    assert build(Options, SPECS, {}) == Options()


def test_no_two_options_share_a_spelling():
    spellings = [option for spec in SPECS.values() for option in (*spec.options, *spec.off_options)]
    assert len(spellings) == len(set(spellings))


@pytest.mark.parametrize(
    ("text", "value"), [("1%", 0.01), ("0.01", 0.01), ("0.5%", 0.005), ("99.9%", 0.999), ("1e-3", 1e-3)]
)
def test_precision(text, value):
    assert parse_precision(text) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("text", ["0", "0%", "1", "100%", "-1%", "150%", "nan", "nan%", "inf", "%", "", "one", "1%%"])
def test_no_precision(text):
    with pytest.raises(ValueError, match="is not a precision; give a percentage such as 1% or a fraction"):
        parse_precision(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("1.5m", 90), ("200ms", 0.2), ("1e-3", 1e-3), ("0.5s", 0.5), ("2m", 120)],
)
def test_seconds(text, seconds):
    assert parse_seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["0", "0s", "-1", "inf", "nan", "nanms", "s", "ms", "", "1h", "1 hour", "1e999"])
def test_no_seconds(text):
    with pytest.raises(ValueError, match="is not a time; give seconds such as 90, or 200ms"):
        parse_seconds(text)


@pytest.mark.parametrize("text", ["auto", "cpu", "cuda", "cuda:0", "cuda:15"])
def test_device(text):
    assert parse_device(text) == text


@pytest.mark.parametrize("text", ["", "gpu", "cpu:0", "cuda:", "cuda:x", "cuda:-1", "cuda:0:1", "CUDA", "auto:1"])
def test_no_device(text):
    with pytest.raises(ValueError, match="is not a device; give auto, cpu, cuda or cuda:N"):
        parse_device(text)
