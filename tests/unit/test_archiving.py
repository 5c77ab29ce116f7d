"""Zips: the same bytes from the same content, readable by anybody's reader, and a cache that is not trusted blindly."""

from __future__ import annotations

import random
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerkit.archiving import CompressedFiles, Source, Written, tree_digest, write_zip
from layerkit.errors import ConfigurationError

PATHS = st.lists(
    st.lists(st.from_regex(r"[a-zA-Zä_.-]{1,8}", fullmatch=True), min_size=1, max_size=3).map("/".join),
    unique=True,
    max_size=8,
)


def zipped(path: Path, sources: list[Source], cache: CompressedFiles | None = None, workers: int = 2) -> Written:
    with ThreadPoolExecutor(workers) as pool:
        return write_zip(path, sources, pool=pool, cache=cache)


def sources(content: dict[str, bytes], executable: frozenset[str] = frozenset()) -> list[Source]:
    return [Source(path, len(data), path in executable, content=data) for path, data in content.items()]


@given(st.data())
def test_every_reader_gets_back_what_went_in(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    content = {path: data.draw(st.binary(max_size=300)) for path in data.draw(PATHS)}
    executable = frozenset(path for path in content if data.draw(st.booleans()))
    path = tmp_path_factory.mktemp("zip") / "layer.zip"
    written = zipped(path, sources(content, executable))
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == content
        assert archive.namelist() == sorted(content)
        for info in archive.infolist():
            assert info.external_attr >> 16 == (0o100755 if info.filename in executable else 0o100644)
            assert info.date_time == (1980, 1, 1, 0, 0, 0)
    assert written.size == path.stat().st_size


def big(seed: int, count: int) -> dict[str, bytes]:
    """Files of all sizes, some that shrink and some that do not, together more than one batch."""
    chance = random.Random(seed)
    words = [chance.randbytes(chance.randrange(3, 9)) for _ in range(40)]
    content = {}
    for number in range(count):
        size = chance.choice([0, 10, 1000, 70_000])
        shrinks = b" ".join(chance.choice(words) for _ in range(size // 6))
        content[f"python/p{number % 7}/m{number}.py"] = shrinks if number % 3 else chance.randbytes(size)
    return content


def test_order_workers_and_cache_do_not_matter(tmp_path: Path) -> None:
    content = big(1, 200)
    first = zipped(tmp_path / "1.zip", sources(content), workers=1)
    turned = sources(dict(reversed(content.items())))
    second = zipped(tmp_path / "2.zip", turned, CompressedFiles(tmp_path / "cache"), workers=5)
    third = zipped(tmp_path / "3.zip", turned, CompressedFiles(tmp_path / "cache"))
    assert first.sha256 == second.sha256 == third.sha256
    assert (tmp_path / "1.zip").read_bytes() == (tmp_path / "3.zip").read_bytes()
    assert second.from_cache == 0
    assert third.from_cache > 50
    assert tree_digest(first.entries) == tree_digest(reversed(third.entries))


@pytest.mark.parametrize("suffix", [".pack", ".index"])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_damaged_cache_is_as_if_it_were_not_there(tmp_path: Path, suffix: str, damage: str) -> None:
    content = big(2, 60)
    sound = zipped(tmp_path / "1.zip", sources(content), CompressedFiles(tmp_path / "cache"))
    for path in (tmp_path / "cache").rglob(f"*{suffix}"):
        data = bytearray(path.read_bytes())
        if damage == "flip":
            for at in range(0, len(data), 50):
                data[at] ^= 0xFF
            path.write_bytes(data)
        elif damage == "cut":
            path.write_bytes(data[: len(data) // 3])
        else:
            path.unlink()
    again = zipped(tmp_path / "2.zip", sources(content), CompressedFiles(tmp_path / "cache"))
    assert again.sha256 == sound.sha256
    with zipfile.ZipFile(tmp_path / "2.zip") as archive:
        assert archive.testzip() is None


def test_links_are_links(tmp_path: Path) -> None:
    link = Source("python/lib.so", 8, content=b"lib.so.1", link=True)
    written = zipped(tmp_path / "1.zip", [link, *sources({"python/lib.so.1": b"x"})])
    with zipfile.ZipFile(tmp_path / "1.zip") as archive:
        info = archive.getinfo("python/lib.so")
        assert info.external_attr >> 16 == 0o120777
        assert archive.read(info) == b"lib.so.1"
    assert written.entries[0].link == "lib.so.1"


def test_one_path_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="a is there twice"):
        zipped(tmp_path / "1.zip", [*sources({"a": b"1"}), *sources({"a": b"2"})])


def test_more_files_than_a_zip_can_count_are_refused(tmp_path: Path) -> None:
    many = [Source(f"f{number}", 0) for number in range(0x10000)]
    with pytest.raises(ConfigurationError, match="65536 files"):
        zipped(tmp_path / "1.zip", many)


def test_a_name_that_is_not_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="not valid text"):
        zipped(tmp_path / "1.zip", [Source("python/\udcff.py", 0)])


def test_the_tree_digest_sees_path_mode_link_and_content(tmp_path: Path) -> None:
    variants = [
        sources({"a": b"1"}),
        sources({"b": b"1"}),
        sources({"a": b"2"}),
        sources({"a": b"1"}, frozenset("a")),
        [Source("a", 1, content=b"1", link=True)],
    ]
    digests = {tree_digest(zipped(tmp_path / f"{i}.zip", variant).entries) for i, variant in enumerate(variants)}
    assert len(digests) == len(variants)
