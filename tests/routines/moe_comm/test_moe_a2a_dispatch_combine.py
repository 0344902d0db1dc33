"""moe_a2a_dispatch_combine on one rank, and under mpirun on two, through the real program."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.core.errors import InvalidInput
from flashinfer_perf.routines.moe_comm.flags import MoeCommFlags
from flashinfer_perf.routines.moe_comm.moe_a2a_dispatch_combine import factor, fake_experts, moe_a2a, owners, traffic
from flashinfer_perf.run.factory import TensorFactory
from tests.routines.harness import (
    GIBIBYTE,
    assert_caught,
    assert_passes,
    case_of,
    problem_of,
    records_of,
    run,
    run_broken,
)
from tests.routines.moe_comm.broken import ON_ONE_RANK, ON_TWO_RANKS, prepare_with
from tests.routines.plugin import make_plugin

NAME = "moe_a2a_dispatch_combine"
ROOT = Path(__file__).parents[3]
LAUNCHER = ROOT / "benchmarks" / "flashinfer_benchmark.py"
MPIRUN = Path(sys.executable).with_name("mpirun")
CASE = "--num_tokens 24 --hidden_size 32 --num_experts 8 --top_k 3"


# ---- One rank ----


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(
    "flags",
    [
        "--num_tokens 1 --hidden_size 1 --num_experts 1 --top_k 1",
        "--num_tokens 1 --hidden_size 8 --num_experts 4 --top_k 4",
        "--num_tokens 33 --hidden_size 7 --num_experts 5 --top_k 1",
        "--num_tokens 64 --hidden_size 128 --num_experts 32 --top_k 8",
    ],
)
def test_gloo_passes(flags, dtype):
    assert_passes(run(NAME, f"{flags} --input_dtype {dtype}", "gloo"))


@pytest.mark.parametrize("name", ON_ONE_RANK)
def test_a_broken_exchange_is_caught(name):
    assert_caught(run_broken(NAME, prepare_with(ON_ONE_RANK[name]), CASE))


def test_phases_are_measured_one_by_one():
    (record,) = records_of(case_of(NAME, CASE))
    assert list(record.measurement.phases_ms) == ["dispatch", "experts", "combine"]
    for total, *phases in zip(record.measurement.samples_ms, *record.measurement.phases_ms.values(), strict=True):
        assert total == pytest.approx(sum(phases))


def test_more_choices_than_experts_are_invalid():
    with pytest.raises(InvalidInput, match=r"top_k \(5\) must not exceed num_experts \(4\)"):
        problem_of(NAME, "--num_tokens 4 --hidden_size 8 --num_experts 4 --top_k 5")


# ---- The problem ----


class Rank:
    """One of several ranks in one process. What the others say is put in place; what this one says is kept."""

    def __init__(self, rank, size, everybody=()):
        self.rank, self.size = rank, size
        self.everybody, self.said = list(everybody), None

    def all_gather(self, value):
        self.said = value
        return self.everybody or [value] * self.size


def flags_of(**values):
    defaults = {"num_tokens": 4, "hidden_size": 8, "num_experts": 4, "top_k": 2, "input_dtype": DType.BFLOAT16}
    return MoeCommFlags(**{**defaults, **values})


def total_traffic(case, ids_by_rank):
    """(dispatch, combine) bytes over all ranks, each of which has its own tokens."""
    said = []
    for rank, ids in enumerate(ids_by_rank):
        own = Rank(rank, len(ids_by_rank))
        traffic(case, ids, own)
        said.append(own.said)
    return traffic(case, ids_by_rank[0], Rank(0, len(ids_by_rank), said))


def test_traffic_of_a_small_example():
    """Two ranks with two experts each, one token each. Rank 0's wants experts 0 and 1, which it owns; rank 1's wants
    0 and 2: one row there with one choice, and one row back.
    """
    ids = [torch.tensor([[0, 1]]), torch.tensor([[0, 2]])]
    assert total_traffic(flags_of(num_tokens=1), ids) == (8 * 2 + 8, 8 * 2)


def test_traffic_of_upstreams_golden_case():
    """8 ranks, 64 tokens each, 256 experts, top 8, hidden 7168, bf16; computed by upstream's own function."""
    import numpy

    generator = numpy.random.default_rng(0)
    ids = [torch.tensor([generator.permutation(256)[:8].tolist() for _ in range(64)]) for _ in range(8)]
    case = flags_of(num_tokens=64, hidden_size=7168, num_experts=256, top_k=8)
    assert total_traffic(case, ids) == (34004920, 33976320)


def test_one_rank_has_no_traffic():
    _, problem = problem_of(NAME, CASE)
    assert problem.work.bytes == 0
    assert problem.facts == {"ep_size": 1, "dispatch_bytes": 0, "combine_bytes": 0}


def test_owners():
    ids = torch.tensor([[0, 1], [1, 5], [4, 3]])
    assert owners(ids, 2, 3).tolist() == [[True, False, False], [True, False, True], [False, True, True]]


def test_the_truth_is_the_sum_over_a_tokens_experts():
    hidden = torch.tensor([[1.0, -2.0], [4.0, 0.5]])
    out = fake_experts(hidden, torch.tensor([[0, 3], [1, 2]]), num_experts=4)["out"]
    assert out.dtype is torch.float64
    assert out.tolist() == [[2.25, -4.5], [9.0, 1.125]]
    assert factor(torch.arange(4), 4).tolist() == [0.75, 1.0, 1.25, 1.5]


def test_ranks_have_tokens_and_routing_of_their_own():
    problems = [
        moe_a2a.make(flags_of(num_tokens=16), TensorFactory("cpu", 42, GIBIBYTE, Rank(rank, 2, [(0, 0)] * 2)))
        for rank in range(2)
    ]
    for name in ("hidden", "expert_ids"):
        assert not torch.equal(problems[0][name], problems[1][name])
    for problem in problems:
        assert all(len(set(row)) == 2 for row in problem["expert_ids"].tolist())


def test_experts_that_cannot_be_shared_equally_are_invalid():
    with pytest.raises(InvalidInput, match=r"num_experts \(4\) must be divisible by the number of ranks \(3\)"):
        moe_a2a.make(flags_of(), TensorFactory("cpu", 42, GIBIBYTE, Rank(0, 3)))


# ---- Two ranks ----

two_ranks = pytest.mark.skipif(
    not MPIRUN.exists() or find_spec("mpi4py") is None, reason="needs mpi4py and MPICH's mpirun beside Python"
)


def mpirun(*arguments, path=()):
    """The real program on two ranks; (exit status, standard output)."""
    search = os.pathsep.join([*map(str, path), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": search}
    command = [MPIRUN, "-np", "2", sys.executable, LAUNCHER, *arguments, "--device", "cpu", "--num_iters", "3"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout + done.stderr


def rows_in(file):
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


@two_ranks
@pytest.mark.mpi
def test_two_ranks_make_one_row_and_one_set_of_lines(tmp_path):
    output = tmp_path / "out.csv"
    status, text = mpirun("--routine", NAME, *CASE.split(), "--refcheck", "--output_path", str(output))
    assert status == 0, text
    (row,) = rows_in(output)
    assert (row["status"], row["check"], row["backend"]) == ("ok", "passed", "gloo")
    assert (row["ranks"], row["ep_size"], row["samples"]) == ("2", "2", "3")
    assert int(row["bytes"]) == int(row["dispatch_bytes"]) + int(row["combine_bytes"]) > 0
    labels = [line.split()[1] for line in text.splitlines() if line.startswith("[PERF]")]
    assert labels == ["dispatch", "experts", "combine", "gloo"]
    assert [file.name for file in tmp_path.iterdir()] == ["out.csv"]


@two_ranks
@pytest.mark.mpi
def test_two_ranks_with_few_tokens_and_invalid_lines(tmp_path):
    """A rank may send or receive nothing at all."""
    testlist, output = tmp_path / "cases.txt", tmp_path / "out.csv"
    testlist.write_text(
        f"--routine {NAME} --num_tokens {{1,2,33}} --hidden_size 5 --num_experts {{2,6}} --top_k 1 --refcheck\n"
        f"--routine {NAME} --num_tokens 1 --hidden_size 1 --num_experts 2 --top_k 2 --input_dtype float16 --refcheck\n"
        f"--routine {NAME} --num_tokens 4 --hidden_size 8 --num_experts 3 --top_k 1 --refcheck\n"
        f"--routine {NAME} --num_tokens 4 --hidden_size 8 --num_experts 4 --top_k 1 --refcheck\n"
    )
    status, text = mpirun("--testlist", str(testlist), "--output_path", str(output))
    rows = rows_in(output)
    assert [(row["status"], row["check"]) for row in rows[:7]] == [("ok", "passed")] * 7, text
    assert rows[7]["status"] == "invalid"
    assert "num_experts (3) must be divisible by the number of ranks (2)" in rows[7]["reason"]
    assert rows[8]["status"] == "ok"
    assert (len(rows), status) == (9, 1)


@two_ranks
@pytest.mark.mpi
def test_broken_exchanges_between_two_ranks_are_caught(tmp_path):
    """Also those in which only one rank, perhaps not the one that reports, is wrong."""
    source = "from tests.routines.moe_comm.broken import ON_TWO_RANKS, declare\ndeclare(ON_TWO_RANKS)\n"
    make_plugin(tmp_path, "broken_exchanges", source)
    output = tmp_path / "out.csv"
    backends = ["gloo", *ON_TWO_RANKS]
    arguments = ["--routine", NAME, *CASE.split(), "--refcheck", "--output_path", str(output), "--backends", *backends]
    status, text = mpirun(*arguments, path=(tmp_path, ROOT))
    found = {row["backend"]: (row["status"], row["check"]) for row in rows_in(output)}
    assert found.pop("gloo") == ("ok", "passed"), text
    assert found == dict.fromkeys(ON_TWO_RANKS, ("mismatch", "mismatch")), text
    assert status == 1
