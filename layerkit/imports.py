"""What a module's source imports, read without running it: the imports in functions are among them."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator


def imported_by(source: bytes, module: str, is_package: bool) -> frozenset[str]:
    """The modules that import statements in ``source`` may ask for, by dotted name, with the packages they are in.

    ``module`` is its own dotted name, from which relative imports are resolved; one that leads out of its top-level
    package names nothing. ``from a import b`` gives ``a`` and ``a.b``, since only running it would tell whether ``b``
    is a module. Left out is what only type checkers read (``if TYPE_CHECKING``). Nothing for what is no Python.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes and literals, which are for its authors
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return frozenset()
    package = module.split(".") if is_package else module.split(".")[:-1]
    found: set[str] = set()
    for node in _run(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                found |= _with_packages(alias.name)
        elif isinstance(node, ast.ImportFrom):
            base = _base(node, package)
            if base:
                found |= _with_packages(base)
                found |= {f"{base}.{alias.name}" for alias in node.names if alias.name != "*"}
    return frozenset(found)


def _run(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a tree that may be run."""
    pending = [tree]
    while pending:
        node = pending.pop()
        yield node
        if isinstance(node, ast.If) and _for_type_checkers(node.test):
            pending += node.orelse
        else:
            pending += ast.iter_child_nodes(node)


def _for_type_checkers(test: ast.expr) -> bool:
    name = test.attr if isinstance(test, ast.Attribute) else test.id if isinstance(test, ast.Name) else ""
    return name == "TYPE_CHECKING"


def _base(node: ast.ImportFrom, package: list[str]) -> str:
    """What ``from`` names, as a dotted name: ``from ..x import y`` in ``a.b.c`` -> ``a.x``; empty for none."""
    if not node.level:
        return node.module or ""
    above = package[: len(package) - node.level + 1]
    if not above or node.level > len(package):
        return ""
    return ".".join([*above, *([node.module] if node.module else [])])


def _with_packages(module: str) -> set[str]:
    """``a.b.c`` -> ``a``, ``a.b``, ``a.b.c``."""
    parts = module.split(".")
    return {".".join(parts[: number + 1]) for number in range(len(parts))}
