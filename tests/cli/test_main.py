from __future__ import annotations

import importlib

import pytest

from flashinfer_perf.cli.main import COMMANDS, main, module_of
from tests.cli.conftest import ROOT


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_file_of_its_own(name):
    assert callable(importlib.import_module(module_of(name)).main)


def test_bench_is_the_same_program(capsys, bench):
    line = "--plan --routine mxfp4_quantize --m 16 --k 64"
    assert main(["bench", *line.split()]) == 0
    assert capsys.readouterr() == (bench(line).out, "")
    assert main(["bench", "--routine", "mxfp4_quantize"]) == 2
    assert capsys.readouterr() == ("", "[ERROR] missing required flags --m, --k\n")


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_lists_the_commands(capsys, option):
    assert main([option]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith("usage: flashinfer-perf COMMAND …\n")
    assert all(f"\n  {name} " in out and text in out for name, text in COMMANDS.items())


def test_no_command_is_answered_with_the_list(capsys):
    assert main([]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("usage: flashinfer-perf COMMAND …\n")


def test_unknown_command(capsys):
    assert main(["bnech"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("[ERROR] unknown command 'bnech'. Did you mean 'bench'?\nusage: ")


def test_console_scripts_name_functions_that_exist():
    tomllib = pytest.importorskip("tomllib")  # from Python 3.11
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    assert set(scripts) == {"flashinfer-benchmark", "flashinfer-perf"}
    for target in scripts.values():
        module, _, function = target.partition(":")
        assert callable(getattr(importlib.import_module(module), function))
