"""Rules propose by path, and look at nothing that only looks like what they are for."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerkit.errors import ConfigurationError
from layerkit.model import SYMBOLS, Optimization, Optimized, RuleResult, is_stub
from layerkit.rules import BUILT_IN, check_modules, explain, kept, never, propose, rule_names, rules_for, unused


def proposed(folder: Path, paths: Iterable[str], keep: Sequence[str] = ()) -> dict[str, set[str]]:
    """What each rule that is on by default would take of files that are all empty."""
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).touch()
    found = propose(rules_for(Optimization()), sorted(paths), folder, keep)
    return {rule: set(taken) for rule, taken in found.items() if taken}


def test_type_stubs_go_where_the_module_they_describe_is(tmp_path: Path) -> None:
    going = {"pkg/x.pyi", "pkg/__init__.pyi", "pkg/fast.pyi", "pkg/sub.pyi", "pkg/py.typed", "top.pyi"}
    staying = {"pkg/typeshed/os.pyi", "pkg/typeshed/__init__.pyi", "pkg/empty.pyi", "only-stubs/__init__.pyi"}
    modules = {"pkg/__init__.py", "pkg/x.py", "pkg/fast.abi3.so", "pkg/sub/__init__.py", "pkg/empty/data.csv", "top.py"}
    assert proposed(tmp_path, going | staying | modules) == {"type-stubs": going}


def test_a_stub_whose_module_is_kept_is_still_one(tmp_path: Path) -> None:
    assert proposed(tmp_path, ["pkg/x.py", "pkg/x.pyi"], keep=["pkg/x.py"]) == {"type-stubs": {"pkg/x.pyi"}}


def test_documents_go_by_name_and_texts_elsewhere_stay(tmp_path: Path) -> None:
    going = {
        *("pkg/README.md", "pkg/readme.rst", "CHANGES.rst", "pkg/CHANGELOG-1.md", "HISTORY.md", "NEWS.rst", "TODO.md"),
        *("CONTRIBUTING.md", "AUTHORS.rst", "CREDITS.md", "INSTALL.rst", "SECURITY.md", "CODE_OF_CONDUCT.md"),
        *("RELEASES.md", "RELEASE_NOTES.md", "pkg/docs/usage.md", "pkg/examples/one.rst", "pkg/doc/x.html"),
    }
    staying = {"pkg/prompt.md", "pkg/newsletter.md", "pkg/template.rst", "pkg/README.txt", "pkg/docs/mod.py"}
    assert proposed(tmp_path, going | staying) == {"documentation": going}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("pkg/tests/LICENSE", True),
        ("pkg/docs/LICENCE.md", True),
        ("pkg/examples/COPYING.LESSER", True),
        ("pkg/docs/NOTICE.txt", True),
        ("pkg/docs/license-mit.rst", True),
        ("pkg/tests/cacert.pem", True),
        ("pkg-1.0.dist-info/docs/x.md", True),
        ("pkg/tests/license.py", False),
        ("pkg/tests/noticeboard.txt", False),
        ("pkg/docs/licensing.md", False),
    ],
)
def test_what_no_rule_may_take(tmp_path: Path, path: str, expected: bool) -> None:
    assert never(path) is expected
    assert bool(proposed(tmp_path, [path])) is not expected


@pytest.mark.parametrize(
    ("path", "safe"),
    [
        *((f"pkg/x{ending}", True) for ending in (".a", ".lib", ".pxd", ".pyx", ".pxi", ".cmake", ".pc", ".exe")),
        *(("pkg/meson.build", True), ("pkg/CMakeLists.txt", True)),
        *((f"pkg/x{ending}", False) for ending in (".h", ".hpp", ".c", ".cpp", ".f90", ".pyi")),
        *(("pkg/tests/x.txt", False), ("README.md", False)),
    ],
)
def test_what_needs_no_proof(path: str, safe: bool) -> None:
    by_path = [rule for rule in BUILT_IN if rule.name != "private-keys"]
    taking = [rule for rule in by_path if rule.unproven and rule.unproven(path) and path in rule.finds([path], Path())]
    assert bool(taking) is safe


def test_patterns_that_cover_nothing() -> None:
    paths = ["pkg/a.py", "pkg/tests/x.txt"]
    assert unused(["pkg/tests", "pkg/*.py", "nowhere", "pkg/tests/y.txt"], paths) == ["nowhere", "pkg/tests/y.txt"]


@given(path=st.lists(st.text("ab.", min_size=1), min_size=1, max_size=4).map("/".join))
def test_a_path_is_kept_by_itself_and_by_its_folders(path: str) -> None:
    parts = path.split("/")
    assert all(kept(path, ["/".join(parts[: number + 1])]) for number in range(len(parts)))
    assert unused([path], [path]) == []


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (Optimization(rules=("nonsense",)), "there is no rule called 'nonsense'"),
        (Optimization(skip_rules=("nonsense",)), "there is no rule called 'nonsense'"),
        (Optimization(rules=("services",)), "the rule 'services' needs a list"),
        (Optimization(rules=("only",)), "the rule 'only' needs a list"),
        (Optimization(rules=("numpy",), skip_rules=("numpy",)), "both on and skipped"),
    ],
)
def test_options_that_contradict_or_do_nothing(options: Optimization, what: str) -> None:
    with pytest.raises(ConfigurationError, match=what):
        rules_for(options)


def test_options_that_say_what_is_so_already() -> None:
    options = Optimization(rules=("services", "tests", SYMBOLS, "slim"), services=("s3",), removes={"slim": ("a",)})
    assert {"services", "tests", "slim"} <= {rule.name for rule in rules_for(options)}
    assert set(options.rules) <= set(rule_names(options))
    assert "services" not in {rule.name for rule in rules_for(Optimization(skip_rules=("services", "only")))}


def test_modules_that_the_layer_does_not_have() -> None:
    paths = ["a/b/__init__.py", "space/inside/c.py", "fast.abi3.so", "a/data/x.csv"]
    removes = {"slim": ("a.b", "space", "fast")}
    check_modules(Optimization(removes=removes, only=("a", "space.inside.c")), paths)
    for name in ("a.b.c", "a.data", "spac"):
        with pytest.raises(ConfigurationError, match=rf"remove\.slim: the layer has no module '{name}'"):
            check_modules(Optimization(removes={"slim": (name,)}), paths)
        check_modules(Optimization(removes={"slim": (name,)}, skip_rules=("slim",)), paths)


def test_debug_symbols_are_explained_beside_the_file() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name in ("taken.so", "left.so"):
            Path(folder, name).touch()
        symbols = RuleResult(SYMBOLS, "narrowed", 1, 7, {"left.so": "left"}, removed=("taken.so",))
        done = Optimized(rules=(symbols,))
        assert explain("taken.so", Path(folder), (), done) == (
            "it is there: no rule of the build proposes it; its debug symbols went"
        )
        assert explain("left.so", Path(folder), (), done).endswith("; its debug symbols stay: import left needs it")


def test_a_stub_is_told_by_its_place() -> None:
    stubs = {"extra/__init__.py": {"web": "slim"}, "space/single.py": {"web": "slim"}}
    assert [is_stub(name, stubs) for name in ("extra", "space.single")] == [True, True]
    assert [is_stub(name, stubs) for name in ("extras", "space", "single")] == [False, False, False]
