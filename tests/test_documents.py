"""What the documents show works: every command parses, and the quick ones run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from flashinfer_perf.cli.bench import main

ROOT = Path(__file__).parents[1]
DOCUMENTS = ("README.md", "benchmarks/README.md", "docs/benchmarking.md")
SAMPLES = [path for path in sorted((ROOT / "benchmarks/samples").glob("*.txt")) if "output" not in path.name]
PROGRAM = re.compile(r"(?:python3? (?:benchmarks/)?flashinfer_benchmark\.py)(.*)")


def commands(document: str) -> list[str]:
    """What stands behind the program's name in the code blocks of a document."""
    blocks = re.findall(r"```(?:bash|console)\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [found[1].split(" #")[0].strip() for line in lines if (found := PROGRAM.search(line))]


SHOWN = [(document, command) for document in DOCUMENTS for command in commands(document)]


def test_commands_are_found():
    assert len(SHOWN) > 8


@pytest.mark.parametrize(("document", "command"), SHOWN)
def test_every_command_in_the_documents_is_understood(document: str, command: str, monkeypatch, capsys):
    monkeypatch.chdir(ROOT / "benchmarks")
    assert main([*shlex.split(command), "--plan"]) == 0, capsys.readouterr()


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.name)
def test_every_line_of_the_sample_testlists_is_understood(path: Path, capsys):
    assert main(["--testlist", str(path), "--plan"]) == 0, capsys.readouterr()


def test_the_readmes_example_prints_what_it_shows(capsys):
    """All but the times."""
    text = (ROOT / "README.md").read_text()
    block = re.findall(r"```console\n(.*?)```", text, re.DOTALL)[0]
    command, *shown = block.strip().splitlines()
    assert main([*shlex.split(PROGRAM.search(command)[1]), "--device", "cpu"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [_without_numbers(line) for line in printed] == [_without_numbers(line) for line in shown]


def _without_numbers(line: str) -> str:
    return re.sub(r"\d+\.\d+", "N", line) if line.startswith("[PERF]") else line


def test_the_architectures_folders_exist():
    table = re.findall(r"^\| `(\w+)/` \|", (ROOT / "docs" / "architecture.md").read_text(), re.MULTILINE)
    package = ROOT / "src" / "flashinfer_perf"
    assert set(table) == {path.name for path in package.iterdir() if (path / "__init__.py").exists()}


def test_links_between_documents_lead_somewhere():
    for document in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")]:
        for target in re.findall(r"\]\((?!http)([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), f"{document} links to {target}"
