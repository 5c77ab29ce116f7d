"""Lock files: written and read, and when they count as current."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerkit.errors import ConfigurationError
from layerkit.locking import inputs_digest, locked_targets, parse_lock, render_lock, stale
from layerkit.model import Layer, Layers, Lock, Package, Requirement, Target
from layerkit.project import Project, parse_requirement

TARGET = Target("python3.13", "x86_64")
DIGEST = st.from_regex(r"[0-9a-f]{64}", fullmatch=True)
NAME = st.from_regex(r"[a-z]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True).filter(lambda name: "--" not in name)
PACKAGES = st.lists(
    st.builds(
        Package,
        name=NAME,
        version=st.from_regex(r"[0-9]{1,3}(\.[0-9]{1,3}){0,2}(rc1|\.post0|\+cpu)?", fullmatch=True),
        hashes=st.sets(DIGEST, min_size=1, max_size=3).map(lambda found: tuple(sorted(found))),
        sdist=st.booleans(),
    ),
    unique_by=lambda package: package.name,
    max_size=5,
)
LOCKS = st.builds(
    Lock,
    layer=st.from_regex(r"[A-Za-z0-9_-]{1,20}", fullmatch=True),
    target=st.sampled_from([TARGET, Target("python3.9", "arm64")]),
    inputs=DIGEST,
    packages=PACKAGES.map(lambda packages: tuple(sorted(packages))),
    provided=st.dictionaries(NAME, st.from_regex(r"[A-Za-z0-9_-]{1,20}", fullmatch=True), max_size=3),
)


@given(LOCKS)
def test_what_is_written_is_read_back(lock: Lock) -> None:
    assert parse_lock(render_lock(lock), "lock") == lock


@given(LOCKS, st.integers(min_value=0), st.text(min_size=1, max_size=5))
def test_a_damaged_lock_is_our_error_or_another_lock(lock: Lock, at: int, junk: str) -> None:
    text = render_lock(lock)
    at %= len(text)
    damaged = text[:at] + junk + text[at:]
    try:
        parsed = parse_lock(damaged, "lock")
    except ConfigurationError as error:
        assert error.message.startswith("lock:")
    else:
        assert isinstance(parsed, Lock)


def test_a_lock_without_hashes_is_refused() -> None:
    text = render_lock(Lock("a", TARGET, "0" * 64, ())) + "six==1.17.0\n"
    with pytest.raises(ConfigurationError, match=r"lock:\d+: not a line that `inv lock` writes"):
        parse_lock(text, "lock")


def test_a_truncated_lock_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="are missing"):
        parse_lock("", "lock")


def requirement(text: str) -> Requirement:
    return Requirement(text.split("=")[0], text, "requirements.txt:1")


def test_the_digest_sees_everything_that_bears_on_the_lock() -> None:
    base = Layer("a", requirements=(requirement("six"), requirement("numpy")))
    same = Layer("b", requirements=(requirement("numpy"), requirement("six")), description="x", max_size_mb=5)
    assert inputs_digest(base, TARGET) == inputs_digest(same, TARGET)
    others = [
        Layer("a", requirements=(requirement("six"),)),
        Layer("a", requirements=base.requirements, depends_on=("b",)),
        Layer("a", requirements=base.requirements, stack="other"),
        Layer("a", requirements=base.requirements, allow_sdist=("six",)),
    ]
    digests = {inputs_digest(layer, TARGET) for layer in [base, *others]}
    digests |= {inputs_digest(base, Target("python3.12", "x86_64")), inputs_digest(base, Target("python3.13", "arm64"))}
    assert len(digests) == 7


@pytest.fixture
def write_locks(tmp_path: Path) -> Callable[..., Project]:
    """Two layers, b depending on a, with the locks given: name -> (packages, provided), and what they ask for."""

    def write(
        asked: Mapping[str, Sequence[str]] | None = None, /, **locks: tuple[dict[str, str], dict[str, str]]
    ) -> Project:
        requirements = {
            name: tuple(parse_requirement(text, f"layers/{name}/requirements.txt:1") for text in texts)
            for name, texts in (asked or {}).items()
        }
        layers = Layers(
            [Layer("a", requirements.get("a", ())), Layer("b", requirements.get("b", ()), depends_on=("a",))]
        )
        project = Project(tmp_path, layers, TARGET)
        for name, (versions, provided) in locks.items():
            packages = tuple(Package(package, version, ("0" * 64,)) for package, version in versions.items())
            lock = Lock(name, TARGET, inputs_digest(layers[name], TARGET), packages, provided)
            path = project.lock_path(name, TARGET)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(render_lock(lock))
        return project

    return write


def reasons(project: Project) -> dict[str, str]:
    return stale(project, project.layers.stack("default", TARGET), TARGET)


def test_current_locks(write_locks: Callable[..., Project]) -> None:
    assert reasons(write_locks(a=({"numpy": "2.0"}, {}), b=({"scipy": "1.0"}, {"numpy": "a"}))) == {}


def test_a_missing_lock(write_locks: Callable[..., Project]) -> None:
    assert reasons(write_locks(a=({}, {}))) == {"b": "no lock yet"}


def test_two_versions_in_one_stack_as_a_merge_may_leave_them(write_locks: Callable[..., Project]) -> None:
    found = reasons(write_locks(a=({"six": "1.16.0"}, {}), b=({"six": "1.17.0"}, {})))
    assert found == {"b": "six==1.17.0 here, but 1.16.0 in a"}


def test_a_layer_that_no_longer_carries_what_another_counts_on(write_locks: Callable[..., Project]) -> None:
    found = reasons(write_locks(a=({}, {}), b=({"scipy": "1.0"}, {"numpy": "a"})))
    assert found == {"b": "a no longer carries numpy"}


def test_a_version_that_the_requirements_do_not_allow(write_locks: Callable[..., Project]) -> None:
    found = reasons(write_locks({"a": ["numpy<3"]}, a=({"numpy": "3.0"}, {}), b=({}, {})))
    assert found == {"a": "layers/a/requirements.txt:1 asks for numpy<3, but its lock has 3.0"}


def test_a_version_of_another_layer_that_the_requirements_do_not_allow(write_locks: Callable[..., Project]) -> None:
    """As a merge leaves it: one branch raised numpy in a, another asked for an older one in b."""
    asked = {"a": ["numpy"], "b": ["scipy", "numpy<3"]}
    found = reasons(write_locks(asked, a=({"numpy": "3.0"}, {}), b=({"scipy": "1.0"}, {"numpy": "a"})))
    assert found == {"b": "layers/b/requirements.txt:1 asks for numpy<3, but a carries 3.0"}
    assert reasons(write_locks(asked, a=({"numpy": "2.9"}, {}), b=({"scipy": "1.0"}, {"numpy": "a"}))) == {}


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("numpy<3; python_version<'3.13'", "3.0"),
        ("numpy<3; sys_platform=='win32'", "3.0"),
        ("numpy<3; platform_machine=='aarch64'", "3.0"),
        ("numpy", "3.0rc1"),
        ("numpy>=3.0rc1", "3.0rc1"),
        ("numpy==3.0", "3.0+cpu"),
        ("numpy", "3.0.dev1"),
    ],
)
def test_versions_that_the_requirements_allow(write_locks: Callable[..., Project], text: str, version: str) -> None:
    assert reasons(write_locks({"a": [text]}, a=({"numpy": version}, {}), b=({}, {}))) == {}


def test_a_lock_that_is_not_text(write_locks: Callable[..., Project]) -> None:
    project = write_locks(a=({}, {}), b=({}, {}))
    project.lock_path("b", TARGET).write_bytes(b"\xff")
    with pytest.raises(ConfigurationError, match=r"layers/b/locks/python3.13-x86_64.txt: can't be read as UTF-8"):
        reasons(project)


def test_a_file_called_like_a_lock_for_no_target(write_locks: Callable[..., Project]) -> None:
    project = write_locks(a=({}, {}))
    stray = project.lock_path("a", TARGET).with_name("python3.13-x86_64-old.txt")
    stray.write_text("")
    with pytest.raises(ConfigurationError, match=r"layers/a/locks/python3.13-x86_64-old.txt: 'x86_64-old' is not an"):
        locked_targets(project)
    stray.rename(stray.with_name("notes.txt"))
    assert locked_targets(project) == (TARGET,)


def test_targets_are_those_with_locks_and_the_default(write_locks: Callable[..., Project]) -> None:
    project = write_locks(a=({}, {}))
    other = project.lock_path("a", Target("python3.12", "arm64"))
    other.write_text("")
    assert locked_targets(project) == (TARGET, Target("python3.12", "arm64"))
