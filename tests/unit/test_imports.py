"""Imports read from source: wherever they stand, and relative ones resolved as Python resolves them."""

from __future__ import annotations

import ast
import importlib.util

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerkit.imports import imported_by

NAMES = st.sampled_from(["a", "b", "core", "_private", "utils", "x1"])
DOTTED = st.lists(NAMES, min_size=1, max_size=4).map(".".join)


@pytest.mark.parametrize(
    ("source", "module", "is_package", "expected"),
    [
        ("import os.path", "a", False, {"os", "os.path"}),
        ("import a.b as c, d", "x", False, {"a", "a.b", "d"}),
        ("from a.b import c, d as e", "x", False, {"a", "a.b", "a.b.c", "a.b.d"}),
        ("from a import *", "x", False, {"a"}),
        ("def f():\n    async def g():\n        from a import b", "x", False, {"a", "a.b"}),
        ("class C:\n    def f(self):\n        import a.b", "x", False, {"a", "a.b"}),
        ("try:\n    import a\nexcept ImportError:\n    import b", "x", False, {"a", "b"}),
        ("from . import b", "a.c", False, {"a", "a.b"}),
        ("from . import b", "a", True, {"a", "a.b"}),
        ("from .b import c", "a", True, {"a", "a.b", "a.b.c"}),
        ("from ..b import c", "a.x.y", False, {"a", "a.b", "a.b.c"}),
        ("from ... import c", "a.b.x.y", False, {"a", "a.c"}),
        ("from .. import c", "a", True, set()),
        ("from . import c", "single", False, set()),
        ("from ..... import c", "a.b", False, set()),
        ("if TYPE_CHECKING:\n    import a\nelse:\n    import b", "x", False, {"b"}),
        ("import typing\nif typing.TYPE_CHECKING:\n    import a", "x", False, {"typing"}),
        ("if not TYPE_CHECKING:\n    import a", "x", False, {"a"}),
        ("import a\nprint 'a'", "x", False, set()),
        ("\0", "x", False, set()),
        ("'\\d'; import a", "x", False, {"a"}),
    ],
)
def test_what_is_imported(source: str, module: str, is_package: bool, expected: set[str]) -> None:
    assert imported_by(source.encode(), module, is_package) == expected


def test_a_source_in_another_encoding() -> None:
    source = "# coding: latin-1\nX = 'é'\nimport a\n".encode("latin-1")
    assert imported_by(source, "x", is_package=False) == {"a"}


@given(module=DOTTED, is_package=st.booleans(), level=st.integers(1, 5), name=st.none() | DOTTED, what=NAMES)
def test_relative_imports_are_resolved_as_python_does(
    module: str, is_package: bool, level: int, name: str | None, what: str
) -> None:
    found = imported_by(f"from {'.' * level}{name or ''} import {what}".encode(), module, is_package)
    package = module if is_package else module.rpartition(".")[0]
    try:
        expected = importlib.util.resolve_name("." * level + (name or ""), package)
    except ImportError:
        assert found == set()
    else:
        assert {expected, f"{expected}.{what}"} <= found
        assert all(f"{expected}.{what}".startswith(one) for one in found)


@given(source=st.text() | st.binary().map(lambda content: content.decode("latin-1")), module=DOTTED)
def test_no_source_is_too_odd(source: str, module: str) -> None:
    found = imported_by(source.encode(errors="surrogatepass"), module, is_package=False)
    assert all(isinstance(name, str) for name in found)


@given(names=st.lists(DOTTED, max_size=5), depth=st.integers(0, 5))
def test_however_deep_it_stands(names: list[str], depth: int) -> None:
    head = "".join(f"{'  ' * level}def f():\n" for level in range(depth))
    body = "".join(f"{'  ' * depth}import {name}\n" for name in names) + f"{'  ' * depth}pass\n"
    ast.parse(head + body)
    assert set(names) <= imported_by((head + body).encode(), "x", is_package=False)
