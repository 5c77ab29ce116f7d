"""What a compiled file asks of the machine that loads it: architecture, libraries, symbol versions, alignment.

A wheel's tag is a claim, its ELF files are the fact. They are read as the dynamic loader reads them, by the program
headers and the dynamic segment: section headers may have been stripped, and symbol tables are long and not needed.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any

MAGIC = b"\x7fELF"

ARCHITECTURES = {"EM_X86_64": "x86_64", "EM_AARCH64": "arm64"}
"""AWS's names for the machines of the ELF specification."""

PAGE_SIZE = 4096
"""Bytes. The page size of x86_64 and the smallest of arm64: what doesn't fit it doesn't fit a larger one either."""

WEAK = 2
"""VER_FLG_WEAK in vna_flags: when the system has no such version, the loader goes on without."""

FIRST_ABI_VERSION = (2, 36)
"""The glibc that brought GLIBC_ABI_DT_RELR (NEWS for 2.36), the first version named after a feature."""


class BrokenElf(ValueError):
    """A file that begins like ELF and can't be read as it; the message says what is wrong with it."""


@dataclass(frozen=True)
class Elf:
    """What the dynamic loader looks at in one file."""

    machine: str
    """AWS's name of the architecture (``x86_64``, ``arm64``), else that of the ELF specification (``EM_386``)."""
    soname: str
    """DT_SONAME; empty where there is none, as in most extension modules."""
    needed: tuple[str, ...]
    """DT_NEEDED: the file names of the libraries loaded with it, in the file's order."""
    versions: Mapping[str, tuple[str, ...]]
    """The symbol versions it can't do without, by library: ``{"libc.so.6": ("GLIBC_2.2.5", "GLIBC_2.34")}``."""
    aligned: bool
    """Whether glibc can map it: ``strip`` makes files that it can't out of libraries that ``patchelf`` has changed."""


def read_elf(content: bytes) -> Elf | None:
    """What the file with this ``content`` asks for; None when it isn't ELF, BrokenElf when only its beginning is."""
    if not content.startswith(MAGIC):
        return None
    # Imported here: it takes 30 to 45 ms, and a build that checks no compiled file must not pay for it.
    from elftools.common.exceptions import ELFError

    try:
        image = _Image(content)
        return Elf(
            machine=ARCHITECTURES.get(image.machine, image.machine),
            soname=next(image.names("DT_SONAME"), ""),
            needed=tuple(image.names("DT_NEEDED")),
            versions=image.versions(),
            aligned=all(_is_aligned(segment) for segment in image.loads),
        )
    # In this order: it ends too early or has a field that makes no sense, an offset no file can have, a name that
    # isn't text.
    except (ELFError, OverflowError, UnicodeDecodeError) as error:
        raise BrokenElf(str(error)) from error


def loaded_parts(content: bytes) -> list[tuple[int, int, bytes]]:
    """What the loader maps of a file: for each PT_LOAD its address, its flags and its bytes.

    The fields of the file header that say where the section headers are count as zero: they are mapped with the rest,
    nothing that runs looks at them, and ``strip`` changes them. BrokenElf when it can't be read.
    """
    from elftools.common.exceptions import ELFError

    try:
        image = _Image(content)
    except (ELFError, OverflowError, UnicodeDecodeError) as error:
        raise BrokenElf(str(error)) from error
    masked = bytearray(content)
    masked[0x28:0x30] = bytes(8)  # e_shoff of a 64-bit file
    masked[0x3A:0x40] = bytes(6)  # e_shentsize, e_shnum, e_shstrndx
    return [
        (load["p_vaddr"], load["p_flags"], bytes(masked[load["p_offset"] : load["p_offset"] + load["p_filesz"]]))
        for load in image.loads
    ]


def newer_than(
    elf: Elf, limits: Mapping[str, str], bundled: Container[str] = frozenset()
) -> list[tuple[str, str, str]]:
    """What ``elf`` requires and a system doesn't have: library, highest version name, the limit it is above.

    ``limits`` are the system's highest versions by family: ``{"GLIBC": "2.34"}`` finds ``("libc.so.6", "GLIBC_2.38",
    "2.34")``. Libraries whose file name is in ``bundled`` aren't looked at: they come along, and aren't the system's.
    """
    found = []
    for library, versions in elf.versions.items():
        if library in bundled:
            continue
        for family, limit in limits.items():
            of_family = (version for version in versions if version.startswith(f"{family}_"))
            highest = max(of_family, key=_number, default="")
            if _number(highest) > _number(limit):
                found.append((library, highest, limit))
    return found


def _number(version: str) -> tuple[int, ...]:
    """What to compare ``GLIBC_2.34`` or ``2.34`` by; less than any number for names without one.

    Those (GLIBC_PRIVATE, CXXABI_TM_1, CXXABI_FLOAT128) are older than all systems of Lambda.
    """
    if version.startswith("GLIBC_ABI_"):
        return FIRST_ABI_VERSION
    number = re.fullmatch(r"(?:[A-Z]+_)?(\d+(?:\.\d+)*?)(?:\.0)*", version)  # GCC has both 14.0 and 14.0.0
    return tuple(int(part) for part in number[1].split(".")) if number else ()


def _is_aligned(segment: Mapping[str, Any]) -> bool:
    """Whether glibc maps a PT_LOAD; its own words are "ELF load command address/offset not properly aligned".

    The rules are those of 2.26 and 2.34 (elf/dl-load.c; 2.35 and later ask for less), and the ELF specification's that
    an alignment is a power of two, which glibc takes for granted.
    """
    align: int = segment["p_align"]
    distance: int = segment["p_vaddr"] - segment["p_offset"]
    return align > 0 and align & (align - 1) == 0 and align % PAGE_SIZE == 0 and distance % align == 0


class _Image:
    """A file as it is once loaded: fields are found by their addresses."""

    def __init__(self, content: bytes) -> None:
        from elftools.common.utils import parse_cstring_from_stream, struct_parse
        from elftools.elf.elffile import ELFFile

        self._parse, self._parse_string = struct_parse, parse_cstring_from_stream
        self._stream = BytesIO(content)
        file = ELFFile(self._stream)
        self._structs = file.structs
        self.machine = str(file["e_machine"])
        # ELFFile.iter_segments reads all section headers on the way, which takes longer than all that is done here.
        size = self._structs.Elf_Phdr.sizeof()
        segments = [self._entry("Elf_Phdr", file["e_phoff"] + size * index) for index in range(file["e_phnum"])]
        self.loads = [segment for segment in segments if segment["p_type"] == "PT_LOAD"]
        self._tags = [
            tag for segment in segments if segment["p_type"] == "PT_DYNAMIC" for tag in self._dynamic(segment)
        ]

    def _entry(self, struct: str, offset: int) -> Mapping[str, Any]:
        """The ``struct`` (pyelftools' name of it) at an ``offset`` in the file."""
        entry: Mapping[str, Any] = self._parse(getattr(self._structs, struct), self._stream, offset)
        return entry

    def _dynamic(self, segment: Mapping[str, Any]) -> Iterator[tuple[object, int]]:
        """The tags of a dynamic segment with their values, up to DT_NULL."""
        size = self._structs.Elf_Dyn.sizeof()
        for offset in range(segment["p_offset"], segment["p_offset"] + segment["p_filesz"], size):
            entry = self._entry("Elf_Dyn", offset)
            if entry["d_tag"] == "DT_NULL":
                return
            yield entry["d_tag"], entry["d_val"]

    def _values(self, wanted: str) -> Iterator[int]:
        return (value for tag, value in self._tags if tag == wanted)

    def _offset(self, address: int) -> int:
        """Where in the file the byte is that is loaded at ``address``."""
        for load in self.loads:
            if 0 <= address - load["p_vaddr"] < load["p_filesz"]:
                return int(load["p_offset"] + address - load["p_vaddr"])
        raise BrokenElf(f"nothing is loaded at the address {address:#x}")

    def _string(self, index: int) -> str:
        """The string at ``index`` of the dynamic string table."""
        table = next(self._values("DT_STRTAB"), None)
        if table is None:
            raise BrokenElf("it has names and no string table")
        string = self._parse_string(self._stream, self._offset(table + index))
        if string is None:
            raise BrokenElf("a name has no end")
        return string.decode()

    def names(self, tag: str) -> Iterator[str]:
        """The strings that the dynamic segment has under ``tag``, in its order."""
        return (self._string(index) for index in self._values(tag))

    def versions(self) -> dict[str, tuple[str, ...]]:
        """The version names under DT_VERNEED by library, without weak ones."""
        found: dict[str, tuple[str, ...]] = {}
        for address in self._values("DT_VERNEED"):
            for start, library in self._chain("Elf_Verneed", self._offset(address), "vn_next"):
                versions = self._chain("Elf_Vernaux", start + library["vn_aux"], "vna_next")
                names = tuple(
                    self._string(version["vna_name"]) for _, version in versions if not version["vna_flags"] & WEAK
                )
                if names:
                    name = self._string(library["vn_file"])
                    found[name] = found.get(name, ()) + names
        return found

    def _chain(self, struct: str, offset: int, link: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """Entries, each with its offset, that give the distance to the next one in the field ``link``; 0 ends it.

        As in glibc, the number of entries (DT_VERNEEDNUM, vn_cnt) isn't looked at.
        """
        while True:
            entry = self._entry(struct, offset)
            yield offset, entry
            if entry[link] == 0:
                return
            offset += entry[link]
