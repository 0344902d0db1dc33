"""``flashinfer-perf readme``: brings the generated parts of ``benchmarks/README.md`` up to date."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from flashinfer_perf.report.markdown import replace_sections
from flashinfer_perf.report.readme import sections
from flashinfer_perf.routines import all_routines


def main(argv: Sequence[str] | None = None) -> int:
    """0 when the file is up to date or was brought so; with --check 1 when it is not."""
    parser = argparse.ArgumentParser(prog="flashinfer-perf readme", description=__doc__)
    parser.add_argument("path", nargs="?", default="benchmarks/README.md", help="the file (default: %(default)s)")
    parser.add_argument("--check", action="store_true", help="change nothing, fail when it is out of date")
    arguments = parser.parse_args(argv)
    path = Path(arguments.path)
    if not path.is_file():
        print(f"[ERROR] there is no {path}; run this from the root of the project", file=sys.stderr)
        return 2
    before = path.read_text(encoding="utf-8")
    after = replace_sections(before, sections(all_routines()))
    if arguments.check:
        print(f"{path} is {'up to date' if before == after else 'out of date; run: flashinfer-perf readme'}")
        return int(before != after)
    path.write_text(after, encoding="utf-8")
    return 0
