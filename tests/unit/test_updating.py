"""Raising a pin in a requirements file: its version changes, and not one byte besides."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.requirements import Requirement as ParsedRequirement

from layerkit.drafts import Line, at_least, at_most, stops, with_clauses, with_line, with_pin
from layerkit.model import Requirement
from layerkit.project import parse_requirement, read_requirements
from layerkit.updating import Outdated


def read(folder: Path, text: str) -> tuple[Requirement, ...]:
    path = folder / "requirements.txt"
    path.write_bytes(text.encode())
    return read_requirements(path, folder)


def raised(folder: Path, text: str, name: str, version: str) -> str:
    """``text`` with the pin of ``name`` at ``version``."""
    (one,) = [requirement for requirement in read(folder, text) if requirement.name == name]
    return with_pin(text, int(one.where.rpartition(":")[2]), one, version)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("num==1.0\n", "num==2.5\n"),
        ("num==1.0  # comment\n", "num==2.5  # comment\n"),
        ("num==1.0 # was num==1.0\n", "num==2.5 # was num==1.0\n"),
        (
            "  Num [fast, more]  ==  1.0 ; python_version >= '1.0'\n",
            "  Num [fast, more]  ==  2.5 ; python_version >= '1.0'\n",
        ),
        ("num==1.0", "num==2.5"),
        ("num===1.0\n", "num===2.5\n"),
        ("num (==1.0)\n", "num (==2.5)\n"),
        ("num!=0.9,==1.0,<3\n", "num!=0.9,==2.5,<3\n"),
        ("num ==1.0, <3\r\nother\r\n", "num ==2.5, <3\r\nother\r\n"),
        ("num\\\n  ==\\\n  1.0  # why\nother\n", "num\\\n  ==\\\n  2.5  # why\nother\n"),
        ("\ufeffnum==1.0\n", "\ufeffnum==2.5\n"),
        ("# num==1.0\n\n\tnum==1.0\n\n# end", "# num==1.0\n\n\tnum==2.5\n\n# end"),
        ("other==1.0\nnum==1.0;python_version=='3.13'\n", "other==1.0\nnum==2.5;python_version=='3.13'\n"),
        ("# a \\\nnum==1.0\n", "# a \\\nnum==2.5\n"),
        ("a\x0bnum==1.0\u2028b\n", "a\x0bnum==2.5\u2028b\n"),
    ],
)
def test_only_the_version_of_a_pin_changes(tmp_path: Path, before: str, after: str) -> None:
    assert raised(tmp_path, before, "num", "2.5") == after


VERSIONS = st.from_regex(r"[0-9]{1,3}(\.[0-9]{1,3}){0,2}(rc1|\.post2|\.dev3)?", fullmatch=True)
ENDINGS = st.sampled_from(["\n", "\r\n"])
BLANKS = st.sampled_from(["", " ", "\t", "  "])
MARKERS = st.sampled_from(["", "; python_version >= '3.9'", " ;sys_platform=='linux'"])
COMMENTS = st.sampled_from(["", "  # comment", " #==1.0", "\t# num==9.9; x"])
OTHERS = st.lists(
    st.sampled_from(["", "# num==1.0", "six>=1,<2", "attrs~=1.0", "  # \\", "idna ; os_name=='posix'"]), max_size=4
)
EXTRAS = st.sampled_from(["", "[a]", " [ b , a ] "])
MORE = st.sampled_from(["", ",!=0.0.1", " , <999", ",>0"])


@given(OTHERS, OTHERS, EXTRAS, BLANKS, VERSIONS, VERSIONS, MORE, MARKERS, COMMENTS, ENDINGS, st.booleans())
def test_whatever_stands_around_a_pin_stays(
    tmp_path_factory: pytest.TempPathFactory,
    above: list[str],
    below: list[str],
    extras: str,
    blank: str,
    old: str,
    new: str,
    more: str,
    marker: str,
    comment: str,
    ending: str,
    ends: bool,
) -> None:
    lines = [*above, f"num{extras}{blank}=={blank}%s{more}{marker}{comment}", *below]
    frame = ending.join(lines) + (ending if ends else "")
    folder = tmp_path_factory.mktemp("any")
    seen = read(folder, frame.replace("%s", old))
    number = len(above) + 1
    (one,) = [requirement for requirement in seen if requirement.where.endswith(f":{number}")]
    text = with_pin(frame.replace("%s", old), number, one, new)
    assert text == frame.replace("%s", new)
    after = read(folder, text)
    assert [item for item in after if item.where != one.where] == [item for item in seen if item.where != one.where]
    (changed,) = [item for item in after if item.where == one.where]
    assert Line(changed, frozenset()).pin == new


@given(st.text(max_size=80), st.integers(min_value=1, max_value=9))
def test_a_line_that_is_not_the_pin_that_was_read_is_refused(text: str, number: int) -> None:
    requirement = parse_requirement("num==1.0", "requirements.txt:1")
    if number > len(text.splitlines()) or "num" not in text:
        with pytest.raises(ValueError, match="not the pin"):
            with_pin(text, number, requirement, "2.0")


@pytest.mark.parametrize("text", ["num>=1.0", "num==1.*", "num", "num===text", "num==1.0,==1.1"])
def test_what_is_no_pin(text: str) -> None:
    requirement = parse_requirement(text, "requirements.txt:1")
    assert Line(requirement, frozenset()).pin == ""
    with pytest.raises(ValueError, match="not the pin"):
        with_pin(text, 1, requirement, "2.0")


def test_a_pin_written_twice_in_one_line_is_left_to_people() -> None:
    requirement = parse_requirement("num==1.0,==1.0.0", "requirements.txt:1")
    with pytest.raises(ValueError, match="can't be told from the rest"):
        with_pin("num==1.0,==1.0.0\n", 1, requirement, "2.0")


@pytest.mark.parametrize(
    ("before", "after", "number"),
    [
        ("", "new>=1\n", 1),
        ("a\n", "a\nnew>=1\n", 2),
        ("a\r\nb\r\n", "a\r\nb\r\nnew>=1\r\n", 3),
        ("a\nb", "a\nb\nnew>=1\n", 3),
        ("a==1,\\\n<3\n", "a==1,\\\n<3\nnew>=1\n", 3),
        ("a \\\n", "a \\\n\nnew>=1\n", 3),
        ("a \\", "a \\\n\nnew>=1\n", 3),
        ("# c \\\n", "# c \\\nnew>=1\n", 2),
    ],
)
def test_a_line_more(tmp_path: Path, before: str, after: str, number: int) -> None:
    assert with_line(before, "new>=1") == (after, number)
    assert read(tmp_path, after)[-1] == Requirement("new", "new>=1", f"requirements.txt:{number}")


def test_clauses_in_the_place_of_a_pin() -> None:
    requirement = parse_requirement("Num[b,a]==1.0,<3; os_name=='posix'", "requirements.txt:1")
    changed = ParsedRequirement(with_clauses(requirement, at_least("1.5+cpu"), at_most("2.0+cpu")))
    assert (changed.name, changed.extras) == ("Num", {"a", "b"})
    assert str(changed.specifier) == "<3,<=2.0,>=1.5"
    assert str(changed.marker) == 'os_name == "posix"'
    assert changed.specifier.contains("1.5+cpu")
    assert changed.specifier.contains("2.0+cpu")


@pytest.mark.parametrize(
    ("text", "raising", "stopped"),
    [
        ("num==1.0", False, True),
        ("num==1.0", True, False),
        ("num<2", True, True),
        ("num<=2.0", True, False),
        ("num~=1.4", True, True),
        ("num==1.*", True, True),
        ("num>=3", True, False),
        ("num!=2.0", True, False),
        ("num", True, False),
        ("num==1.0,<1.5", True, True),
    ],
)
def test_which_requirements_end_below_a_version(text: str, raising: bool, stopped: bool) -> None:
    assert stops(parse_requirement(text, "requirements.txt:1"), "2.0", raising=raising) is stopped


@pytest.mark.parametrize(
    ("locked", "resolves", "newest", "expected"),
    [
        ("1.0", "1.0", "1.0", False),
        ("1.0", "1.0.0", "1", False),
        ("1.9", "1.10", "1.9", True),
        ("1.0", "1.0", "2.0", True),
        ("1.0", None, None, False),
        ("2.0rc1", "2.0rc1", "1.9", False),
    ],
)
def test_when_a_distribution_is_outdated(locked: str, resolves: str | None, newest: str | None, expected: bool) -> None:
    assert Outdated("web", "num", locked, resolves, newest, None).is_outdated is expected
