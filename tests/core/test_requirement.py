from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from types import SimpleNamespace

import pytest

from flashinfer_perf.core.machine import Machine
from flashinfer_perf.core.requirement import (
    capability,
    capability_in,
    case_rule,
    host_memory,
    installed_version,
    is_installed,
    package,
)

CPU = Machine("cpu", "cpu")


def gpu(major: int, minor: int) -> Machine:
    return Machine("cuda:0", "a GPU", compute_capability=(major, minor))


def test_a_missing_package_names_the_extra_that_installs_it():
    requirement = package("no_such_module_anywhere", extra="flashinfer")
    assert requirement.unmet(CPU, None) == (
        "no_such_module_anywhere is not installed; install it with: pip install 'flashinfer-perf[flashinfer]'"
    )
    assert requirement.text == "no_such_module_anywhere installed"
    assert requirement.on_package


def test_an_installed_package_is_no_obstacle():
    assert package("json", extra="flashinfer").unmet(CPU, None) is None


def test_looking_for_a_package_does_not_import_it():
    code = (
        "import sys; from flashinfer_perf.core.requirement import is_installed; "
        "assert is_installed('sqlite3'); assert 'sqlite3' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)})
    assert not is_installed("no_such_module_anywhere")
    assert not is_installed("no_such_package_anywhere.module")


def test_the_version_of_a_missing_distribution_says_so():
    assert installed_version("no-such-distribution-anywhere") == "not installed"
    assert installed_version("pytest") == importlib.metadata.version("pytest")


@pytest.mark.parametrize(
    ("machine", "met"), [(gpu(7, 5), True), (gpu(8, 0), True), (gpu(10, 3), True), (gpu(7, 0), False), (CPU, False)]
)
def test_a_least_capability_compares_numbers_not_texts(machine, met):
    assert (capability(minimum="7.5").unmet(machine, None) is None) == met


@pytest.mark.parametrize(
    ("machine", "met"),
    [(gpu(10, 0), True), (gpu(10, 3), True), (gpu(12, 1), True), (gpu(9, 0), False), (gpu(11, 0), False), (CPU, False)],
)
def test_generations_admit_every_minor_version_and_nothing_between(machine, met):
    assert (capability(10, 12).unmet(machine, None) is None) == met


def test_generations_and_a_least_capability_hold_together():
    requirement = capability(10, 12, minimum="10.3")
    assert requirement.unmet(gpu(10, 3), None) is None
    assert requirement.unmet(gpu(12, 0), None) is None
    assert requirement.unmet(gpu(11, 0), None) is not None
    assert "10.3 or newer" in requirement.unmet(gpu(10, 0), None)


def test_a_capability_that_is_not_there_is_named_with_what_is():
    assert capability(10, 12).unmet(gpu(9, 0), None) == (
        "it needs compute capability 10.x or 12.x, and this GPU has 9.0"
    )
    assert capability(minimum="8.0").unmet(CPU, None) == (
        "it needs a CUDA GPU of compute capability 8.0 or newer, and this run is on 'cpu'"
    )
    assert capability(9, 10, 12).text == "a CUDA GPU of compute capability 9.x, 10.x or 12.x"
    assert capability_in("8.9 9.0 12.0").text == "a CUDA GPU of compute capability 8.9, 9.0 or 12.0"
    assert capability(9).text == "a CUDA GPU of compute capability 9.x"
    assert capability(9).on_capability


def test_host_memory_is_not_that_of_a_gpu():
    assert host_memory.unmet(CPU, None) is None
    reason = host_memory.unmet(gpu(9, 0), None)
    assert "'cuda:0'" in reason
    assert "--device cpu" in reason


def test_a_rule_about_the_case_says_what_it_needs():
    rule = case_rule("an even k", lambda case: case.k % 2 == 0)
    assert rule.unmet(CPU, SimpleNamespace(k=4)) is None
    assert rule.unmet(CPU, SimpleNamespace(k=3)) == "it needs an even k"


def test_a_rule_about_the_case_may_give_a_reason_of_its_own():
    rule = case_rule("an even k", lambda case: case.k % 2 == 0, reason="the kernel loads pairs")
    assert rule.unmet(CPU, SimpleNamespace(k=3)) == "the kernel loads pairs"


def test_a_rule_about_the_case_is_met_when_only_the_machine_is_asked_about():
    assert case_rule("nothing", lambda case: False).unmet(CPU, None) is None


def test_a_list_of_capabilities_admits_these_and_no_others():
    """10.3 is not in between: libraries compile for each by itself."""
    requirement = capability_in("9.0 10.0 11.0")
    assert [requirement.unmet(gpu(*found), None) is None for found in ((9, 0), (10, 0), (10, 3), (11, 0), (8, 9))] == [
        True,
        True,
        False,
        True,
        False,
    ]
    assert requirement.unmet(gpu(10, 3), None) == (
        "it needs compute capability 9.0, 10.0 or 11.0, and this GPU has 10.3"
    )
    assert requirement.unmet(CPU, None) == (
        "it needs a CUDA GPU of compute capability 9.0, 10.0 or 11.0, and this run is on 'cpu'"
    )
    assert requirement.on_capability
    assert capability_in("10.7").text == "a CUDA GPU of compute capability 10.7"
