from __future__ import annotations

import pytest

from flashinfer_perf.timing.rank_times import RANK_FACTS, RankTimes, rank_line
from tests.fakes import measurement


def test_a_sample_is_the_longest_time_of_a_rank_and_a_phase_the_longest_of_its_own():
    times = RankTimes()
    times.add([[(1.0, 5.0), (2.0, 2.0)], [(3.0, 4.0), (1.0, 9.0)]])
    times.add([[(1.0, 1.0)], [(2.0, 0.0)]])
    assert times.totals == [7.0, 10.0, 2.0]
    assert times.phases == [(3.0, 5.0), (2.0, 9.0), (2.0, 1.0)]


def test_facts_say_how_far_the_ranks_are_apart():
    times = RankTimes()
    times.add([[(1.0,), (1.0,), (1.0,)], [(2.0,), (2.5,), (9.0,)], [(1.5,), (1.5,), (1.5,)]])
    assert times.facts() == dict(zip(RANK_FACTS, (1.0, 1.5, 2.5, 1.5), strict=True))


def test_one_rank_is_not_apart_from_itself():
    times = RankTimes()
    times.add([[(1.0,)]])
    assert times.facts() == {}


def test_ranks_with_different_numbers_of_samples_are_an_error():
    with pytest.raises(ValueError, match=r"shorter|longer"):
        RankTimes().add([[(1.0,)], [(1.0,), (2.0,)]])


def test_the_line_about_the_ranks():
    alone = rank_line(measurement(0.145))
    assert alone.startswith("1 rank, which exchanges with none; start several with mpirun -np N")
    facts = dict(zip(RANK_FACTS, (0.14, 0.1425, 0.145, 0.0041), strict=True))
    line = rank_line(measurement(0.145, ranks=4, timer_facts=facts))
    assert line == "4 ranks: medians 0.14, 0.1425, 0.145 ms (fastest, middle, slowest rank); they end 0.0041 ms apart"
