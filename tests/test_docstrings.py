"""Docstrings of the public names: each has an example that runs, and every argument is described where an IDE looks."""

from __future__ import annotations

import doctest
import inspect
import re
from collections.abc import Callable, Iterator

import pytest

import rs_embed
from rs_embed.export.cost import ExportPlan
from rs_embed.export.dataset import EmbeddingDataset
from rs_embed.patch import Patch
from rs_embed.search.heatmap import HeatMap
from rs_embed.search.results import SearchResults

NAMES = ["export_embeddings", *(name for name in rs_embed.__all__ if name != "export_embeddings")]  # others open it
RETURNED = (EmbeddingDataset, ExportPlan, HeatMap, Patch, SearchResults)
BUILT_BY_US = {"Embedding", "EmbeddingFailure"}


def test_every_public_name_has_an_example_that_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    finder = doctest.DocTestFinder(recurse=False)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    said: list[str] = []
    for name in NAMES:
        [test] = finder.find(getattr(rs_embed, name), name, module=False)
        assert test.examples, f"{name} has no example"
        runner.run(test, out=said.append)
    assert "".join(said) == ""


def callables() -> Iterator[tuple[str, Callable[..., object]]]:
    """Yield what a user calls: functions, classes that a user builds, and the methods of all classes."""
    for name in rs_embed.__all__:
        value = getattr(rs_embed, name)
        if inspect.isfunction(value) or (inspect.isclass(value) and name not in BUILT_BY_US):
            yield name, value
    classes = {value for name in rs_embed.__all__ if inspect.isclass(value := getattr(rs_embed, name))}
    for owner in (*classes, *RETURNED):
        for name, member in inspect.getmembers(owner):
            if not name.startswith("_") and callable(member) and not issubclass(owner, Exception):
                yield f"{owner.__name__}.{name}", member


@pytest.mark.parametrize(("name", "called"), sorted(callables(), key=lambda pair: pair[0]))
def test_every_argument_is_described(name, called):
    if inspect.isclass(called) and issubclass(called, Exception):
        return
    text = inspect.getdoc(called) or ""
    arguments = text.partition("Args:")[2].partition("\n\n")[0]
    missing = [
        parameter
        for parameter in inspect.signature(called).parameters
        if parameter != "self" and not re.search(rf"^ +{parameter}: \S", arguments, re.MULTILINE)
    ]
    assert missing == [], f"{name} does not describe {', '.join(missing)} under Args"
