"""Writing whole, locking, caches."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from layerkit.files import cache_folder, checkout_lock, decided, finish_set, remove, write_whole


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    write_whole(path, "one")
    write_whole(path, b"two")
    assert path.read_bytes() == b"two"
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        write_whole(tmp_path / "folder", "x")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["folder", "new"]
    assert [entry.name for entry in (tmp_path / "new").iterdir()] == ["file"]


ROOT = Path(__file__).parents[2]

KILLED = """
import os, sys
from pathlib import Path
from layerkit.files import write_set
root, left = Path(sys.argv[1]), int(sys.argv[2])
def dying(event, arguments):
    global left
    if event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir"):
        left -= 1
        if left == 0:
            os._exit(9)
sys.addaudithook(dying)
write_set({"a/one": b"new", "b c/%2F": b"new"}, root, root / "state" / "work", root / "state" / "journal")
"""


def test_a_set_of_files_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    """Every rename, removal and new folder is a place to die at."""
    outcomes = set()
    for step in range(1, 40):
        root = tmp_path / str(step)
        (root / "state").mkdir(parents=True)
        (root / "a").mkdir()
        (root / "a" / "one").write_bytes(b"old")
        code = subprocess.run([sys.executable, "-c", KILLED, str(root), str(step)], cwd=ROOT, check=False).returncode
        waiting = decided(root / "state" / "journal")
        finished = finish_set(root / "state" / "journal", root)
        found = {
            path.relative_to(root).as_posix(): path.read_bytes()
            for folder in ("a", "b c")
            for path in (root / folder).glob("*")
        }
        new = found == {"a/one": b"new", "b c/%2F": b"new"}
        assert new or found == {"a/one": b"old"}
        assert waiting <= {"a/one", "b c/%2F"}
        assert bool(waiting) <= finished
        assert not finish_set(root / "state" / "journal", root)
        assert decided(root / "state" / "journal") == frozenset()
        outcomes.add((code, finished, new))
        if code == 0:
            break
    assert outcomes == {(9, False, False), (9, True, True), (0, False, True)}


HOLDER = """
import sys
from pathlib import Path
from layerkit.files import checkout_lock
with checkout_lock(Path(sys.argv[1]), "the holder", print):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_waits_and_is_told_for_whom(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    told = []
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"

        def waiting(who: str) -> None:
            told.append(who)
            assert holder.stdin is not None
            holder.stdin.close()  # lets the other one go

        with checkout_lock(tmp_path, "the second", waiting):
            assert holder.wait() == 0
    assert len(told) == 1
    assert f"the holder (process {holder.pid}, since 20" in told[0]


def test_a_killed_holder_holds_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        holder.kill()
    with checkout_lock(tmp_path, "the second", lambda who: pytest.fail(f"waited for {who}")):
        assert (tmp_path / "lock").read_text().count("the second") == 1


def test_removing_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("")
    (tmp_path / "link").symlink_to("kept")
    remove(tmp_path / "link")
    remove(tmp_path / "nothing")
    assert (tmp_path / "kept" / "file").exists()
    remove(tmp_path / "kept")
    assert list(tmp_path.iterdir()) == []


def test_where_caches_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAYERKIT_CACHE_DIR", "/own")
    assert cache_folder() == Path("/own")
    monkeypatch.delenv("LAYERKIT_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_folder() == Path("/xdg/layerkit")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative, which the specification says to ignore")
    monkeypatch.setenv("HOME", "/home/me")
    assert cache_folder() == Path("/home/me/.cache/layerkit")
