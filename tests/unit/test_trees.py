"""Trees: what depends on the machine goes, and RECORD says what is there."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest

from layerkit.errors import ConfigurationError
from layerkit.model import Package, Target
from layerkit.trees import (
    add_own_code,
    contested,
    distributions,
    impure,
    normalize,
    own_code_digest,
    own_files,
    sources,
)

TARGET = Target("python3.13", "x86_64")


def install(tree: Path, name: str, files: dict[str, str], *, entry_points: str = "", tag: str = "py3-none-any") -> Path:
    """A distribution as an installer leaves it."""
    info = tree / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    rows = [(f"{info.name}/RECORD", "", ""), (f"{info.name}/WHEEL", "sha256=w", "1")]
    (info / "WHEEL").write_text(f"Wheel-Version: 1.0\nTag: {tag}\n")
    if entry_points:
        (info / "entry_points.txt").write_text(entry_points)
    for path, text in files.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_text(text)
        rows.append((path, f"sha256={hash(text)}", str(len(text))))
    with (info / "RECORD").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return info


def record(info: Path) -> list[list[str]]:
    with (info / "RECORD").open(newline="") as file:
        return list(csv.reader(file))


LAUNCHER = "#!/home/me/.venv/bin/python\nimport tool\n"
FAR_LAUNCHER = "#!/bin/sh\n'''exec' '/home/some one/python' \"$0\" \"$@\"\n' '''\nimport tool\n"


@pytest.mark.parametrize("script", [LAUNCHER, FAR_LAUNCHER])
def test_launchers_go_and_scripts_get_the_runtimes_interpreter(tmp_path: Path, script: str) -> None:
    files = {"tool.py": "x", "bin/Tool": script, "bin/other.py": script, "bin/native": "\x7fELF"}
    info = install(tmp_path, "tool", files, entry_points="[console_scripts]\nTool = tool:main\n[other]\nx = y\n")
    (tmp_path / ".lock").write_text("")
    normalize(tmp_path, TARGET)
    assert sorted(os.listdir(tmp_path)) == ["bin", "tool-1.0.dist-info", "tool.py"]
    assert (tmp_path / "bin" / "other.py").read_text() == "#!/var/lang/bin/python3.13\nimport tool\n"
    assert (tmp_path / "bin" / "native").read_text() == "\x7fELF"
    rows = record(info)
    assert [row[0] for row in rows] == sorted(row[0] for row in rows)
    assert "bin/Tool" not in [row[0] for row in rows]
    assert all(os.path.exists(tmp_path / row[0]) for row in rows)


def test_a_bin_folder_of_launchers_alone_goes(tmp_path: Path) -> None:
    install(tmp_path, "tool", {"bin/tool": LAUNCHER}, entry_points="[console_scripts]\ntool = tool:main\n")
    normalize(tmp_path, TARGET)
    assert not (tmp_path / "bin").exists()


def test_the_order_in_which_an_installer_wrote_does_not_matter(tmp_path: Path) -> None:
    one = install(tmp_path / "1", "tool", {"a.py": "a", "b.py": "b"})
    two = install(tmp_path / "2", "tool", {"b.py": "b", "a.py": "a"})
    for tree in (tmp_path / "1", tmp_path / "2"):
        normalize(tree, TARGET)
    assert (one / "RECORD").read_bytes() == (two / "RECORD").read_bytes()


def test_files_that_two_distributions_bring(tmp_path: Path) -> None:
    install(tmp_path, "beta", {"ns/__init__.py": "beta", "same.txt": "s"})
    install(tmp_path, "alpha", {"ns/__init__.py": "alpha", "same.txt": "s"})
    assert contested(tmp_path) == {"ns/__init__.py": "beta"}


@pytest.mark.parametrize(("files", "tag"), [({"x.so": ""}, "py3-none-any"), ({"x.py": ""}, "cp313-cp313-linux_x86_64")])
def test_what_was_compiled_is_seen(tmp_path: Path, files: dict[str, str], tag: str) -> None:
    install(tmp_path, "tool", files, tag=tag)
    assert set(impure(tmp_path, ["tool"])) == {"tool"}
    assert impure(tmp_path, ["other"]) == {}


def test_sizes_by_distribution(tmp_path: Path) -> None:
    install(tmp_path, "tool", {"a.py": "12345"})
    (found,) = distributions(tmp_path, [Package("tool", "1.0", ("f" * 64,))], {"a.py": 5, "stranger.py": 7})
    assert (found.name, found.version, found.files, found.size, found.hashes) == ("tool", "1.0", 1, 5, ("f" * 64,))


# ---- own code ----


def test_own_code_goes_beside_the_dependencies(tmp_path: Path) -> None:
    source, tree = tmp_path / "src", tmp_path / "tree"
    for path in ["pkg/__init__.py", "pkg/data.json", "pkg/__pycache__/x.pyc", "stray.pyc", ".DS_Store", "run.sh"]:
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).write_text(path)
    (source / "run.sh").chmod(0o700)
    (source / "link").symlink_to("pkg")
    tree.mkdir()
    files, size, digest = add_own_code(source, tree, "layers/x/src")
    paths = sorted(path.relative_to(tree).as_posix() for path in tree.rglob("*") if not path.is_dir())
    assert paths == ["pkg/__init__.py", "pkg/data.json", "run.sh"]
    assert (tree / "link").is_symlink()
    assert (tree / "run.sh").stat().st_mode & 0o777 == 0o755
    assert (tree / "pkg" / "data.json").stat().st_mode & 0o777 == 0o644
    assert (files, size) == (4, len("pkg/__init__.py") + len("pkg/data.json") + len("run.sh") + len("pkg"))
    assert digest == own_code_digest(source)


def test_own_code_replaces_nothing(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "six.py").write_text("mine")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "six.py").write_text("theirs")
    with pytest.raises(ConfigurationError, match=r"layers/x/src/six.py would replace"):
        add_own_code(tmp_path / "src", tmp_path / "tree", "layers/x/src")
    assert (tmp_path / "tree" / "six.py").read_text() == "theirs"


def test_the_digest_of_own_code(tmp_path: Path) -> None:
    source = tmp_path / "src"
    assert own_code_digest(source) == own_code_digest(tmp_path / "nowhere")
    source.mkdir()
    seen = {own_code_digest(source)}
    (source / "a.py").write_text("1")
    seen.add(own_code_digest(source))
    (source / "a.py").chmod(0o755)
    seen.add(own_code_digest(source))
    (source / "a.py").rename(source / "b.py")
    seen.add(own_code_digest(source))
    (source / "b.py").write_text("2")
    seen.add(own_code_digest(source))
    assert len(seen) == 5
    (source / "__pycache__").mkdir()
    (source / "__pycache__" / "b.pyc").write_text("")
    (source / "b.py").touch()
    assert own_code_digest(source) in seen
    assert [path.name for path in own_files(source)] == ["b.py"]


# ---- what goes into the zip ----


def test_links_inside_the_layer_stay_links(tmp_path: Path) -> None:
    (tmp_path / "lib.so.1").write_text("x")
    (tmp_path / "lib.so").symlink_to("lib.so.1")
    found = {source.path: source for source in sources(tmp_path, "python")}
    assert found["python/lib.so"].link
    assert found["python/lib.so"].content == b"lib.so.1"


@pytest.mark.parametrize("target", ["/etc/passwd", "../outside", "gone"])
def test_links_that_leave_the_layer_are_refused(tmp_path: Path, target: str) -> None:
    (tmp_path / "outside").write_text("")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "link").symlink_to(target)
    with pytest.raises(ConfigurationError, match="python/link is a link to"):
        sources(tmp_path / "tree", "python")


def test_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigurationError, match="neither a file nor a folder"):
        sources(tmp_path, "python")


def test_executable_is_the_owners_bit(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    (tmp_path / "run").chmod(0o700)
    (tmp_path / "data").write_text("")
    (tmp_path / "data").chmod(0o600)
    assert {source.path: source.executable for source in sources(tmp_path, "p")} == {"p/run": True, "p/data": False}
