"""Small ELF files, made by the tests: they can be read and not be run."""

from __future__ import annotations

import struct
from collections.abc import Container, Mapping, Sequence

MACHINES = {"EM_PPC64": 21, "x86_64": 62, "arm64": 183}

SHIFT = 0x30000
"""How far the second segment's addresses are from its offsets in the file: readers have to tell the two apart."""


def make_elf(
    machine: str = "x86_64",
    needed: Sequence[str] = (),
    soname: str = "",
    versions: Mapping[str, Sequence[str]] | None = None,
    *,
    weak: Container[str] = (),
    misaligned: bool = False,
    align: int = 4096,
    sections: bool = True,
) -> bytes:
    """An ELF64 shared object that needs libraries, and ``versions`` of symbols by library, those in ``weak`` weakly.

    ``align`` is the alignment of its segments, which ``misaligned`` belies; without ``sections`` it has no section
    headers. The dynamic segment comes last, before them.
    """
    versions = versions or {}
    strings, index = b"", {}
    for name in dict.fromkeys(
        ["", soname, *needed, *versions, *(name for names in versions.values() for name in names)]
    ):
        index[name] = len(strings)
        strings += name.encode() + b"\0"
    strings_at = 64 + 3 * 56
    needs = _version_needs(versions, weak, index)
    needs_at = _after(strings_at + len(strings))
    dynamic_at = _after(needs_at + len(needs))
    shift = SHIFT + (8 if misaligned else 0)

    tags = [(5, strings_at), (10, len(strings))]  # DT_STRTAB, DT_STRSZ
    tags += [(1, index[name]) for name in needed]  # DT_NEEDED
    if soname:
        tags.append((14, index[soname]))
    if versions:
        tags += [(0x6FFFFFFE, needs_at + shift), (0x6FFFFFFF, len(versions))]  # DT_VERNEED, DT_VERNEEDNUM
    dynamic = b"".join(struct.pack("<qQ", *tag) for tag in [*tags, (0, 0)])

    def segment(kind: int, start: int, end: int, address: int, alignment: int) -> bytes:
        return struct.pack("<IIQQQQQQ", kind, 4, start, address, address, end - start, end - start, alignment)

    end = dynamic_at + len(dynamic)
    body = (
        segment(1, 0, needs_at, 0, align)  # PT_LOAD
        + segment(1, needs_at, end, needs_at + shift, align)
        + segment(2, dynamic_at, end, dynamic_at + shift, 8)  # PT_DYNAMIC
        + strings.ljust(needs_at - strings_at, b"\0")
        + needs.ljust(dynamic_at - needs_at, b"\0")
        + dynamic
    )
    headers = b""
    if sections:
        headers = _section_headers(
            [
                (".dynstr", 3, 0, strings_at, strings_at, len(strings), 0, 0),  # SHT_STRTAB
                (".gnu.version_r", 0x6FFFFFFE, 1, needs_at + shift, needs_at, len(needs), len(versions), 0),
                (".dynamic", 6, 1, dynamic_at + shift, dynamic_at, len(dynamic), 0, 16),
            ],
            end,
        )
    ident = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)  # 64 bits, little-endian
    fields = (3, MACHINES[machine], 1, 0, 64, end + len(headers) - 5 * 64 if sections else 0, 0, 64, 56, 3, 64)
    return ident + struct.pack("<HHIQQQIHHHHHH", *fields, *((5, 4) if sections else (0, 0))) + body + headers


def _after(position: int) -> int:
    """The next multiple of 8."""
    return position + -position % 8


def _version_needs(versions: Mapping[str, Sequence[str]], weak: Container[str], index: Mapping[str, int]) -> bytes:
    """What DT_VERNEED points at: libraries, each with a list of its versions behind it.

    Entries of 16 bytes stand 32 apart: linkers arrange them differently, so readers have to follow their links.
    """
    content = b""
    for library_number, (library, names) in enumerate(versions.items(), 1):
        to_next = 0 if library_number == len(versions) else 32 * (1 + len(names))
        content += struct.pack("<HHIII16x", 1, len(names), index[library], 32, to_next)
        for number, name in enumerate(names, 1):
            flags = 2 if name in weak else 0  # VER_FLG_WEAK
            content += struct.pack("<IHHII16x", 0, flags, 2, index[name], 0 if number == len(names) else 32)
    return content


def _section_headers(headers: Sequence[tuple[str, int, int, int, int, int, int, int]], start: int) -> bytes:
    """The names of sections and then their headers, to be put at ``start``: name, type, link, address, ... each."""
    names = "".join(f"\0{name}" for name in ["", *(name for name, *_ in headers), ".shstrtab"]).encode() + b"\0"
    names = names.ljust(_after(len(names)), b"\0")
    content = names + bytes(64)  # the first header stands for none
    for name, kind, link, address, offset, size, info, entry in [
        *headers,
        (".shstrtab", 3, 0, 0, start, len(names), 0, 0),
    ]:
        place = names.index(name.encode() + b"\0")
        content += struct.pack("<IIQQQQIIQQ", place, kind, 2, address, offset, size, link, info, 8, entry)
    return content
