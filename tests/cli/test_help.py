from __future__ import annotations

import re

import pytest

from flashinfer_perf.core.flags import specs_of
from flashinfer_perf.core.options import Options
from flashinfer_perf.routines import all_routines

ROUTINES = all_routines()


@pytest.fixture(autouse=True)
def _wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")


def entries(text: str) -> dict[str, str]:
    """Each flag's line of a help text by its long option, help on the following line included."""
    joined = re.sub(r"\n {20,}", " ", text)
    return {match[1]: match[0] for match in re.finditer(r"^  (--\w+).*$", joined, re.MULTILINE)}


def section(text: str, title: str) -> str:
    """What stands under a title, up to the next empty line that is followed by another title."""
    return re.split(r"\n\n(?=\S)", text.partition(f"\n{title}:\n")[2])[0]


def test_everything_is_in_the_help(bench):
    outcome = bench("--help")
    assert (outcome.code, outcome.err) == (0, "")
    general = entries(section(outcome.out, "general flags"))
    assert set(general) == {spec.option for spec in specs_of(Options).values()}
    for routine in ROUTINES.values():
        assert f"{routine.name}: {routine.summary}" in outcome.out
        family = entries(section(outcome.out, f"{routine.family} flags"))
        assert set(family) == {spec.option for spec in specs_of(routine.flags).values()}


@pytest.mark.parametrize("line", ["", "-h", "--he"])
def test_no_argument_or_any_spelling_asks_for_all_of_it(bench, line):
    assert bench(line) == bench("--help")


def test_general_flags_with_short_forms_defaults_choices_and_exit_statuses(bench):
    text = bench("--help").out
    general = entries(section(text, "general flags"))
    assert general["--num_iters"].startswith("  --num_iters, -n N ")
    assert general["--num_iters"].endswith("Default: 30.")
    assert "--routine, -R NAME" in general["--routine"]
    assert "{cold,warm}" in general["--cache"]
    assert "a switch is turned off by its --no-… form" in text
    assert text.rstrip().splitlines()[-1].startswith("exit status: 0 ")


@pytest.mark.parametrize("name", ROUTINES)
def test_a_routine_shows_its_flags_with_their_defaults_and_choices(bench, name):
    routine = ROUTINES[name]
    outcome = bench(f"--routine {name} --help")
    assert outcome.code == 0
    own = entries(section(outcome.out, f"flags of {name}"))
    assert set(own) == {spec.option for spec in routine.specs.values()}
    for spec in routine.specs.values():
        line = own[spec.option]
        assert ("Required." in line) == spec.required
        assert all(str(choice) in line for choice in spec.choices)
        if not spec.required and spec.default not in (None, (), "", False):
            assert line.endswith(f"Default: {spec.default}.")


@pytest.mark.parametrize("name", ["moe_a2a_dispatch_combine", "allreduce_fusion"])
def test_a_routine_over_several_ranks_says_how_to_start_them(bench, name):
    command = f"flashinfer_benchmark.py --routine {name} FLAGS…"
    header = bench(f"-R {name} -h").out.partition(f"flags of {name}:")[0]
    assert header.splitlines() == [
        f"usage: mpirun -np N python3 {command}",
        f"       torchrun --nproc-per-node N {command}",
        "",
        ROUTINES[name].summary,
        "",
        "N processes work together, each on a GPU of its own, or with --device cpu on the CPU.",
        "Started without a launcher, one process is all there is.",
        "mpirun needs mpi4py: pip install 'flashinfer-perf[mpi]'",
        "",
    ]


def test_a_routine_of_one_process_is_started_as_it_is(bench):
    assert bench("-R rmsnorm -h").out.startswith("usage: flashinfer_benchmark.py --routine rmsnorm FLAGS…\n\n")


@pytest.mark.parametrize("name", ROUTINES)
def test_a_routine_shows_its_backends_and_what_they_need(bench, name):
    text = bench(f"-R {name} -h").out
    backends = section(text, "backends, in order of preference")
    for backend in ROUTINES[name].backends.values():
        line = next(line for line in backends.splitlines() if line.startswith(f"  {backend.name}: "))
        assert backend.summary in line
        assert all(requirement.text in line for requirement in backend.requires)
        assert ("runs anywhere" in line) == (not backend.requires)


def test_a_flag_that_the_routine_does_not_read_promises_nothing(bench):
    text = bench("--routine BatchMLAPagedAttentionWrapper --help").out
    unread = entries(section(text, "accepted, but not read by BatchMLAPagedAttentionWrapper"))
    assert "--causal" in unread
    assert "Required" not in unread["--num_kv_heads"]
    assert not any("Default:" in line for line in unread.values())


def test_general_flags_are_in_a_routines_help_too(bench):
    general = section(bench("--routine mxfp4_quantize --help").out, "general flags")
    assert set(entries(general)) == {spec.option for spec in specs_of(Options).values()}


def test_help_about_no_such_routine(bench):
    outcome = bench("--routine mxfp4_quantise --help")
    assert (outcome.code, outcome.out) == (2, "")
    assert "Did you mean 'mxfp4_quantize'?" in outcome.err
