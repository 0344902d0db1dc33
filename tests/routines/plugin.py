"""Packages of somebody else's, as an installer would leave them: a module, and a dist-info with the entry point."""

from __future__ import annotations

from pathlib import Path

from flashinfer_perf.routines import ENTRY_POINTS


def make_plugin(folder: Path, name: str, source: str) -> None:
    """Puts a plug-in into a folder. With the folder on PYTHONPATH it is installed."""
    (folder / f"{name}.py").write_text(source)
    dist_info = folder / f"{name}-1.0.dist-info"
    dist_info.mkdir()
    (dist_info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (dist_info / "entry_points.txt").write_text(f"[{ENTRY_POINTS}]\n{name} = {name}\n")
