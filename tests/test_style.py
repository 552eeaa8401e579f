"""House rules that no linter has: docstrings with a subject, no import circles, short functions and files."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"
FILES = sorted(SOURCE.rglob("*.py"))
MAX_FILE_LINES, MAX_FUNCTION_LINES = 350, 60
OPENING = re.compile(r"\W*(What|Of|How|Whether|As|By)\b")


@cache
def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def place(file: Path, line: int) -> str:
    return f"{file.relative_to(ROOT)}:{line}"


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield line and text of every string statement: of modules, classes, functions and attributes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, node.value.value


def module_name(file: Path) -> str:
    parts = file.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree: ast.Module, known: frozenset[str]) -> set[str]:
    """Return the known modules that a module imports, also inside functions, but not those for type checking only."""
    found: set[str] = set()
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting.extend(node.orelse)
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            submodules = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= submodules & known
            if not submodules <= known:
                found.add(node.module)
        waiting.extend(ast.iter_child_nodes(node))
    return found & known


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return one path for each import circle that a depth-first search meets."""
    found: list[list[str]] = []
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> None:
        if module in path:
            found.append([*path[path.index(module) :], module])
        elif module not in done:
            for imported in sorted(graph[module]):
                visit(imported, [*path, module])
            done.add(module)

    for module in sorted(graph):
        visit(module, [])
    return found


def test_every_docstring_has_a_subject():
    scripts = (file for folder in ("benchmarks", "evaluation", "training") for file in (ROOT / folder).glob("*.py"))
    assert [
        f"{place(file, line)} {text.splitlines()[0][:60]}"
        for file in [*FILES, *sorted(scripts)]
        for line, text in docstrings(parsed(file))
        if OPENING.match(text)
    ] == []


def test_no_two_files_import_each_other():
    known = frozenset(map(module_name, FILES))
    graph = {module_name(file): imports(parsed(file), known) - {module_name(file)} for file in FILES}
    assert [" > ".join(circle) for circle in circles(graph)] == []


def lines_of(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def test_no_function_is_long():
    """Its docstring does not count."""
    nodes = ((file, node) for file in FILES for node in ast.walk(parsed(file)))
    functions = ((f, n) for f, n in nodes if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))
    lines = ((f, n, lines_of(n) - (lines_of(n.body[0]) if ast.get_docstring(n) else 0)) for f, n in functions)
    assert [f"{place(f, n.lineno)} {n.name}: {size} lines" for f, n, size in lines if size > MAX_FUNCTION_LINES] == []


def test_no_file_is_long():
    sizes = ((file, len(file.read_text(encoding="utf-8").splitlines())) for file in FILES)
    assert [f"{place(file, size)}" for file, size in sizes if size > MAX_FILE_LINES] == []


@pytest.mark.parametrize(
    ("source", "circular"),
    [
        ({"a": "import b", "b": "from c import x", "c": "def f():\n    import a"}, True),
        ({"a": "import b", "b": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import a"}, False),
        ({"a": "import b\nimport c", "b": "import c", "c": ""}, False),
        ({"p": "", "p.a": "from p import b", "p.b": "from p.a import x"}, True),
    ],
)
def test_circles_are_found(source, circular):
    graph = {name: imports(ast.parse(text), frozenset(source)) for name, text in source.items()}
    assert bool(circles(graph)) is circular
