"""Suspicious files: each kind is found by what it is, nothing that belongs in a tree is, and no secret is repeated."""

from __future__ import annotations

import base64
import csv
import json
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import sha256, sha512
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerkit.archiving import tree_digest, write_zip
from layerkit.suspects import KINDS, Suspect, suspects
from layerkit.trees import sources


def row_of(content: bytes, algorithm: str = "sha256") -> tuple[str, str]:
    digest = {"sha256": sha256, "sha512": sha512}[algorithm](content).digest()
    return f"{algorithm}={base64.urlsafe_b64encode(digest).rstrip(b'=').decode()}", str(len(content))


def install(
    tree: Path, name: str, files: Mapping[str, bytes], rows: Mapping[str, tuple[str, str]] | None = None
) -> Path:
    """A distribution as it lies in a tree, whose RECORD says what is there, except for ``rows``."""
    info = tree / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    content = {**files, f"{info.name}/METADATA": f"Name: {name}\nVersion: 1.0\n".encode()}
    for path, data in content.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_bytes(data)
    recorded = {path: row_of(data) for path, data in content.items()} | dict(rows or {})
    with (info / "RECORD").open("w", newline="") as file:
        csv.writer(file).writerows([*((path, *row) for path, row in recorded.items()), (f"{info.name}/RECORD", "", "")])
    for there in [tree, *tree.rglob("*")]:  # whatever the umask is
        there.chmod(0o755 if there.is_dir() else 0o644)
    return info


def found(tree: Path, own: tuple[str, ...] = ()) -> list[tuple[str, str, int]]:
    return [(suspect.kind, suspect.path, suspect.line) for suspect in suspects(tree, own, jobs=2)]


@contextmanager
def one_file(name: str, content: bytes) -> Iterator[Path]:
    """A tree with one file; hypothesis needs one for each example."""
    with TemporaryDirectory() as folder:
        tree = Path(folder) / "python"
        (tree / name).parent.mkdir(parents=True)
        (tree / name).write_bytes(content)
        (tree / name).chmod(0o644)
        for above in (tree, (tree / name).parent):
            above.chmod(0o755)
        yield tree


def kinds(content: bytes, name: str = "data.bin") -> list[tuple[str, str]]:
    """The kinds and words for one file of that content."""
    with one_file(name, content) as tree:
        return [(suspect.kind, suspect.what) for suspect in suspects(tree, [name])]


# ---- what belongs in a tree ----


def pem(label: str, size: int = 1600) -> bytes:
    body = base64.b64encode(b"".join(sha512(f"{label} {number}".encode()).digest() for number in range(size // 64)))
    lines = [body[start : start + 64] for start in range(0, len(body), 64)]
    return b"\n".join([f"-----BEGIN {label}-----".encode(), *lines, f"-----END {label}-----\n".encode()])


def test_a_tree_as_it_is_built_has_nothing_suspicious(tmp_path: Path) -> None:
    install(
        tmp_path,
        "thing",
        {
            "thing/__init__.py": b"AWS_EXAMPLE = 'AKIAIOSFODNN7EXAMPLE'\n",
            "thing/cacert.pem": pem("CERTIFICATE") * 3,
            "thing/public.pem": pem("PUBLIC KEY") + pem("RSA PUBLIC KEY"),
            "thing/lib.so": b"\x7fELF" + bytes(100),
            "thing/.env.example": b"PASSWORD=change-me\n",
            "thing/__pycache__/__init__.cpython-313.pyc": b"\xf3\r\r\n",
            "thing/empty.py": b"",
            "bin/tool": b"#!/var/lang/bin/python3.13\n",
        },
        {"thing/__pycache__/__init__.cpython-313.pyc": ("", "")},
    )
    (tmp_path / "bin" / "tool").chmod(0o755)
    (tmp_path / "thing" / "alias.py").symlink_to("__init__.py")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "code.py").write_text("")
    (tmp_path / "own" / "__pycache__").mkdir()
    (tmp_path / "own" / "__pycache__" / "code.cpython-311.pyc").write_bytes(b"")
    assert found(tmp_path, ("own/code.py", "thing/alias.py")) == []


# ---- secrets ----


@pytest.mark.parametrize("label", ["PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY", "OPENSSH PRIVATE KEY"])
@pytest.mark.parametrize("name", ["data.txt", "logo.png", "thing/test_thing.py", "cacert.pem"])
def test_a_private_key_is_found_in_any_file(label: str, name: str) -> None:
    before = b"KEY = '''\n" if name.endswith(".py") else b""
    with one_file(name, before + pem(label)) as tree:
        line = 2 if before else 1
        assert suspects(tree, [name]) == (Suspect(name, line, "secret", "a private key"),)


def test_a_private_key_among_certificates_is_found() -> None:
    content = pem("CERTIFICATE") * 2 + pem("PRIVATE KEY") + pem("CERTIFICATE")
    with one_file("cacert.pem", content) as tree:
        ((kind, _, line),) = found(tree, ("cacert.pem",))
    assert (kind, content.splitlines()[line - 1]) == ("secret", b"-----BEGIN PRIVATE KEY-----")


LETTERS = base64.b64encode(sha512(b"letters").digest() * 2).decode().replace("+", "x").replace("/", "y")
CREDENTIALS = {
    "AWS": "aws_access_key_id = AKIA" + "ABCDEFGH23456723",
    "AWS's secret": f"AWS_SECRET_ACCESS_KEY={LETTERS[:40]}",
    "Google Cloud": json.dumps({"type": "service_account", "private_key": pem("PRIVATE KEY").decode()}),
    "Azure": f"DefaultEndpointsProtocol=https;AccountName=me;AccountKey={LETTERS[:86]}==;",
    "GitHub": f"token: ghp_{LETTERS[:36]}",
    "Slack": "xox" + f"b-123456789012-1234567890123-{LETTERS[:24]}",
    "Stripe": "sk" + f"_live_{LETTERS[:24]}",
}


@pytest.mark.parametrize("issuer", CREDENTIALS)
def test_credentials_are_found_in_any_file_and_not_repeated(issuer: str) -> None:
    with one_file("settings.json", b"{}\n\n" + CREDENTIALS[issuer].encode()) as tree:
        (suspect,) = suspects(tree, ["settings.json"])
    assert (suspect.path, suspect.kind, suspect.line, suspect.level) == ("settings.json", "secret", 3, "critical")
    said = repr(suspect)
    secret = CREDENTIALS[issuer]
    assert not [at for at in range(len(secret) - 9) if secret[at : at + 10] in said]


def der(tag: int, *parts: bytes) -> bytes:
    content = b"".join(parts)
    if len(content) < 0x80:
        return bytes([tag, len(content)]) + content
    length = len(content).to_bytes(2, "big")
    return bytes([tag, 0x82]) + length + content


def number(value: int, size: int = 0) -> bytes:
    return der(2, value.to_bytes(size or 1, "big"))


def identifier(*octets: int) -> bytes:
    return der(6, bytes(octets))


BIG = number(0xC0FFEE << 2000, 257)
RSA = identifier(0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x01, 0x01)
CURVES = identifier(0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x02, 0x01)
ED25519 = identifier(0x2B, 0x65, 0x70)
PBES2 = identifier(0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x05, 0x0D)
DATA = identifier(0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x07, 0x01)

BINARY_KEYS = {
    "RSA in PKCS#8": der(0x30, number(0), der(0x30, RSA, b"\x05\x00"), der(4, bytes(300))),
    "a curve in PKCS#8": der(0x30, number(0), der(0x30, CURVES, ED25519), der(4, bytes(60))),
    "Ed25519 in PKCS#8": der(0x30, number(0), der(0x30, ED25519), der(4, bytes(34))),
    "encrypted PKCS#8": der(0x30, der(0x30, PBES2, der(0x30)), der(4, bytes(300))),
    "RSA in PKCS#1": der(0x30, number(0), BIG, number(65537, 3), BIG),
    "a curve in SEC 1": der(0x30, number(1), der(4, bytes(32)), der(0xA0, ED25519)),
}


@pytest.mark.parametrize("form", BINARY_KEYS)
def test_private_keys_without_armor(form: str) -> None:
    key = BINARY_KEYS[form]
    assert kinds(key) == [("secret", "a private key (DER)")]
    assert kinds(key[:-1]) == []  # the file has to be the key, as a whole
    assert kinds(key + b"\0") == []


@pytest.mark.parametrize(
    "content",
    [
        der(0x30, der(0x30, RSA, b"\x05\x00"), der(3, bytes(270))),  # a public key
        der(0x30, der(0x30, CURVES, ED25519), der(3, bytes(66))),
        der(0x30, der(0x30, der(0xA0, number(2)), BIG, der(0x30, RSA)), der(3, bytes(256))),  # a certificate
        der(0x30, BIG, number(65537, 3)),  # a public key in PKCS#1
        der(0x30, number(0), number(1)),
        b"0",
        b"0\x84\xff",
        b"",
    ],
)
def test_what_is_no_private_key_without_armor(content: bytes) -> None:
    assert kinds(content) == []


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (der(0x30, number(3), der(0x30, DATA, der(0xA0, der(4, bytes(500))))), "a PKCS#12 keystore"),
        (b"\x30\x80\x02\x01\x03\x30\x80" + DATA + bytes(50), "a PKCS#12 keystore"),
        (b"\xfe\xed\xfe\xed\x00\x00\x00\x02\x00\x00\x00\x01", "a Java keystore"),
        (b"\xce\xce\xce\xce\x00\x00\x00\x02\x00\x00\x00\x01", "a Java keystore (JCEKS)"),
        (b"\x03\xd9\xa2\x9a\x67\xfb\x4b\xb5\x01\x00", "a KeePass database"),
    ],
)
def test_keystores_by_content(content: bytes, what: str) -> None:
    assert kinds(content, "picture.jpg") == [("keystore", what)]


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        (".env", "# settings\n\nDEBUG=1\n", 3),
        ("thing/.env", "export TOKEN='x'\n", 1),
        (".env.production", "A = b\n", 1),
        ("settings/production.env", "# ours\nA=b\n", 2),
        (".envrc", "layout python\nexport TOKEN=x\n", 2),
        (".netrc", "machine here\n  login me\n  password secret\n", 3),
        ("_netrc", "default login me password secret\n", 1),
        ("notes.txt", "# mine\nmachine here login me password secret\n", 1),
        (".pypirc", "[pypi]\n\npassword = secret\n", 3),
        (".npmrc", "registry=x\n//x/:_authToken=abcdef\n", 2),
        (".git-credentials", "https://me:secret@host.example\n", 1),
        ("pip.conf", "[global]\nindex-url = https://me:secret@host.example/simple\n", 2),
        (".pgpass", "# mine\nhost:5432:db:me:secret\n", 2),
        (".dockercfg", '{"x": {"auth": "bWU6c2VjcmV0"}}', 1),
        ("config.json", '{"auths": {"x": {\n"auth": "bWU6c2VjcmV0"}}}', 1),
    ],
)
def test_files_that_hold_passwords(name: str, content: str, line: int) -> None:
    with one_file(name, content.encode()) as tree:
        assert found(tree, (name,)) == [("credentials-file", name, line)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (".env", "# nothing set\n\nEMPTY=\n"),
        (".env.example", "TOKEN=put yours here\n"),
        (".env.sample", "TOKEN=x\n"),
        ("example.env", "TOKEN=x\n"),
        (".envrc", "layout python\n"),
        ("environment.py", "DEBUG=1\n"),
        (".envrc.py", "DEBUG=1\n"),
        (".netrc", "machine here login me\n"),
        ("netrc.py", "# machine here login me password secret\nimport netrc\n"),
        (".pypirc", "[distutils]\nindex-servers = pypi\n"),
        (".npmrc", "//x/:_authToken=${NPM_TOKEN}\n# _authToken=x\n"),
        ("pip.conf", "[global]\nindex-url = https://host.example/simple\n"),
        ("config.json", '{"auth": "bWU6c2VjcmV0"}'),
    ],
)
def test_files_that_hold_none(name: str, content: str) -> None:
    assert kinds(content.encode(), name) == []


# Beginnings that take long for a careless pattern.
HARD = st.sampled_from([b" \n" * 3000, b"#\n" * 3000, b"machine " * 2000, b"A=" * 3000, b"0\x82" * 3000, b"a:" * 3000])


@given(content=st.binary(max_size=200) | HARD, name=st.sampled_from([".env", ".netrc", ".pgpass", "pip.conf", "x"]))
def test_any_content_gives_kinds_and_lines_that_are_there(content: bytes, name: str) -> None:
    with one_file(name, content) as tree:
        for suspect in suspects(tree, [name]):
            assert suspect.level in {"critical", "high", "medium", "low"}
            assert suspect.path == name
            assert 0 <= suspect.line <= content.count(b"\n") + 1


# ---- modes, links, what is no file ----


def test_setuid_and_setgid(tmp_path: Path) -> None:
    install(tmp_path, "thing", {"one": b"", "two": b"", "three": b""})
    (tmp_path / "one").chmod(0o4755)
    (tmp_path / "two").chmod(0o2755)
    (tmp_path / "three").chmod(0o755)
    assert [(suspect.path, suspect.kind, suspect.what) for suspect in suspects(tmp_path)] == [
        ("one", "setuid", "setuid: mode 4755"),
        ("two", "setuid", "setgid: mode 2755"),
    ]


def test_a_folder_that_passes_its_group_on_is_not_setgid(tmp_path: Path) -> None:
    install(tmp_path, "thing", {"thing/one.py": b""})
    (tmp_path / "thing").chmod(0o2755)
    assert found(tmp_path) == []


def test_files_and_folders_that_everyone_can_change(tmp_path: Path) -> None:
    install(tmp_path, "thing", {"one.py": b"", "open/two.py": b"", "open/deep/three.py": b"", "sticky/four.py": b""})
    (tmp_path / "one.py").chmod(0o646)
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "open" / "two.py").chmod(0o666)  # says no more than its folder's mode
    (tmp_path / "open" / "deep").chmod(0o777)
    (tmp_path / "sticky").chmod(0o1777)
    assert found(tmp_path) == [("world-writable", "one.py", 0), ("world-writable", "open/", 0)]
    tmp_path.chmod(0o777)
    assert found(tmp_path) == [("world-writable", "./", 0)]


@pytest.mark.parametrize("target", ["/etc/passwd", "../outside.py", "sub/../../outside.py", "nowhere/../../x", "../.."])
def test_links_that_lead_out(tmp_path: Path, target: str) -> None:
    (tmp_path / "outside.py").write_text("")
    tree = tmp_path / "tree"
    install(tree, "thing", {"sub/one.py": b""})
    (tree / "link").symlink_to(target)
    assert found(tree, ("link",)) == [("link-out", "link", 0)]


def test_links_inside_are_followed_nowhere(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "key.pem").write_bytes(pem("PRIVATE KEY"))
    tree = tmp_path / "tree"
    install(tree, "thing", {"sub/one.py": b"", "two.py": b""})
    (tree / "sub" / "up").symlink_to("..")  # leads to where it lies
    (tree / "alias").symlink_to("two.py")
    (tree / "out").symlink_to(outside)
    (tree / "around").symlink_to("out/key.pem")  # inside by its text, outside where it ends
    own = ("sub/up", "alias", "out", "around")
    assert found(tree, own) == [("link-out", "around", 0), ("link-out", "out", 0)]
    # A folder that is reached through a link is its own tree.
    (tmp_path / "alias").symlink_to(tree)
    assert found(tmp_path / "alias", own) == found(tree, own)


def test_what_is_neither_file_nor_folder_nor_link_is_not_opened(tmp_path: Path) -> None:
    install(tmp_path, "thing", {"one.py": b""})
    os.mkfifo(tmp_path / "pipe", 0o600)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.path.relpath(tmp_path / "socket"))
        (tmp_path / "socket").chmod(0o600)
        assert [(suspect.path, suspect.what) for suspect in suspects(tmp_path, ["pipe", "socket"])] == [
            ("pipe", "a pipe"),
            ("socket", "a socket"),
        ]


def test_a_device(tmp_path: Path) -> None:
    install(tmp_path, "thing", {"one.py": b""})
    try:
        os.mknod(tmp_path / "null", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("only root makes devices")
    assert found(tmp_path, ("null",)) == [("no-file", "null", 0)]


# ---- RECORD ----


def test_a_file_that_was_changed(tmp_path: Path) -> None:
    install(tmp_path, "thing", {"one.py": b"1", "two.py": b"2", "three.py": b"3"})
    (tmp_path / "one.py").write_bytes(b"9")
    (tmp_path / "two.py").write_bytes(b"22")
    assert [(suspect.kind, suspect.path, suspect.what) for suspect in suspects(tmp_path)] == [
        ("changed", "one.py", "its hash is not that in the RECORD of thing"),
        ("changed", "two.py", "it has 2 bytes, 1 in the RECORD of thing"),
    ]


@pytest.mark.parametrize(
    "row", [("", ""), ("", "1"), ("md5=xMpCOKC5I4INzFCab3WEmw", "1"), ("sha256", "1"), ("sha256=", "1"), ("x", "")]
)
def test_a_row_that_holds_a_file_against_nothing(tmp_path: Path, row: tuple[str, str]) -> None:
    install(tmp_path, "thing", {"one.py": b"1"}, {"one.py": row})
    assert found(tmp_path) == [("changed", "one.py", 0)]


def test_other_digests_and_their_spellings(tmp_path: Path) -> None:
    digest, size = row_of(b"2", "sha512")
    install(
        tmp_path, "thing", {"one.py": b"1", "two.py": b"2"}, {"one.py": row_of(b"1"), "two.py": (digest + "==", size)}
    )
    assert found(tmp_path) == []


def test_a_size_need_not_be_there(tmp_path: Path) -> None:
    install(tmp_path, "thing", {"one.py": b"1", "two.py": b"2"}, {"one.py": (row_of(b"1")[0], ""), "two.py": ("", "")})
    assert found(tmp_path) == [("changed", "two.py", 0)]


def test_a_file_of_two_distributions_is_one_of_both(tmp_path: Path) -> None:
    """An installer leaves either; a file that is neither was changed."""
    install(tmp_path, "one", {"shared.py": b"1"})
    install(tmp_path, "two", {"shared.py": b"2"})
    assert found(tmp_path) == []
    (tmp_path / "shared.py").write_bytes(b"3")
    assert found(tmp_path) == [("changed", "shared.py", 0)]


def test_a_link_in_place_of_a_file(tmp_path: Path) -> None:
    install(tmp_path, "thing", {"one.py": b"1", "two.py": b"1"})
    (tmp_path / "two.py").unlink()
    (tmp_path / "two.py").symlink_to("one.py")
    assert [(suspect.kind, suspect.what) for suspect in suspects(tmp_path)] == [
        ("changed", "a link, and a file in the RECORD of thing")
    ]


def test_files_that_nobody_answers_for(tmp_path: Path) -> None:
    install(tmp_path, "thing", {"thing/one.py": b"", "space/thing/two.py": b""})
    for path in (
        "extra.py",
        "thing/extra.py",
        "whole/a.py",
        "whole/deep/b.py",
        "space/other/c.py",
        "mod.pyc",
        "own.py",
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("")
    (tmp_path / "thing" / "__pycache__").mkdir()
    (tmp_path / "thing" / "__pycache__" / "one.cpython-313.pyc").write_bytes(b"")
    (tmp_path / "thing-1.0.dist-info" / "extra.json").write_text("")
    reported = suspects(tmp_path, ["own.py"])
    assert {suspect.kind for suspect in reported} == {"unclaimed"}
    assert {suspect.path: suspect.what for suspect in reported} == {
        "extra.py": "a file in no distribution's RECORD",
        "mod.pyc": "a file in no distribution's RECORD",
        "space/other/": "a folder with 1 file in no distribution's RECORD",
        "thing-1.0.dist-info/extra.json": "a file in no distribution's RECORD",
        "thing/extra.py": "a file in no distribution's RECORD",
        "whole/": "a folder with 2 files in no distribution's RECORD",
    }


def test_rows_without_a_file(tmp_path: Path) -> None:
    install(tmp_path, "thing", {"one.py": b"1", "gone.py": b"2"})
    (tmp_path / "gone.py").unlink()
    (suspect,) = suspects(tmp_path)
    assert suspect == Suspect("gone.py", 0, "missing", "the RECORD of thing has it, and it is not there")


def test_a_folder_in_place_of_a_file(tmp_path: Path) -> None:
    install(tmp_path, "thing", {"one.py": b"1"})
    (tmp_path / "one.py").unlink()
    (tmp_path / "one.py").mkdir()
    assert found(tmp_path) == [("missing", "one.py", 0)]


def test_a_distribution_without_a_record(tmp_path: Path) -> None:
    info = install(tmp_path, "thing", {"thing/one.py": b""})
    install(tmp_path, "other", {"other.py": b""})
    (info / "RECORD").unlink()
    assert found(tmp_path) == [
        ("unclaimed", "thing-1.0.dist-info/", 0),
        ("record", "thing-1.0.dist-info/RECORD", 0),
        ("unclaimed", "thing/", 0),
    ]


@pytest.mark.parametrize("text", ["../outside.py,,\n", "/etc/passwd,,\n", "\udcff,,\n", 'a,"' + "x" * 200_000 + '",\n'])
def test_a_record_that_can_not_be_used_is_told_and_the_rest_is_looked_at(tmp_path: Path, text: str) -> None:
    info = install(tmp_path, "thing", {"one.py": pem("PRIVATE KEY")})
    (info / "RECORD").write_bytes(text.encode(errors="surrogateescape"))
    assert found(tmp_path) == [("record", "./", 0), ("secret", "one.py", 1)]


def test_a_record_that_is_a_pipe_or_a_link_is_not_read(tmp_path: Path) -> None:
    info = install(tmp_path, "thing", {"one.py": b""})
    (info / "RECORD").unlink()
    os.mkfifo(info / "RECORD", 0o600)
    assert [kind for kind, _, _ in found(tmp_path)] == ["no-file", "record"]
    (info / "RECORD").unlink()
    (info / "RECORD").symlink_to("METADATA")
    assert found(tmp_path) == [("record", "thing-1.0.dist-info/RECORD", 0)]


def test_a_dist_info_that_is_no_folder(tmp_path: Path) -> None:
    install(tmp_path, "thing", {"one.py": b""})
    (tmp_path / "odd-1.0.dist-info").write_text("")
    (tmp_path / "odd-1.0.dist-info").chmod(0o644)
    assert found(tmp_path) == [("record", "odd-1.0.dist-info", 0)]


def test_a_tree_that_is_not_there_is_no_clean_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        suspects(tmp_path / "nowhere")


def test_names_that_are_no_text(tmp_path: Path) -> None:
    install(tmp_path, "thing", {"one.py": b""})
    name = b"odd\xff\n.py".decode(errors="surrogateescape")
    (tmp_path / name).write_bytes(pem("PRIVATE KEY"))
    (tmp_path / name).chmod(0o644)
    assert found(tmp_path) == [("unclaimed", name, 0), ("secret", name, 1)]


FILES = st.dictionaries(
    st.sampled_from(["a.py", "b/c.py", "b/d/e.py", "f/g.py", "f/__pycache__/g.cpython-313.pyc"]),
    st.sampled_from([b"", b"1", b"2"]),
)


@given(recorded=FILES, there=FILES, own=st.sets(st.sampled_from(["a.py", "b/c.py", "f/g.py"])))
def test_every_file_and_every_row_is_accounted_for(
    tmp_path_factory: pytest.TempPathFactory, recorded: dict[str, bytes], there: dict[str, bytes], own: set[str]
) -> None:
    tree = tmp_path_factory.mktemp("tree")
    install(tree, "thing", recorded)
    for path in recorded:
        (tree / path).unlink()
    for path, content in there.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_bytes(content)
        (tree / path).chmod(0o644)
    reported = suspects(tree, own)
    of = {kind.name: {suspect.path for suspect in reported if suspect.kind == kind.name} for kind in KINDS}
    assert of["missing"] == recorded.keys() - there.keys()
    assert of["changed"] == {path for path in recorded.keys() & there.keys() if recorded[path] != there[path]}
    nobodys = {path for path in there.keys() - recorded.keys() - own if "__pycache__" not in path}
    told = {path for path in nobodys if path in of["unclaimed"]}
    inside = {
        path for path in nobodys for folder in of["unclaimed"] if folder.endswith("/") and path.startswith(folder)
    }
    assert told | inside == nobodys
    assert not told & inside
    # A folder is told only where nothing below it is anybody's.
    assert not any(
        path.startswith(folder) for path in {*recorded, *own} for folder in of["unclaimed"] if folder[-1] == "/"
    )


def test_results_do_not_depend_on_how_many_read_at_a_time(tmp_path: Path) -> None:
    install(tmp_path, "thing", {f"m{number}.py": pem("PRIVATE KEY") for number in range(20)})
    one = suspects(tmp_path, jobs=1)
    assert len(one) == 20
    assert suspects(tmp_path, jobs=4) == one


# ---- the whole ----


def digest_of(tree: Path) -> str:
    """As a build's manifest has it."""
    with ThreadPoolExecutor(1) as pool:
        written = write_zip(tree.parent / "layer.zip", sources(tree, "python"), pool=pool, cache=None)
    return tree_digest(written.entries)


@pytest.fixture
def built(tmp_path: Path) -> tuple[Path, str]:
    """A tree with own code, bytecode of the build's kind (with a row, and without), an executable file, and a link."""
    tree = tmp_path / "python"
    compiled = bytes(4) + b"\x03\0\0\0" + b"compiled"
    install(
        tree,
        "thing",
        {"thing/one.py": b"1", "thing/__pycache__/one.cpython-39.pyc": compiled},
        {"thing/__pycache__/one.cpython-39.pyc": ("", "")},
    )
    (tree / "own.py").write_text("WHO = 1")
    (tree / "own.py").chmod(0o755)
    (tree / "alias.py").symlink_to("own.py")
    (tree / "__pycache__").mkdir(mode=0o755)
    (tree / "__pycache__" / "own.cpython-39.pyc").write_bytes(compiled)
    return tree, digest_of(tree)


OWN = ("own.py", "alias.py")


def test_a_tree_as_its_manifest_has_it(built: tuple[Path, str]) -> None:
    tree, expected = built
    assert suspects(tree, OWN, 2, expected) == ()
    assert [one.kind for one in suspects(tree, OWN, 2, "0" * 64)] == ["changed"]


def _with_its_record(tree: Path) -> None:
    (tree / "thing" / "one.py").write_bytes(b"evil")
    record = tree / "thing-1.0.dist-info" / "RECORD"
    row = ",".join(row_of(b"1"))
    assert row in record.read_text()
    record.write_text(record.read_text().replace(row, ",".join(row_of(b"evil"))))


def _unchecked(tree: Path) -> None:
    planted = bytes(4) + b"\x01\0\0\0" + b"evil"
    (tree / "thing" / "__pycache__" / "two.cpython-39.pyc").write_bytes(planted)


def _linked(tree: Path) -> None:
    (tree / "alias.py").unlink()
    (tree / "alias.py").symlink_to("thing/one.py")


WAYS: dict[str, Callable[[Path], object]] = {
    "file and RECORD": _with_its_record,
    "bytecode": lambda tree: (tree / "thing" / "__pycache__" / "one.cpython-39.pyc").write_bytes(b"evil"),
    "bytecode by time": lambda tree: (tree / "thing" / "__pycache__" / "one.cpython-39.pyc").write_bytes(bytes(99)),
    "bytecode of own code": lambda tree: (tree / "__pycache__" / "own.cpython-39.pyc").write_bytes(b"evil"),
    "bytecode by time of own code": lambda tree: (tree / "__pycache__" / "own.cpython-39.pyc").write_bytes(bytes(99)),
    "planted bytecode": _unchecked,
    "bytecode that is gone": lambda tree: (tree / "__pycache__" / "own.cpython-39.pyc").unlink(),
    "own code": lambda tree: (tree / "own.py").write_text("evil"),
    "a mode": lambda tree: (tree / "own.py").chmod(0o644),
    "a link": _linked,
    "a name that is no text": lambda tree: Path(os.fsdecode(bytes(tree) + b"/__pycache__/\xff.pyc")).write_bytes(b""),
}


@pytest.mark.parametrize("way", WAYS)
def test_what_no_record_shows_is_seen_as_a_whole(built: tuple[Path, str], way: str) -> None:
    tree, expected = built
    WAYS[way](tree)
    assert suspects(tree, OWN) == (), "nothing but the digest shows it"
    assert suspects(tree, OWN, 2, expected) == (
        Suspect("./", 0, "changed", "the tree is not as it was built: inv validate says which files"),
    )


def test_where_a_file_explains_it_the_file_is_told_alone(built: tuple[Path, str]) -> None:
    tree, expected = built
    (tree / "thing" / "one.py").write_bytes(b"2")
    assert [(one.path, one.kind) for one in suspects(tree, OWN, 2, expected)] == [("thing/one.py", "changed")]


def test_bytecode_that_imports_left_is_told_as_that(built: tuple[Path, str]) -> None:
    tree, expected = built
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [sys.executable, "-c", "import thing.one, own"]
    subprocess.run(command, cwd=tree, env=environment, check=True)
    assert suspects(tree, OWN) == ()
    (one,) = suspects(tree, OWN, 2, expected)
    assert (one.path, one.kind, one.level) == ("./", "bytecode", "low")
    assert one.what.startswith("2 files of bytecode that are no part of the build, as imports from the tree leave them")
