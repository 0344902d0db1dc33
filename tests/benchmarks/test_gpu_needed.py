from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "benchmarks"
NO_GPU = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}


@pytest.mark.parametrize(
    "command", ["clock_fidelity.py", "clock_table.py --testlist none.txt", "rate_table.py --testlist none.txt"]
)
def test_without_a_gpu_there_is_one_line_and_no_traceback(command):
    script, *flags = command.split()
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / script), *flags], env=NO_GPU, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert f"{script}: error: it measures a CUDA GPU" in done.stderr
    assert "Traceback" not in done.stderr
