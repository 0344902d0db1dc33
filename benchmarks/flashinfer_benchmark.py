"""The benchmark program: ``python flashinfer_benchmark.py --routine NAME ...`` (``--help`` shows everything).

A launcher that works from any folder and with any Python. It runs the code of the checkout it lies in, with the Python
that started it if that one has what the code needs, else with the project's ``.venv``; else it says what to run.
"""

import importlib
import os
import sys
from importlib.util import find_spec

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SOURCE = os.path.join(ROOT, "src")
VENV = os.path.join(ROOT, ".venv")
DEPENDENCIES = ("torch", "numpy", "scipy", "rich", "rich_argparse")  # `dependencies` of pyproject.toml
OLDEST = (3, 10)  # `requires-python`; this file alone must also start with older ones
LAUNCHED = "FLASHINFER_PERF_LAUNCHED"  # set when .venv's Python takes over: it must not start itself again


def missing():
    """What this Python lacks, by name. Nothing is imported: torch alone would take a second."""
    if sys.version_info < OLDEST:
        return ["Python {}.{} or newer".format(*OLDEST)]
    return [name for name in ("flashinfer_perf", *DEPENDENCIES) if find_spec(name) is None]


def run_in_venv():
    """Go on in the project's environment, with the same arguments. Returns only where there is none to go to."""
    python = os.path.join(VENV, "bin", "python")
    here = os.path.realpath(sys.prefix) == os.path.realpath(VENV)
    if here or LAUNCHED in os.environ or not os.access(python, os.X_OK):
        return
    os.environ[LAUNCHED] = "1"
    arguments = getattr(sys, "orig_argv", [sys.executable, *sys.argv])[1:]  # orig_argv keeps options like -u
    sys.stdout.flush()
    os.execv(python, [python, *arguments])


def launch(module):
    """Run ``main()`` of a module of the package and exit with what it returns."""
    if os.path.isdir(os.path.join(SOURCE, "flashinfer_perf")):
        sys.path.insert(0, SOURCE)  # before an installed copy: the code beside this file is what is meant
    names = missing()
    if names:
        run_in_venv()
        print(f"error: {sys.executable} lacks {', '.join(names)}", file=sys.stderr)
        print(f"Run `make benchmark` in {ROOT} once: it sets up .venv, which this program then uses.", file=sys.stderr)
        if sys.version_info >= OLDEST:
            print(f"Or install into this Python: {sys.executable} -m pip install -e {ROOT}", file=sys.stderr)
        sys.exit(2)
    os.environ.pop(LAUNCHED, None)
    try:
        sys.exit(importlib.import_module(module).main())
    except KeyboardInterrupt:  # while the program was still being read
        sys.exit(130)


if __name__ == "__main__":
    launch("flashinfer_perf.cli.bench")
