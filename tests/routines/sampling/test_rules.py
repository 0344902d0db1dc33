"""What is refused: flags outside their limits, before anything is made; and cases that FlashInfer cannot count."""

from __future__ import annotations

import pytest

from flashinfer_perf.core.errors import InvalidInput
from flashinfer_perf.core.machine import Machine
from flashinfer_perf.routines import all_routines
from tests.routines.harness import case_of

SHAPE = "--batch_size 4 --vocab_size 32"
READS = {
    flag: [name for name, r in all_routines().items() if r.family == "sampling" and flag in r.specs]
    for flag in ("top_k", "top_p", "min_p", "temperature", "vocab_size", "num_rows")
}


@pytest.mark.parametrize(
    ("flag", "value", "text"),
    [
        ("top_k", "0", "--top_k must be at least 1, not 0"),
        ("top_k", "-3", "--top_k must be at least 1, not -3"),
        ("top_p", "0", "--top_p must be above 0, not 0"),
        ("top_p", "-0.5", "--top_p must be above 0, not -0.5"),
        ("top_p", "1.01", r"top_p \(1.01\) must be in \(0, 1\]: it is a share of the probability"),
        ("min_p", "-0.1", "--min_p must be at least 0, not -0.1"),
        ("min_p", "1.5", r"min_p \(1.5\) must not exceed 1: no token would be left"),
        ("temperature", "0", "--temperature must be above 0, not 0"),
        ("temperature", "-1", "--temperature must be above 0, not -1"),
        ("temperature", "nan", "--temperature takes a finite number, not 'nan'"),
    ],
)
def test_a_value_outside_its_limits_is_refused_by_every_routine_that_reads_it(flag, value, text):
    assert READS[flag]
    for name in READS[flag]:
        with pytest.raises(InvalidInput, match=text):
            case_of(name, f"{SHAPE} --top_k 5 --{flag} {value}")


def test_more_than_the_vocabulary_is_refused_by_every_routine_that_reads_both():
    both = set(READS["top_k"]) & set(READS["vocab_size"])
    assert both
    for name in both:
        with pytest.raises(InvalidInput, match=rf"{name}: top_k \(33\) must not exceed vocab_size \(32\)"):
            case_of(name, f"{SHAPE} --top_k 33")


@pytest.mark.parametrize("name", sorted(set(READS["vocab_size"]) - set(READS["top_k"])))
def test_a_default_top_k_that_is_not_read_rejects_no_small_vocabulary(name):
    flags = case_of(name, SHAPE).flags
    assert flags.top_k > flags.vocab_size == 32


def test_a_page_table_to_every_row():
    with pytest.raises(
        InvalidInput, match=r"num_rows \(5\) must not exceed batch_size \(4\): row i reads page table i"
    ):
        case_of("top_k_page_table_transform", "--batch_size 4 --num_rows 5")
    case_of("top_k_ragged_transform", "--batch_size 4 --num_rows 5")


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("softmax", "--batch_size 33600 --vocab_size 128256"),
        ("top_k_sampling_from_probs", "--batch_size 33600 --vocab_size 128256"),
        ("chain_speculative_sampling", "--batch_size 5600 --vocab_size 128256"),
    ],
)
def test_flashinfer_counts_elements_in_32_bits(name, flags):
    machine = Machine("cuda", "", (9, 0))
    requirements = [r for r in all_routines()[name].backends["cuda"].requires if r.text.startswith("fewer than 2^32")]
    (requirement,) = requirements
    assert "there are 2^32 or more" in requirement.unmet(machine, case_of(name, flags).flags)
    assert requirement.unmet(machine, case_of(name, flags.replace("600", "000")).flags) is None
    assert requirement.unmet(machine, None) is None
