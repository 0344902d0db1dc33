"""What docs/moe_fp4.md shows works: on the CPU all but the graph, which has a test on a GPU."""

from __future__ import annotations

import re
import shlex

import pytest
import torch

from flashinfer_perf.cli.moe_fp4 import understand
from flashinfer_perf.moe_tool.shapes import selected
from tests.cli.conftest import ROOT

TEXT = (ROOT / "docs" / "moe_fp4.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^python benchmarks/kernels/benchmark_cutlass_fp4_moe\.py(.*?)(?: +#.*)?$", TEXT, re.MULTILINE)
PROGRAMMES = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
LARGE, SMALL = '256, 128, 2048, 7168, "cuda"', '8, 4, 128, 128, "cpu"'


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_selects_something(command):
    tool, _, _ = understand(shlex.split(command))
    assert selected(tool)


def test_all_commands_are_found():
    assert len(COMMANDS) == 6


def test_the_measuring_programme_prints_a_table(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    exec(PROGRAMMES[0], {})
    assert "|  cutlass_moe_fp4" in capsys.readouterr().out


def test_the_layers_programme_gives_a_layers_output():
    assert LARGE in PROGRAMMES[1]
    names = {}
    exec(PROGRAMMES[1].replace(LARGE, SMALL), names)
    assert names["output"].shape == (4, 128)
    assert names["output"].isfinite().all()


def test_the_last_programme_captures():
    assert "with torch.cuda.graph(graph, stream=stream):\n    output = layer()" in PROGRAMMES[2]
