"""Layers that carry the same distribution: it is the same in all of them, whoever decided what, in whatever order."""

from __future__ import annotations

import hashlib
import itertools
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerkit.building import Action, Built
from layerkit.model import RUNTIME_BOTO3, kept_by
from layerkit.sharing import Agreed, Own, agree, disagreement, recorded
from layerkit.standing import State, standings
from tests.support.checkouts import HERE, Checkout
from tests.support.index import Index
from tests.support.wheels import make_wheel

THING: dict[str, str | bytes] = {
    "thing/__init__.py": "",
    "thing/plots/__init__.py": "X = 1\n",
    "thing/plots/lines.py": "",
    "thing/tests/__init__.py": "",
    "thing/tests/helpers.py": "def help_me(): pass\n",
    "thing/tests/test_it.py": "",
    "thing/README.md": "Thing",
}
HELPERS = {"thing/tests/__init__.py", "thing/tests/helpers.py"}
NO_PLOTS = '[remove]\nslim = ["thing.plots"]\n'


@pytest.fixture
def wheels(index: Index) -> None:
    """``thing``; ``user``, which imports of its tests; ``other``, which has nothing to do with it."""
    make_wheel(index.folder, "thing", "1.0", files=THING)
    user = {"user.py": "from thing.tests.helpers import help_me\n"}
    make_wheel(index.folder, "user", "1.0", requires=["thing"], files=user)
    make_wheel(index.folder, "other", "1.0", files={"other/__init__.py": "", "other/tests/__init__.py": ""})


def build(checkout: Checkout, *names: str, force: bool = False) -> dict[str, Built]:
    return checkout.build(names, target=HERE, optimizer=checkout.optimizer(), force=force)


def tree(checkout: Checkout, name: str) -> Path:
    return checkout.project.tree_path(name, HERE)


def things(checkout: Checkout, name: str) -> dict[str, bytes]:
    """The files of ``thing`` in a layer with their contents, bytecode aside."""
    folder = tree(checkout, name)
    found = {path.relative_to(folder).as_posix(): path for path in folder.glob("thing/**/*") if path.is_file()}
    return {path: file.read_bytes() for path, file in sorted(found.items()) if "__pycache__" not in path}


def zips(checkout: Checkout) -> dict[str, str]:
    found = sorted((checkout.root / "dist").glob("*.zip"))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def agreed(checkout: Checkout, name: str) -> Agreed:
    optimized = build(checkout, name)[name].manifest.optimized
    assert optimized is not None
    return recorded(optimized)


def settled(checkout: Checkout) -> None:
    """Nothing is left to do, and status and validation say so."""
    before = zips(checkout)
    assert {one.plan.action for one in build(checkout).values()} == {Action.NOTHING}
    assert zips(checkout) == before
    stand = standings(checkout.project, {}, HERE, checkout.optimizer())
    assert {(one.name, one.state, one.reason) for one in stand} == {
        (one.name, State.NOT_VALIDATED, "inv validate") for one in stand
    }
    report = checkout.validate(only=frozenset({"build", "files", "versions", "tree", "zip"}))
    assert report.findings == ()


def two(checkout: Checkout, a: str = "", b: str = "", needs_b: str = "thing\n") -> None:
    checkout.layer("a", "thing\n", a)
    checkout.layer("b", needs_b, b)
    checkout.lock(HERE)


def test_what_one_layer_needs_stays_in_both(checkout: Checkout, wheels: None) -> None:
    two(checkout, needs_b="user\n")
    built = build(checkout)
    assert things(checkout, "a") == things(checkout, "b")
    assert set(things(checkout, "a")) == {
        *HELPERS,
        "thing/__init__.py",
        "thing/plots/__init__.py",
        "thing/plots/lines.py",
    }
    optimized = built["a"].manifest.optimized
    assert optimized is not None
    (rule,) = [rule for rule in optimized.rules if rule.rule == "tests"]
    assert (rule.outcome, rule.files, rule.restored) == ("narrowed", 1, dict.fromkeys(HELPERS, kept_by("b")))
    assert agreed(checkout, "b") == Agreed()
    settled(checkout)
    target = ("--runtime", HERE.runtime, "--architecture", HERE.architecture)
    explained = checkout.inv("optimize", "--explain", "thing/tests/helpers.py", *target).stdout
    why = "it stays, though the rule tests proposes it"
    assert f"a: thing/tests/helpers.py: {why}: the layer b, which carries it too, keeps it" in explained
    assert f"b: thing/tests/helpers.py: {why}: import user needs it" in explained
    shown = checkout.inv("optimize", "--dry-run", "--verbose", *target).stdout
    assert "a: thing/tests/helpers.py stays: the layer b, which carries it too, keeps it" in shown


def test_a_rule_that_one_layer_has_takes_nothing_that_both_carry(checkout: Checkout, wheels: None) -> None:
    two(checkout, a=NO_PLOTS)
    build(checkout)
    assert things(checkout, "a") == things(checkout, "b")
    assert things(checkout, "a")["thing/plots/__init__.py"] == b"X = 1\n"
    assert set(agreed(checkout, "a").files) == {"thing/plots/__init__.py", "thing/plots/lines.py"}
    settled(checkout)


def test_what_one_layer_keeps_is_kept_in_both(checkout: Checkout, wheels: None) -> None:
    two(checkout, b='keep = ["thing/README.md"]\n')
    build(checkout)
    assert things(checkout, "a") == things(checkout, "b")
    assert things(checkout, "a")["thing/README.md"] == b"Thing"
    settled(checkout)


def test_a_stub_is_the_same_in_both(checkout: Checkout, wheels: None) -> None:
    two(checkout, a=NO_PLOTS, b=NO_PLOTS.replace("slim", "lean"))
    build(checkout)
    assert things(checkout, "a") == things(checkout, "b")
    assert agreed(checkout, "a").stubs == {"thing/plots/__init__.py": {"a": "slim", "b": "lean"}}
    code = f"import sys; sys.path.insert(0, {str(tree(checkout, 'b'))!r})\nimport thing.plots"
    done = subprocess.run([sys.executable, "-ISBc", code], capture_output=True, text=True, check=False)
    assert "the rules 'lean' and 'slim' left it out of the layers 'a' and 'b'" in done.stderr
    assert 'add to layers/a/layer.toml or layers/b/layer.toml: keep = ["thing/plots"]' in done.stderr
    settled(checkout)


def test_a_stub_stands_for_what_is_left_to_stand_for(checkout: Checkout, wheels: None) -> None:
    two(checkout, a=NO_PLOTS, b='[remove]\nslim = ["thing.plots.lines"]\n')
    build(checkout)
    assert things(checkout, "a") == things(checkout, "b")
    assert things(checkout, "a")["thing/plots/__init__.py"] == b"X = 1\n"
    assert b"layers/a/layer.toml or layers/b/layer.toml" in things(checkout, "a")["thing/plots/lines.py"]
    settled(checkout)


def test_a_rule_of_the_only_layer_with_it_is_that_layers_alone(checkout: Checkout, wheels: None) -> None:
    checkout.layer("a", "thing\n", NO_PLOTS)
    checkout.layer("b", "other\n")
    checkout.lock(HERE)
    built = build(checkout)
    for one in built.values():
        assert one.manifest.inputs == one.plan.inputs
    assert b"add to layers/a/layer.toml: keep" in things(checkout, "a")["thing/plots/__init__.py"]
    assert agreed(checkout, "a").identity("own") == "own"
    settled(checkout)


def test_layers_of_two_stacks_never_meet(checkout: Checkout, wheels: None) -> None:
    two(checkout, a=NO_PLOTS, b='stack = "jobs"\n')
    build(checkout)
    assert "thing/plots/lines.py" not in things(checkout, "a")
    assert agreed(checkout, "a").files == {}


# ---- one at a time ----

LAYERS = {
    "a": ("thing\n", NO_PLOTS),
    "b": ("user\n", NO_PLOTS),
    "c": ("thing\nother\n", 'keep = ["thing/README.md"]\n' + NO_PLOTS),
}


def three(checkout: Checkout) -> None:
    for name, (requirements, settings) in LAYERS.items():
        checkout.layer(name, requirements, settings)
    checkout.lock(HERE)


def test_the_same_zips_in_any_order(
    make_checkout: Callable[[str], Checkout], wheels: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make_checkout("all at once")
    three(first)
    build(first)
    expected = zips(first)
    assert len(expected) == 3
    assert things(first, "a") == things(first, "b") == things(first, "c")
    assert {*HELPERS, "thing/README.md"} < things(first, "a").keys()
    settled(first)
    for order in itertools.permutations(LAYERS):
        one = make_checkout("".join(order))
        monkeypatch.setenv("LAYERKIT_CACHE_DIR", str(one.root / "cache"))
        three(one)
        for name in order:
            build(one, name)
        assert zips(one) == expected
        settled(one)


def test_a_layer_in_place_is_built_again_with_the_one_that_needs_more(checkout: Checkout, wheels: None) -> None:
    two(checkout, needs_b="user\n")
    build(checkout, "a")
    assert not HELPERS & things(checkout, "a").keys()
    built = build(checkout, "b")
    assert {name: (one.plan.action, one.plan.reason) for name, one in built.items()} == {
        "a": (Action.BUILD, "it has to agree with b again on what both carry"),
        "b": (Action.BUILD, "not built yet"),
    }
    assert built["a"].manifest.inputs != built["a"].plan.inputs
    settled(checkout)


def test_a_layer_in_place_that_agrees_is_left_alone(checkout: Checkout, wheels: None) -> None:
    two(checkout, needs_b="user\n")
    build(checkout, "b")
    assert list(build(checkout, "a")) == ["a"]
    assert things(checkout, "a").keys() >= HELPERS
    (checkout.root / "layers" / "a" / "layer.toml").write_text("bytecode_budget_mb = 9\n")
    assert list(build(checkout, "a")) == ["a"]
    settled(checkout)


def test_a_need_that_ends_lets_both_drop_the_file(checkout: Checkout, wheels: None) -> None:
    two(checkout, b='keep = ["thing/README.md"]\n')
    build(checkout)
    settled(checkout)
    (checkout.root / "layers" / "b" / "layer.toml").unlink()
    stand = {one.name: one.state for one in standings(checkout.project, {}, HERE, checkout.optimizer())}
    assert stand == {"a": State.NOT_VALIDATED, "b": State.OUTDATED}
    assert build(checkout)["a"].plan.action is Action.BUILD
    assert "thing/README.md" not in things(checkout, "a")
    assert things(checkout, "a") == things(checkout, "b")
    settled(checkout)


@pytest.mark.parametrize("how", ["other requirements", "the layer is removed"])
def test_a_need_of_a_layer_that_no_longer_carries_it(checkout: Checkout, wheels: None, how: str) -> None:
    two(checkout, needs_b="user\n")
    build(checkout)
    if how == "other requirements":
        checkout.layer("b", "other\n")
    else:
        shutil.rmtree(checkout.root / "layers" / "b")
    checkout.lock(HERE)
    assert build(checkout)["a"].plan.action is Action.BUILD
    assert not HELPERS & things(checkout, "a").keys()
    settled(checkout)


def test_a_mate_that_is_not_current_has_no_say_until_it_is_built(checkout: Checkout, wheels: None) -> None:
    two(checkout, needs_b="user\n")
    build(checkout)
    checkout.layer("b", "user\n", code={"ours.py": ""})
    assert {one.plan.action for one in build(checkout, "a").values()} == {Action.NOTHING}
    assert list(build(checkout, "a", force=True)) == ["a"]
    assert not HELPERS & things(checkout, "a").keys()
    build(checkout)
    assert things(checkout, "a").keys() >= HELPERS
    settled(checkout)


def test_what_lies_apart_in_place_is_built_again(
    checkout: Checkout, make_checkout: Callable[[str], Checkout], wheels: None
) -> None:
    """As after a copy of one layer's build from a checkout that had it alone."""
    two(checkout, needs_b="user\n")
    alone = make_checkout("alone")
    two(alone, needs_b="user\n")
    build(alone, "a")
    build(checkout)
    for folder in ("dist", "layers", ".layerkit"):
        shutil.copytree(alone.root / folder, checkout.root / folder, dirs_exist_ok=True)
    shutil.rmtree(tree(checkout, "a"))
    shutil.copytree(tree(alone, "a"), tree(checkout, "a"))
    stand = {one.name: one.reason for one in standings(checkout.project, {}, HERE, checkout.optimizer())}
    assert stand["a"] == "it has to agree with b again on what both carry"
    (finding,) = checkout.validate(only=frozenset({"build"})).findings
    assert stand["a"] in finding.message
    built = build(checkout, "a")
    assert (built["a"].plan.action, built["a"].plan.reason) == (Action.BUILD, stand["a"])
    settled(checkout)


def test_a_build_as_the_wheels_have_it_takes_no_part(checkout: Checkout, wheels: None) -> None:
    two(checkout, needs_b="user\n")
    build(checkout, "a")
    checkout.build(["b"], target=HERE)
    stand = {one.name: one.state for one in standings(checkout.project, {}, HERE, checkout.optimizer())}
    assert stand == {"a": State.NOT_VALIDATED, "b": State.NOT_VALIDATED}
    build(checkout)
    assert things(checkout, "a") == things(checkout, "b")
    settled(checkout)


# ---- layers above and below ----


def test_layers_above_have_the_identities_of_what_was_agreed(checkout: Checkout, wheels: None) -> None:
    two(checkout, needs_b="user\n")
    checkout.layer("top", "thing\nother\n", 'depends_on = ["a"]\n')
    checkout.lock(HERE)
    build(checkout, "top")
    built = build(checkout)
    assert built["top"].plan.action is Action.RELABEL
    assert built["top"].manifest.depends_on == {"a": built["a"].manifest.inputs}
    assert "thing" not in {path.name for path in tree(checkout, "top").iterdir()}
    settled(checkout)


def test_a_mate_joins_with_what_it_depends_on(checkout: Checkout, wheels: None) -> None:
    checkout.layer("core", "other\n")
    checkout.layer("a", "thing\n", 'depends_on = ["core"]\n')
    checkout.layer("b", "user\n")
    checkout.lock(HERE)
    build(checkout, "a")
    means = checkout.means(skip=frozenset({"imports"}))
    optimizer = checkout.optimizer()
    built = checkout.build(["b"], target=HERE, optimizer=optimizer, means=means)
    assert {name: one.plan.action for name, one in built.items()} == {
        "core": Action.NOTHING,
        "a": Action.BUILD,
        "b": Action.BUILD,
    }
    (checkout.root / "layers" / "core" / "layer.toml").write_text("bytecode_budget_mb = 9\n")
    (checkout.root / "layers" / "b" / "layer.toml").write_text('keep = ["thing/README.md"]\n')
    assert list(build(checkout, "b")) == ["b"]  # a would have to be built on a layer that is not current
    build(checkout)
    assert "thing/README.md" in things(checkout, "a")
    settled(checkout)


def test_a_distribution_that_is_left_to_the_runtime_is_not_carried(checkout: Checkout, index: Index) -> None:
    for name in RUNTIME_BOTO3:
        make_wheel(index.folder, name, "1.0", files={f"{name}/__init__.py": "", f"{name}/tests/__init__.py": ""})
    checkout.layer("a", "\n".join(RUNTIME_BOTO3), 'rules = ["runtime-boto3"]\n')
    checkout.layer("b", "urllib3\n", 'keep = ["urllib3/tests"]\n')
    checkout.lock(HERE)
    build(checkout)
    assert not (tree(checkout, "a") / "urllib3").exists()
    assert (tree(checkout, "b") / "urllib3" / "tests" / "__init__.py").exists()
    settled(checkout)


# ---- debug symbols ----


def compiled(folder: Path) -> bytes:
    """An extension module with debug symbols; skips where this machine can't make one."""
    if not (shutil.which("cc") and shutil.which("strip")):
        pytest.skip("not run: there is no C compiler, or no strip")
    (folder / "_fast.c").write_text("int spare(int x) { return x + 1; }\nvoid *PyInit__fast(void) { return 0; }\n")
    command = ["cc", "-g", "-shared", "-fPIC", "-nostdlib", "-o", "_fast.so", "_fast.c"]
    subprocess.run(command, cwd=folder, check=True)
    return (folder / "_fast.so").read_bytes()


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_debug_symbols_stay_in_both_where_one_keeps_them(
    checkout: Checkout, index: Index, tmp_path: Path, order: Sequence[str]
) -> None:
    files = {**THING, "thing/_fast.so": compiled(tmp_path), "thing/tests/_slow.so": compiled(tmp_path)}
    tag = f"py3-none-linux_{HERE.architecture}"
    make_wheel(index.folder, "thing", "1.0", files=files, tag=tag)
    two(checkout, b='skip_rules = ["debug-symbols"]\nkeep = ["thing/tests/_slow.so"]\n')
    for name in order:
        build(checkout, name)
    assert things(checkout, "a") == things(checkout, "b")
    assert things(checkout, "a")["thing/_fast.so"] == files["thing/_fast.so"]
    assert things(checkout, "a")["thing/tests/_slow.so"] == files["thing/tests/_slow.so"]
    assert set(agreed(checkout, "a").symbols) == {"thing/_fast.so", "thing/tests/_slow.so"}
    settled(checkout)
    (checkout.root / "layers" / "b" / "layer.toml").write_text('keep = ["thing/tests/_slow.so"]\n')
    build(checkout)
    assert things(checkout, "a") == things(checkout, "b")
    assert len(things(checkout, "a")["thing/_fast.so"]) < len(files["thing/_fast.so"])
    assert len(things(checkout, "a")["thing/tests/_slow.so"]) < len(files["thing/tests/_slow.so"])
    settled(checkout)


# ---- the agreement, as values ----

PATHS = ("d/a.py", "d/b.so", "d/c/x.so", "d.libs/l.so")
OWNS = st.dictionaries(
    st.sampled_from("abcd"),
    st.builds(
        lambda stays, strips, unstripped: Own(stays, lambda files: {}, strips, unstripped),
        st.dictionaries(st.sampled_from(["d 1", "e 1"]), st.frozensets(st.sampled_from(PATHS)), max_size=2),
        st.booleans(),
        st.frozensets(st.sampled_from(PATHS[1:3])),
    ),
)


@given(owns=OWNS)
def test_whoever_carries_it_has_the_same_of_it(owns: Mapping[str, Own]) -> None:
    found = agree(owns)
    for distribution in ("d 1", "e 1"):
        carriers = [name for name in owns if distribution in owns[name].stays]
        everything = {path for name in carriers for path in owns[name].stays[distribution]}
        for name in carriers:
            assert everything <= owns[name].stays[distribution] | found[name].files.keys()
            for path in everything & {"d/b.so", "d/c/x.so"}:
                stays = owns[name].keeps_symbols(path) or path in found[name].symbols
                assert stays >= any(owns[other].keeps_symbols(path) for other in carriers)
    for name, one in found.items():
        assert name not in {*one.files.values(), *one.symbols.values()}
        assert all(
            path in owns[other].stays.get("d 1", ()) or path in owns[other].stays.get("e 1", ())
            for path, other in one.files.items()
        )
        assert "d.libs/l.so" not in one.symbols


@given(owns=OWNS)
def test_who_has_agreed_agrees_again(owns: Mapping[str, Own]) -> None:
    found = agree(owns)
    assert agree(dict(reversed(list(owns.items())))) == found
    assert {disagreement(name, found[name], found[name], ()) for name in owns} <= {""}
    for name in owns:
        silent = set(owns) - {name}
        assert disagreement(name, found[name], agree({name: owns[name]})[name], silent) == ""
        assert (disagreement(name, found[name], Agreed(), ()) == "") == (found[name] == Agreed())
