"""Compiled files: what they ask for, and what a system doesn't have of it."""

from __future__ import annotations

import struct
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import pytest
from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerNeedSection
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.version import Version

from layerkit.elf import BrokenElf, Elf, newer_than, read_elf
from layerkit.runtimes import runtimes, system_of
from tests.support.elves import SHIFT, make_elf

ROOT = Path(__file__).parents[2]
DT_NULL, DT_NEEDED, DT_STRTAB, DT_DEBUG, DT_VERNEED = 0, 1, 5, 21, 0x6FFFFFFE
VERSIONS = {"libc.so.6": ("GLIBC_2.2.5", "GLIBC_2.34"), "libstdc++.so.6": ("GLIBCXX_3.4.29", "CXXABI_1.3.13")}
NEEDED = ("libstdc++.so.6", "libfoo-1234abcd.so.1", "libc.so.6")
NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)
NUMBERS = st.lists(st.integers(0, 40), min_size=1, max_size=4).map(lambda parts: ".".join(map(str, parts)))


def requiring(*versions: str, library: str = "libc.so.6") -> Elf:
    return Elf("x86_64", "", (library,), {library: versions}, aligned=True)


@pytest.mark.parametrize("sections", [True, False])
@pytest.mark.parametrize("machine", ["x86_64", "arm64", "EM_PPC64"])
def test_what_a_file_asks_for(machine: str, *, sections: bool) -> None:
    content = make_elf(machine, NEEDED, "libown.so.2", VERSIONS, sections=sections)
    assert read_elf(content) == Elf(machine, "libown.so.2", NEEDED, VERSIONS, aligned=True)


def test_a_file_that_asks_for_nothing() -> None:
    assert read_elf(make_elf()) == Elf("x86_64", "", (), {}, aligned=True)


def test_an_object_file_has_no_dynamic_segment() -> None:
    content = bytearray(make_elf("arm64", NEEDED, versions=VERSIONS))
    content[56:58] = bytes(2)  # e_phnum
    assert read_elf(bytes(content)) == Elf("arm64", "", (), {}, aligned=True)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x7fEL", b"#!/usr/bin/env python\n"])
def test_other_files_are_none(content: bytes) -> None:
    assert read_elf(content) is None


def test_section_headers_are_not_needed_and_not_believed() -> None:
    content = make_elf(needed=NEEDED, versions=VERSIONS)
    spoiled = content[:40] + b"\xff" * 8 + content[48:]  # e_shoff
    assert read_elf(spoiled) == read_elf(content)


def test_weak_versions_are_not_required() -> None:
    # libstdc++ asks for GLIBC_2.18 like this and runs on 2.17 as well.
    versions = {"libc.so.6": ("GLIBC_2.17", "GLIBC_2.18"), "libm.so.6": ("GLIBC_2.18",)}
    elf = read_elf(make_elf(versions=versions, weak={"GLIBC_2.18"}))
    assert elf is not None
    assert elf.versions == {"libc.so.6": ("GLIBC_2.17",)}


def test_a_library_may_be_named_twice() -> None:
    content = make_elf(versions={"liba.so": ("A_1",), "libb.so": ("B_1",)})
    elf = read_elf(content.replace(b"libb.so", b"liba.so"))
    assert elf is not None
    assert elf.versions == {"liba.so": ("A_1", "B_1")}


@pytest.mark.parametrize(
    ("align", "aligned"),
    [
        (0, False),
        (1, False),
        (2048, False),
        (4096, True),
        (0x1800, False),
        (0x3000, False),
        (0x10000, True),
        (0x20000, False),
    ],
)
def test_alignment_is_a_power_of_two_of_whole_pages(align: int, *, aligned: bool) -> None:
    elf = read_elf(make_elf(align=align))
    assert elf is not None
    assert elf.aligned is aligned


def test_a_segment_that_its_alignment_belies() -> None:
    elf = read_elf(make_elf(needed=NEEDED, versions=VERSIONS, misaligned=True))
    assert elf == Elf("x86_64", "", NEEDED, VERSIONS, aligned=False)


def test_every_shorter_file_is_broken() -> None:
    content = make_elf(needed=NEEDED, soname="libown.so.2", versions=VERSIONS, sections=False)
    for length in range(4, len(content)):
        with pytest.raises(BrokenElf):
            read_elf(content[:length])


def spoiled(tag: int, value: int, *, into: int) -> bytes:
    """A file whose dynamic segment has another tag and value in the place of ``tag``."""
    content = make_elf(needed=NEEDED, versions=VERSIONS, sections=False)
    place = content.rindex(struct.pack("<q", tag))
    return content[:place] + struct.pack("<qQ", into, value) + content[place + 16 :]


def test_nothing_counts_behind_the_end_of_the_dynamic_segment() -> None:
    # The last of three DT_NEEDED becomes DT_NULL; linkers leave room for more tags behind it.
    assert read_elf(spoiled(DT_NEEDED, 0, into=DT_NULL)) == Elf("x86_64", "", NEEDED[:2], {}, aligned=True)


def test_what_is_broken_is_said() -> None:
    with pytest.raises(BrokenElf, match="no string table"):
        read_elf(spoiled(DT_STRTAB, 0, into=DT_DEBUG))
    with pytest.raises(BrokenElf, match="nothing is loaded at the address 0x7fff000"):
        read_elf(spoiled(DT_VERNEED, 0x7FFF000, into=DT_VERNEED))
    with pytest.raises(BrokenElf, match="utf-8"):
        read_elf(make_elf(needed=NEEDED).replace(b"libfoo", b"\xff" * 6))


def test_a_name_without_an_end() -> None:
    content = spoiled(DT_STRTAB, SHIFT + len(spoiled(DT_STRTAB, 0, into=DT_STRTAB)) - 8, into=DT_STRTAB)
    with pytest.raises(BrokenElf, match="no end"):
        read_elf(content[:-8] + b"x" * 8)  # the value of DT_NULL is no part of the table's end


def test_an_offset_that_no_file_can_have() -> None:
    content = bytearray(make_elf(needed=NEEDED))
    struct.pack_into("<Q", content, 64 + 2 * 56 + 8, 2**63)  # p_offset of PT_DYNAMIC
    with pytest.raises(BrokenElf):
        read_elf(bytes(content))


@given(ident=st.sampled_from([b"", b"\x02\x01\x01", b"\x01\x02\x01"]), content=st.binary(max_size=300))
def test_rubbish_raises_nothing_else(ident: bytes, content: bytes) -> None:
    try:
        assert read_elf(b"\x7fELF" + ident + content) is not None
    except BrokenElf as error:
        assert str(error)


@settings(max_examples=300)
@given(places=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=5))
def test_a_damaged_file_raises_nothing_else(places: list[tuple[float, int]]) -> None:
    content = bytearray(make_elf(needed=NEEDED, soname="libown.so.2", versions=VERSIONS, sections=False))
    for place, byte in places:
        content[4 + int(place * (len(content) - 5))] = byte
    try:
        assert read_elf(bytes(content)) is not None
    except BrokenElf as error:
        assert str(error)


@given(
    needed=st.lists(NAMES, max_size=5),
    soname=NAMES | st.just(""),
    versions=st.dictionaries(NAMES, st.lists(NAMES, min_size=1, max_size=4, unique=True).map(tuple), max_size=4),
    sections=st.booleans(),
)
def test_round_trip(needed: list[str], soname: str, versions: dict[str, tuple[str, ...]], *, sections: bool) -> None:
    elf = read_elf(make_elf("arm64", needed, soname, versions, sections=sections))
    assert elf == Elf("arm64", soname, tuple(needed), versions, aligned=True)


def test_the_tests_files_are_what_pyelftools_takes_for_one() -> None:
    # By their sections, which read_elf doesn't look at.
    file = ELFFile(BytesIO(make_elf(needed=NEEDED, soname="libown.so.2", versions=VERSIONS)))
    dynamic = file.get_section_by_name(".dynamic")
    needs = file.get_section_by_name(".gnu.version_r")
    assert isinstance(dynamic, DynamicSection)
    assert isinstance(needs, GNUVerNeedSection)
    assert [tag.needed for tag in dynamic.iter_tags("DT_NEEDED")] == list(NEEDED)  # type: ignore[attr-defined]
    assert {library.name: tuple(one.name for one in names) for library, names in needs.iter_versions()} == VERSIONS


def test_the_library_is_imported_when_it_is_used() -> None:
    question = "import sys, layerkit.elf; print(any(name.startswith('elftools') for name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", question], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    ("versions", "limits", "found"),
    [
        (("GLIBC_2.9", "GLIBC_2.34"), {"GLIBC": "2.34"}, None),
        (("GLIBC_2.36", "GLIBC_2.100", "GLIBC_2.38"), {"GLIBC": "2.34"}, ("GLIBC_2.100", "2.34")),
        (("GLIBCXX_3.4.30",), {"GLIBC": "2.34", "GLIBCXX": "3.4.29"}, ("GLIBCXX_3.4.30", "3.4.29")),
        (("GLIBCXX_3.4.30",), {"GLIBC": "2.34"}, None),
        (("CXXABI_1.3", "CXXABI_TM_1", "CXXABI_FLOAT128"), {"CXXABI": "1.3.11"}, None),
        (("GLIBC_PRIVATE", "GLIBC_2.2.5"), {"GLIBC": "2.26"}, None),
        (("GLIBC_2.2.5", "GLIBC_ABI_DT_RELR"), {"GLIBC": "2.34"}, ("GLIBC_ABI_DT_RELR", "2.34")),
        (("GLIBC_2.2.5", "GLIBC_ABI_DT_RELR"), {"GLIBC": "2.36"}, None),
        (("GCC_14.0.0",), {"GCC": "14.0"}, None),
        (("GCC_14.0.0",), {"GCC": "11.0"}, ("GCC_14.0.0", "11.0")),
        (("OPENSSL_3.2.0",), {"GLIBC": "2.34"}, None),
        ((), {"GLIBC": "2.34"}, None),
    ],
)
def test_what_a_system_is_too_old_for(
    versions: tuple[str, ...], limits: dict[str, str], found: tuple[str, str] | None
) -> None:
    assert newer_than(requiring(*versions), limits) == ([("libc.so.6", *found)] if found else [])


def test_each_library_and_family_is_named() -> None:
    libraries = {"libstdc++.so.6": ("CXXABI_1.3.15", "GLIBCXX_3.4.32"), "libm.so.6": ("GLIBC_2.35", "GLIBC_2.29")}
    limits = {"GLIBC": "2.34", "GLIBCXX": "3.4.29", "CXXABI": "1.3.13"}
    assert newer_than(Elf("x86_64", "", (), libraries, aligned=True), limits) == [
        ("libstdc++.so.6", "GLIBCXX_3.4.32", "3.4.29"),
        ("libstdc++.so.6", "CXXABI_1.3.15", "1.3.13"),
        ("libm.so.6", "GLIBC_2.35", "2.34"),
    ]


def test_what_comes_along_is_not_the_systems() -> None:
    elf = requiring("GLIBCXX_3.4.33", library="libstdc++-1234abcd.so.6")
    assert newer_than(elf, {"GLIBCXX": "3.4.29"}, bundled={"libstdc++-1234abcd.so.6"}) == []
    assert newer_than(elf, {"GLIBCXX": "3.4.29"}, bundled={"libgomp.so.1"}) != []


@given(numbers=st.lists(NUMBERS, min_size=1), limit=NUMBERS)
def test_versions_are_compared_as_numbers(numbers: list[str], limit: str) -> None:
    found = newer_than(requiring(*(f"GLIBC_{number}" for number in numbers)), {"GLIBC": limit})
    highest = max(map(Version, numbers))
    assert bool(found) is (highest > Version(limit))
    assert all(Version(version.removeprefix("GLIBC_")) == highest for _, version, _ in found)


@pytest.mark.parametrize("name", list(runtimes()))
def test_the_systems_of_the_runtimes(name: str) -> None:
    system = system_of(name)
    assert system.os == runtimes()[name].os
    assert system.symbols["GLIBC"] == runtimes()[name].glibc
    assert set(system.symbols) == {"GLIBC", "GLIBCXX", "CXXABI", "GCC"}
    assert {"libc.so.6", "libgcc_s.so.1", "libstdc++.so.6"} <= system.libraries
    # What wheels that were tested elsewhere count on, and Lambda doesn't promise.
    assert not {"libgomp.so.1", "libGL.so.1", "libnsl.so.1", "libglib-2.0.so.0"} & system.libraries


def test_each_runtime_takes_what_its_wheels_are_tagged_for() -> None:
    # manylinux_2_17 and manylinux_2_34 allow up to these (auditwheel's manylinux-policy.json).
    old = requiring("GLIBC_2.17", "GLIBCXX_3.4.19", "CXXABI_1.3.7", "GCC_4.8.0")
    new = requiring("GLIBC_2.34", "GLIBCXX_3.4.29", "CXXABI_1.3.13", "GCC_11.0")
    for runtime in runtimes().values():
        symbols = system_of(runtime.name).symbols
        assert newer_than(old, symbols) == []
        assert bool(newer_than(new, symbols)) is (runtime.glibc == "2.26")
