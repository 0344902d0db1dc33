"""Modules that are imported when they are first used."""

from __future__ import annotations

import sys

import pytest

from flashinfer_perf.lazy import LazyModule


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package whose ``__init__`` does not import its part."""
    home = tmp_path / "lazily_made"
    home.mkdir()
    (home / "__init__.py").write_text("answer = 42\n")
    (home / "part.py").write_text("answer = 43\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield home.name
    for name in [name for name in sys.modules if name.startswith(home.name)]:
        del sys.modules[name]


def test_nothing_is_imported_before_an_attribute_is_read(package):
    module = LazyModule(package)
    assert package not in sys.modules
    assert module.answer == 42
    assert package in sys.modules


def test_a_part_that_the_package_does_not_import_is_imported(package):
    assert LazyModule(package).part.answer == 43


def test_what_is_not_there_is_an_attribute_error(package):
    with pytest.raises(AttributeError, match="other"):
        LazyModule(package).other  # noqa: B018
    with pytest.raises(AttributeError, match="dumps2"):
        LazyModule("json.encoder").dumps2  # noqa: B018
