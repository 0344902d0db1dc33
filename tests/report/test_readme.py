"""The generated parts of benchmarks/README.md."""

from __future__ import annotations

from pathlib import Path

from flashinfer_perf.cli.main import main
from flashinfer_perf.core.flags import specs_of
from flashinfer_perf.core.options import Options
from flashinfer_perf.report.readme import sections
from flashinfer_perf.routines import all_routines

README = Path(__file__).parents[2] / "benchmarks" / "README.md"


def test_the_file_is_up_to_date():
    assert main(["readme", str(README), "--check"]) == 0, "run: flashinfer-perf readme"


def test_a_file_that_is_out_of_date_is_found_out_and_mended(tmp_path: Path, capsys):
    copy = tmp_path / "README.md"
    copy.write_text(README.read_text().replace("`--batch_size`", "`--batchsize`"))
    assert main(["readme", str(copy), "--check"]) == 1
    assert "out of date; run: flashinfer-perf readme" in capsys.readouterr().out
    assert main(["readme", str(copy)]) == 0
    assert copy.read_text() == README.read_text()


def test_a_missing_file_is_said(tmp_path: Path, capsys):
    assert main(["readme", str(tmp_path / "none.md")]) == 2
    assert "run this from the root" in capsys.readouterr().err


def test_every_flag_routine_and_backend_is_there():
    found = sections(all_routines())
    assert all(f"`{spec.option}`" in found["general-flags"] for spec in specs_of(Options).values())
    for routine in all_routines().values():
        assert f"`{routine.name}` - {routine.summary}" in found["routines"]
        assert f"**{routine.name}**" in found["support-matrix"]
        assert all(f"`{spec.option}`" in found["family-flags"] for spec in specs_of(routine.flags).values())
        assert all(f"- {name}: " in found["legend"] for name in routine.backends)


def test_the_matrix_shows_where_rope_runs():
    (row,) = (line for line in sections(all_routines())["support-matrix"].splitlines() if "mla_rope_quantize" in line)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1:] == [*["torch"] * 3, "cuda, torch", *["cuda, cutile, torch"] * 4, "torch"]


def test_the_matrix_shows_what_runs_where():
    (row,) = (line for line in sections(all_routines())["support-matrix"].splitlines() if "MLAPaged" in line)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1:] == [
        "torch",
        *["fa2, torch"] * 3,
        "fa2, fa3, torch",
        *["fa2, cutlass, trtllm-native, torch"] * 2,
        "fa2, torch",
        "torch",
    ]
