"""What distributions say of themselves: needs in the target's eyes, and the modules that they bring."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.markers import default_environment

from layerkit.metadata import (
    Described,
    Unmet,
    applies,
    described,
    marker_environment,
    module_name,
    provider_of,
    required_name,
    top_level_modules,
    unmet,
)
from layerkit.model import Requirement, Target
from layerkit.trees import installed
from tests.support.checkouts import HERE

TARGET = Target("python3.13", "x86_64")
ARM = Target("python3.9", "arm64")


def install(tree: Path, name: str, *files: str, metadata: str | None = None, record: bool = True) -> None:
    """A distribution, version 1.0, with empty ``files``."""
    info = tree / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Name: {name}\nVersion: 1.0\n" if metadata is None else metadata)
    put(tree, *files)
    if record:
        (info / "RECORD").write_text("".join(f"{path},,\n" for path in [*files, f"{info.name}/RECORD"]))


def put(tree: Path, *files: str) -> None:
    for path in files:
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_text("")


def needing(**requires: Sequence[str]) -> dict[str, Described]:
    """Distributions by name, all of version 1.0, and what each requires."""
    return {name: Described(name, "1.0", tuple(lines)) for name, lines in requires.items()}


def requirement(text: str) -> Requirement:
    return Requirement(required_name(text), text, "layers/web/requirements.txt:1")


def missing(found: Mapping[str, Described], *roots: str, target: Target = TARGET) -> list[tuple[str, str, str]]:
    """Who misses what, and the version that is there instead."""
    entries = unmet([requirement(text) for text in roots], found, target, "layers/web")
    return [(entry.by, entry.requirement, entry.found) for entry in entries]


# ---- markers ----


@pytest.mark.skipif(sys.platform != "linux", reason="not run: the values compared are Linux's")
def test_the_environment_of_the_target_that_this_is_agrees_with_this_python() -> None:
    """But for what only a running machine has, and the last part of the version."""
    unknown = {"platform_release", "platform_version", "python_full_version", "implementation_version"}
    own = {name: value for name, value in marker_environment(HERE).items() if name not in unknown | {"extra"}}
    assert own == {name: value for name, value in default_environment().items() if name not in unknown}
    assert marker_environment(HERE).keys() == {*default_environment(), "extra"}


@pytest.mark.parametrize(
    ("marker", "expected"),
    [
        ("python_version >= '3.10'", (True, False)),
        ("python_full_version < '3.10'", (False, True)),
        ("python_version < '3.2'", (False, False)),
        ("sys_platform == 'linux' and os_name == 'posix'", (True, True)),
        ("sys_platform == 'win32'", (False, False)),
        ("platform_machine == 'aarch64'", (False, True)),
        ("platform_machine == 'x86_64'", (True, False)),
        ("platform_machine == 'arm64'", (False, False)),  # Lambda's name for it, not Linux's
        ("implementation_name == 'cpython' and platform_python_implementation == 'CPython'", (True, True)),
        ("platform_system == 'Linux' and implementation_version >= '3.13'", (True, False)),
        ("extra == 'socks'", (False, False)),
        ("platform_release >= '5'", (False, False)),
    ],
)
def test_markers_are_evaluated_for_the_target(marker: str, expected: tuple[bool, bool]) -> None:
    text = requirement(f"thing; {marker}")
    assert (applies(text, TARGET), applies(text, ARM)) == expected
    lacks = [bool(missing(needing(top=[text.text]), target=target)) for target in (TARGET, ARM)]
    assert tuple(lacks) == expected


def test_a_requirement_without_a_marker_applies() -> None:
    assert applies(requirement("thing>=1"), TARGET)


@pytest.mark.parametrize("marker", ["os_name ~= 'posix'", "python_version ~= '3'", "'x' in extras"])
def test_a_marker_that_compares_what_can_not_be_compared_is_no_crash(marker: str) -> None:
    """uv goes on past one, so a wheel may have it; its requirement is looked for then."""
    assert applies(requirement(f"thing; {marker}"), TARGET)
    assert missing(needing(top=[f"thing; {marker}"], thing=[])) == []
    assert [by for by, _, _ in missing(needing(top=[f"thing; {marker}"]))] == ["top"]


# ---- what is required and not there ----


def test_whoever_asks_and_the_version_that_is_there_are_named() -> None:
    found = needing(one=["two>=2", "three"], two=[])
    assert missing(found, "one", "four==4") == [
        ("layers/web", "four==4", ""),
        ("one", "three", ""),
        ("one", "two>=2", "1.0"),
    ]


def test_names_are_compared_as_pypi_does() -> None:
    assert (
        missing({"zope-interface": Described("zope-interface", "1.0", ())}, "Zope.Interface>=1", "zope_interface") == []
    )


@pytest.mark.parametrize(
    ("version", "specifier", "satisfied"),
    [
        ("1.0", "", True),
        ("1.0", ">=1,<2", True),
        ("1.0", ">1", False),
        ("1.0.post1", "==1.0.*", True),
        ("2.0rc1", ">=2.0", False),
        ("2.1rc1", ">=2.0", True),  # it is there, so somebody has chosen it
        ("1.0+local", "==1.0", True),
        ("not a version", ">=1", False),
        ("not a version", "", True),
    ],
)
def test_the_version_that_is_there_has_to_do(version: str, specifier: str, satisfied: bool) -> None:
    found = {"thing": Described("thing", version, ())}
    assert (missing(found, f"thing{specifier}") == []) is satisfied


def test_an_extra_counts_where_it_is_asked_for() -> None:
    found = needing(thing=["helper; extra == 'more'", "nowhere; extra == 'other'"])
    assert missing(found, "thing") == []
    assert missing(found, "thing[more]") == [("thing", 'helper; extra == "more"', "")]
    assert missing({**found, **needing(helper=[])}, "thing[more]") == []


def test_an_extra_may_ask_for_another() -> None:
    found = needing(thing=["thing[b]; extra == 'a'", "deep[x]; extra == 'b'"], deep=["end; extra == 'x'"])
    assert [by for by, _, _ in missing(found, "thing[a]")] == ["deep"]
    assert missing(found, "thing") == []


def test_extras_that_ask_for_each_other_come_to_an_end() -> None:
    found = needing(thing=["thing[b]; extra == 'a'", "thing[a]; extra == 'b'"])
    assert missing(found, "thing[a,b]") == []


def test_extras_are_compared_as_pypi_does() -> None:
    found = needing(thing=["helper; extra == 'More.Things'"])
    assert [by for by, _, _ in missing(found, "thing[more_things]")] == ["thing"]


def test_a_line_that_is_no_requirement_is_said_as_it_is() -> None:
    assert missing(needing(thing=["helper (broken"])) == [("thing", "helper (broken", "")]
    assert required_name("helper (broken") == ""


NAMES = ("a", "b", "c", "d")
EXTRAS = ("x", "y")
NEEDS = st.tuples(
    st.sampled_from(NAMES),
    st.sampled_from(["", ">=2"]),
    st.sets(st.sampled_from(EXTRAS)),
    st.sampled_from(["", *EXTRAS]),
)
STATES = st.dictionaries(
    st.sampled_from(NAMES), st.tuples(st.sampled_from(["1", "2"]), st.lists(NEEDS, max_size=4)), max_size=4
)


def written(need: tuple[str, str, set[str], str]) -> str:
    name, specifier, extras, when = need
    asked = f"[{','.join(sorted(extras))}]" if extras else ""
    return f"{name}{asked}{specifier}" + (f"; extra == '{when}'" if when else "")


@given(state=STATES, roots=st.lists(NEEDS.filter(lambda need: not need[3]), max_size=3))
def test_nothing_is_overlooked_and_nothing_made_up(
    state: dict[str, tuple[str, list[tuple[str, str, set[str], str]]]],
    roots: list[tuple[str, str, set[str], str]],
) -> None:
    def there(name: str, specifier: str) -> bool:
        return name in state and (not specifier or state[name][0] == "2")

    # All that is in sight, by going round until nothing is added.
    active = {(name, "") for name in state}
    while True:
        asked = [*roots, *(need for name, extra in active for need in state[name][1] if need[3] in ("", extra))]
        more = {(name, extra) for name, specifier, extras, _ in asked if there(name, specifier) for extra in extras}
        if more <= active:
            break
        active |= more
    expected = {(name, specifier) for name, specifier, _, _ in asked if not there(name, specifier)}

    found = {name: Described(name, version, tuple(map(written, needs))) for name, (version, needs) in state.items()}
    entries = unmet([requirement(written(need)) for need in roots], found, TARGET, "layers/web")
    said = {(required_name(entry.requirement), ">=2" if ">=2" in entry.requirement else "") for entry in entries}
    assert said == expected
    assert all(entry.found == state.get(required_name(entry.requirement), ("",))[0] for entry in entries)
    assert entries == sorted(entries, key=lambda entry: (entry.by, entry.requirement))


# ---- what METADATA says ----


@pytest.mark.parametrize(
    ("metadata", "problem"),
    [
        ("Name: Thing\nVersion: 1.0\nRequires-Dist: a>=1\nRequires-Dist: b; extra == 'c'\n\nRequires-Dist: no\n", ""),
        ("Name: thing\nVersion: 1.0.0\n", ""),
        ("Name: other\nVersion: 1.0\n", "its METADATA is that of 'other'"),
        ("Name: thing\nVersion: 2.0\n", "its METADATA says version 2.0"),
        ("", "its METADATA is that of None"),
        ("Name: thing\n", "its METADATA says version None"),
        ("\x00\x01", "its METADATA is that of None"),
    ],
)
def test_a_distribution_is_whole_or_it_is_said_why_not(tmp_path: Path, metadata: str, problem: str) -> None:
    install(tmp_path, "thing", "thing.py", metadata=metadata)
    (found,) = installed(tmp_path)
    requires = ("a>=1", "b; extra == 'c'") if "Requires-Dist" in metadata else ()
    assert described(found) == Described("thing", "1.0", requires, problem)


def test_a_distribution_without_its_files_of_metadata(tmp_path: Path) -> None:
    install(tmp_path, "thing", "thing.py")
    install(tmp_path, "unrecorded", "unrecorded.py", record=False)
    (tmp_path / "thing-1.0.dist-info" / "METADATA").unlink()
    problems = [described(found).problem for found in installed(tmp_path)]
    assert problems == ["its dist-info has no METADATA", "its dist-info has no RECORD"]


@given(text=st.binary(max_size=200))
def test_any_metadata_is_read(tmp_path_factory: pytest.TempPathFactory, text: bytes) -> None:
    folder = tmp_path_factory.getbasetemp() / "any"
    (folder / "thing-1.0.dist-info").mkdir(parents=True, exist_ok=True)
    (folder / "thing-1.0.dist-info" / "METADATA").write_bytes(text)
    (found,) = installed(folder)
    assert described(found).problem


# ---- modules ----


def test_packages_and_modules_at_the_top(tmp_path: Path) -> None:
    put(tmp_path, "package/__init__.py", "package/inner.py", "single.py", "own_code.py", "_private.py")
    assert top_level_modules(tmp_path) == ("_private", "own_code", "package", "single")


def test_what_is_right_below_namespace_packages(tmp_path: Path) -> None:
    put(
        tmp_path,
        "google/cloud/storage/__init__.py",
        "google/cloud/storage/blob.py",
        "google/auth/__init__.py",
        "google/version.py",
        "google/py.typed",
    )
    assert top_level_modules(tmp_path) == ("google.auth", "google.cloud.storage", "google.version")


def test_extension_modules_count_by_their_names(tmp_path: Path) -> None:
    put(
        tmp_path,
        "_yaml.cpython-313-x86_64-linux-gnu.so",
        "stable.abi3.so",
        "plain.so",
        "compiled/__init__.cpython-313-x86_64-linux-gnu.so",
        "thing.libs/libz-1a2b.so.1",
        "libz.so.1",
    )
    assert top_level_modules(tmp_path) == ("_yaml", "compiled", "plain", "stable")


def test_what_is_no_module(tmp_path: Path) -> None:
    install(tmp_path, "thing", "bin/tool.py", "__pycache__/thing.cpython-313.pyc", "data/table.csv", "README.md")
    put(tmp_path, "thing.pth", "thing-stubs/__init__.pyi", "typed/__init__.pyi", "my-script.py", "1st.py", "x.pyc")
    assert top_level_modules(tmp_path) == ()


def test_a_file_and_a_folder_of_one_name_are_one_module(tmp_path: Path) -> None:
    put(tmp_path, "thing.py", "thing/__init__.py")
    assert top_level_modules(tmp_path) == ("thing",)


def test_a_link_that_leads_to_where_it_lies_is_no_way_without_end(tmp_path: Path) -> None:
    put(tmp_path, "space/module.py", "package/__init__.py")
    (tmp_path / "space" / "again").symlink_to("..")
    (tmp_path / "alias").symlink_to("package")
    assert top_level_modules(tmp_path) == ("alias", "package", "space.module")


@pytest.mark.parametrize(
    ("file", "module"),
    [
        ("thing.py", "thing"),
        ("thing.cpython-311-aarch64-linux-gnu.so", "thing"),
        ("thing.abi3.so", "thing"),
        ("thing.so", "thing"),
        ("thing.so.1", ""),
        ("thing.pyc", ""),
        ("thing.pyi", ""),
        ("thing.pyd", ""),
        ("libthing-1.so", ""),
        (".py", ""),
        ("two words.py", ""),
        ("größe.py", "größe"),
    ],
)
def test_the_module_that_a_file_stands_for(file: str, module: str) -> None:
    assert module_name(file) == module


FILES = st.builds(
    os.path.join,
    st.sampled_from(["", "a", "a/b", "bin", "c.libs"]),
    st.sampled_from(["__init__.py", "m.py", "m.abi3.so", "x.txt"]),
)


@given(files=st.sets(FILES, max_size=6))
def test_every_module_found_is_provided_by_its_distribution(
    tmp_path_factory: pytest.TempPathFactory, files: set[str]
) -> None:
    tree = tmp_path_factory.mktemp("tree")
    install(tree, "thing", *sorted(files))
    for module in top_level_modules(tree):
        assert provider_of(module, installed(tree)) == "thing"
        assert provider_of(module.partition(".")[0], installed(tree)) == "thing"
        assert provider_of(f"{module}_2", installed(tree)) == ""


def test_the_distribution_that_a_module_is_from(tmp_path: Path) -> None:
    install(tmp_path, "pillow", "PIL/__init__.py", "PIL/_imaging.abi3.so", "pillow.libs/libjpeg.so.1")
    install(tmp_path, "pyyaml", "yaml/__init__.py", "_yaml.cpython-313-x86_64-linux-gnu.so")
    install(tmp_path, "six", "six.py")
    found = installed(tmp_path)
    names = ["PIL", "PIL._imaging", "yaml", "_yaml", "six", "PIL.nothing", "pillow", "si", "s", ""]
    assert [provider_of(name, found) for name in names] == [
        *["pillow", "pillow", "pyyaml", "pyyaml", "six"],
        *["", "", "", "", ""],
    ]


def test_distributions_that_share_a_namespace_are_told_apart(tmp_path: Path) -> None:
    install(tmp_path, "google-auth", "google/auth/__init__.py")
    install(tmp_path, "google-cloud-storage", "google/cloud/storage/__init__.py")
    found = installed(tmp_path)
    assert provider_of("google.cloud", found) == "google-cloud-storage"
    assert provider_of("google.auth", found) == "google-auth"
    assert provider_of("google.api_core", found) == ""


def test_unmet_is_a_value() -> None:
    assert unmet([requirement("six")], {}, TARGET, "layers/web") == [Unmet("layers/web", "six", "")]
