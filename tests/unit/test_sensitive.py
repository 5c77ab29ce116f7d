"""Secrets by content: each form that leaks take is found, what only talks about them is not, and none is repeated."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from hashlib import sha512
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layerkit.contents import Secret, read_contents
from layerkit.sensitive import secrets_in


def text_of(length: int, seed: str = "a key of the tests") -> str:
    """Base64 as a key's body has it, the same in each run."""
    data = b"".join(sha512(f"{seed} {number}".encode()).digest() for number in range(length // 64 + 1))
    return base64.b64encode(data).decode()[:length]


def armored(label: str, *, headers: str = "", size: int = 1600, width: int = 64) -> str:
    """A text as ssh-keygen, openssl or gpg write it."""
    body = text_of(size, label)
    lines = [body[start : start + width] for start in range(0, size, width)]
    return f"-----BEGIN {label}-----\n{headers}" + "\n".join(lines) + f"\n-----END {label}-----\n"


RSA = armored("RSA PRIVATE KEY")
ENCRYPTED = armored(
    "RSA PRIVATE KEY",
    headers="Proc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,6B1E0A26F2F7CB5F3C8C1B1E4E0DA6E0\n\n",
)
SHORT = text_of(16).upper().translate(str.maketrans("0189+/", "ABCDEF"))

KEYS = {
    "PKCS#1": RSA,
    "PKCS#8": armored("PRIVATE KEY"),
    "PKCS#8, encrypted": armored("ENCRYPTED PRIVATE KEY"),
    "Ed25519 in PKCS#8": armored("PRIVATE KEY", size=64),
    "elliptic curve": armored("EC PRIVATE KEY", size=164),
    "DSA": armored("DSA PRIVATE KEY"),
    "OpenSSH": armored("OPENSSH PRIVATE KEY", width=70),
    "encrypted, with headers": ENCRYPTED,
    "PGP": armored("PGP PRIVATE KEY BLOCK", headers="\n"),
    "SSH2": armored("SSH2 ENCRYPTED PRIVATE KEY", headers="Comment: mine\n")
    .replace("-----", "----")
    .replace("---BEGIN SSH2 ENCRYPTED PRIVATE KEY----", "--- BEGIN SSH2 ENCRYPTED PRIVATE KEY ----"),
    "with an example's word in a header": armored("RSA PRIVATE KEY", headers="Comment: EXAMPLE\n\n"),
    "PGP with a version": armored("PGP PRIVATE KEY BLOCK", headers="Version: GnuPG v2\nComment: mine\n\n"),
}

PUTTY = (
    "PuTTY-User-Key-File-3: ssh-ed25519\nEncryption: none\nComment: mine\nPublic-Lines: 2\n"
    f"{text_of(64)}\n{text_of(16)}\nPrivate-Lines: 1\n{text_of(44)}\nPrivate-MAC: 0123\n"
)

FORMS: dict[str, Callable[[str], str]] = {
    "Windows": lambda text: text.replace("\n", "\r\n"),
    "indented": lambda text: "".join(f"    {line}\n" for line in text.splitlines()),
    "JSON": lambda text: json.dumps({"type": "service_account", "private_key": text}),
    "JSON with CRLF": lambda text: json.dumps({"private_key": text.replace("\n", "\r\n")}),
    "JSON in JSON": lambda text: json.dumps({"body": json.dumps({"private_key": text})}),
    "a shell's": lambda text: "export KEY='" + text + "'",
    "an .env file's": lambda text: 'KEY="' + text.replace("\n", "\\n") + '"',
    "Python, a line each": lambda text: "KEY = (\n" + "".join(f"    {line + chr(10)!r}\n" for line in text.split("\n")),
    "Java, put together": lambda text: " +\n".join(f'    "{line}\\n"' for line in text.split("\n")),
    "without an end": lambda text: text[:200],
}


def found(text: str) -> list[tuple[str, int]]:
    return list(secrets_in(text.encode()))


@pytest.mark.parametrize("kind", KEYS)
def test_private_keys_of_each_kind(kind: str) -> None:
    assert found(KEYS[kind]) == [("a private key", 1)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["PKCS#8", "OpenSSH", "encrypted, with headers"])
def test_private_keys_in_each_form(kind: str, form: str) -> None:
    ((what, _),) = found(FORMS[form](KEYS[kind]))
    assert what == "a private key"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (f"AWS_ACCESS_KEY_ID=ASIA{SHORT}", "an AWS access key"),
        ("token = github_pat_" + "a1B2" * 20 + "c3", "a GitHub token"),
        ("glpat-" + "a1B2" * 7 + ".01.abc", "a GitLab token"),
        (f"AWS_ACCESS_KEY_ID=AKIA{SHORT}", "an AWS access key"),
        (f"[default]\naws_access_key_id = AKIA{SHORT}", "an AWS access key"),
        (f"s3://AKIA{SHORT}:{text_of(40)}@bucket/", "an AWS access key"),
        (f"https://x.test/?AWSAccessKeyId=AKIA{SHORT}&Expires=1", "an AWS access key"),
        (f"aws_secret_access_key = {text_of(40)}", "an AWS secret access key"),
        (f"aws_secret_access_key='{text_of(40)}',", "an AWS secret access key"),
        (f"export AWS_SECRET_ACCESS_KEY={text_of(40)}", "an AWS secret access key"),
        (json.dumps({"Credentials": {"SecretAccessKey": text_of(40)}}), "an AWS secret access key"),
        (f"token: ghp_{'aB3' * 12}", "a GitHub token"),
        (f"https://oauth2:gho_{'aB3' * 12}@github.com/", "a GitHub token"),
        (f"GITLAB=glpat-{'aB3-_' * 4}", "a GitLab token"),
        ("xox" + "b-123456789012-1234567890123-" + "aB3" * 8, "a Slack token"),
        ("key = 'sk" + f"_live_{'aB3' * 8}'", "a Stripe key"),
        (f"password = pypi-AgEIcHlwaS5vcmc{text_of(60).replace('+', '-').replace('/', '_')}", "a PyPI token"),
        (f"AccountName=x;AccountKey={text_of(86)}==;", "an Azure storage key"),
        (f"Endpoint=sb://x/;SharedAccessKeyName=y;SharedAccessKey={text_of(43)}=", "an Azure access key"),
        (f"token: ghs_{'aB3' * 12}", "a GitHub token"),
        ("https://hooks.slack.com/services/T0123ABCD/B0123ABCD/" + "aB3" * 8, "a Slack webhook"),
        (f"//registry.test/:_authToken=npm_{'aB3' * 12}", "an npm token"),
        (f"key={'AIza'}{'aB3-_' * 7}&x", "a Google API key"),
        (f'"client_secret": "GOCSPX-{"aB3-" * 7}"', "a Google client secret"),
        (f"ANTHROPIC_API_KEY=sk-ant-api03-{'aB3-_' * 18}AA", "an Anthropic key"),
        (f"OPENAI_API_KEY=sk-proj-{'aB3-_' * 20}", "an OpenAI key"),
        (f"sk-{'aB3x' * 5}T3BlbkFJ{'aB3x' * 5}", "an OpenAI key"),
        (f"HF_TOKEN=hf_{'aB' * 17}", "a Hugging Face token"),
        (f"client-key-data: {base64.b64encode(RSA.encode()).decode()}", "a private key"),
        (f"KEY={base64.b64encode(KEYS['OpenSSH'].encode()).decode()}", "a private key"),
        (f"KEY={base64.b64encode(KEYS['PKCS#8, encrypted'].encode()).decode()}", "a private key"),
        (PUTTY, "a private key (PuTTY)"),
        (PUTTY.replace("\n", "\r\n"), "a private key (PuTTY)"),
        ("(11:private-key(3:rsa(1:n257:", "a private key (GnuPG)"),
        ("(21:protected-private-key(3:ecc(5:curve7:Ed25519", "a private key (GnuPG)"),
        ("Created: 20260101T000000\nKey: (private-key (rsa (n #00CCF4#", "a private key (GnuPG)"),
        ("Key: (protected-private-key (ecc (curve Ed25519)", "a private key (GnuPG)"),
        (f"# created\nAGE-SECRET-KEY-1{'Q7Z' * 19}A", "a private key (age)"),
    ],
)
def test_credentials_in_the_form_that_their_issuer_gives_them(text: str, what: str) -> None:
    assert [name for name, _ in found(text)] == [what]


@pytest.mark.parametrize(
    "text",
    [
        "",
        armored("CERTIFICATE") * 3,
        armored("PUBLIC KEY"),
        armored("RSA PUBLIC KEY"),
        armored("PGP PUBLIC KEY BLOCK", headers="\n"),
        f"ssh-ed25519 {text_of(68)} me@here",
        "# A file that begins with -----BEGIN RSA PRIVATE KEY----- is a key.",
        "A key looks like this:\n\n-----BEGIN PRIVATE KEY-----\n...\n-----END PRIVATE KEY-----\n",
        "-----BEGIN PRIVATE KEY-----\nMIIEow...\n-----END PRIVATE KEY-----",
        "-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n" + armored("CERTIFICATE"),
        'BEGIN = b"-----BEGIN OPENSSH PRIVATE KEY-----\\n"\nEND = b"-----END OPENSSH PRIVATE KEY-----\\n"\n',
        "pem = (\n    b'-----BEGIN PRIVATE KEY-----\\n'\n    + base64.encodebytes(key)\n)",
        "_KEY = re.compile(rb'-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----')",
        "aws_access_key_id = AKIAIOSFODNN7EXAMPLE",
        "aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
        '"AccessKeyId": "AKIAI44QH8DHBEXAMPLE", "SecretAccessKey": "je7MtGbClwBF/2Zp9Utk/h3yCo8nvbEXAMPLEKEY"',
        "aws_secret_access_key = os.environ['AWS_SECRET_ACCESS_KEY']",
        "client(aws_access_key_id='testing', aws_secret_access_key='testing')",
        "def sign(self, aws_secret_access_key=None): ...",
        "An access key begins with AKIA, a GitHub token with ghp_, one of Slack with xoxb-.",
        f"data:font/woff;base64,{text_of(80)}AKIA{SHORT}{text_of(80)}",
        "ghp_tooshort",
        "DefaultEndpointsProtocol=https;AccountKey=...;",
        # What everybody has who runs Microsoft's emulators.
        "AccountName=devstoreaccount1;AccountKey="
        "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==;",
        "AccountEndpoint=https://localhost:8081/;AccountKey="
        "C2y6yDjf5/R+ob0N8A7Cgv30VRDJIWEHLM+4QDU5DE2nQ9nDuVTqobD4b8mGGyPMbIZnqyMsEcaGQy67XIw/Jw==",
        f"-----BEGIN RSA PRIVATE KEY-----\n{text_of(58)}...fvY4+te\n-----END RSA PRIVATE KEY-----\n",
        f"data: {base64.b64encode(armored('CERTIFICATE').encode()).decode()}",
        PUTTY.partition("Private-Lines")[0],
        "(20:shadowed-private-key(3:rsa(1:n257:",
        "(10:public-key(3:rsa(1:n257:",
        "Key: (shadowed-private-key (rsa (n #00CC#",
        "A private-key (RSA or otherwise) is kept in private-key (form).",
        "the_ghs_token = my_ghp_" + "a" * 36,
        f"xhf_{'aB' * 17} hf_{'aB' * 17}_more",
        f"AIza{'a' * 50}",
    ],
)
def test_what_is_no_secret(text: str) -> None:
    assert found(text) == []


def test_each_secret_has_its_line() -> None:
    text = f"one\ntwo\n{RSA}between\n{ENCRYPTED}AWS_ACCESS_KEY_ID=AKIA{SHORT}\n"
    lines = text.splitlines()
    first, second = (number for number, line in enumerate(lines, 1) if line.startswith("-----BEGIN"))
    assert found(text) == [("a private key", first), ("a private key", second), ("an AWS access key", len(lines))]


SECRETS = (*KEYS.values(), f"AKIA{SHORT}", f"aws_secret_access_key={text_of(40)}", f"ghp_{'aB3' * 12}")
SURROUNDINGS = st.binary(max_size=60) | st.sampled_from(
    [b"-----BEGIN PRIVATE KEY-----\n", b"-----BEGIN ", b"AKIA", b"Proc-Type: 4\n", RSA.encode()[:100], b"EXAMPLE "]
)


@given(content=st.binary(max_size=400) | st.lists(SURROUNDINGS, max_size=6).map(b"".join))
def test_any_bytes_give_names_and_lines(content: bytes) -> None:
    for what, line in secrets_in(content):
        assert what.startswith(("a ", "an "))
        assert 1 <= line <= content.count(b"\n") + 1


@settings(max_examples=200)
@given(before=SURROUNDINGS, secret=st.sampled_from(SECRETS), after=SURROUNDINGS)
def test_a_planted_secret_is_found_whatever_surrounds_it(before: bytes, secret: str, after: bytes) -> None:
    # A line of its own is all it needs: within a longer word there are no tokens.
    assert list(secrets_in(before + b"\n" + secret.encode() + b"\n" + after))


@given(before=st.binary(max_size=60), key=st.sampled_from(list(KEYS.values())), after=st.binary(max_size=60))
def test_a_private_key_needs_not_even_a_line_of_its_own(before: bytes, key: str, after: bytes) -> None:
    assert "a private key" in [what for what, _ in secrets_in(before + key.encode() + after)]


@given(secret=st.sampled_from(SECRETS), before=st.text(max_size=20))
def test_what_is_said_of_a_secret_has_nothing_of_it(secret: str, before: str) -> None:
    said = repr(found(f"{before}\n{secret}"))
    parts = {secret[at : at + 8] for at in range(len(secret) - 8)}
    words = {part for part in parts if " " not in part and "-" not in part and "_" not in part}
    assert words
    assert not [part for part in words if part in said]


def test_a_file_is_read_for_secrets_whatever_its_name(tmp_path: Path) -> None:
    tree = tmp_path / "python"
    tree.mkdir()
    (tree / "logo.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0" + RSA.encode())
    (tree / "server.key").write_text("no key at all\n")
    (tree / "cacert.pem").write_text(armored("CERTIFICATE") * 50)
    (tree / "link").symlink_to("logo.png")  # its content is found where it is
    with (tmp_path / "layer.zip").open("wb") as archive:
        archive.write(b"PK\x05\x06" + bytes(18))  # a zip without entries
    read = read_contents(tree, tmp_path / "layer.zip", "python", jobs=2)
    assert read.secrets == (Secret("logo.png", 3, "a private key"),)


# ---- keys and passwords in other forms ----

JWK = {"kty": "EC", "crv": "P-256", "x": text_of(43, "x").replace("+", "-").replace("/", "_"), "d": "jps" + "Qn4G" * 10}


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(JWK),
        json.dumps(JWK, indent=2),
        json.dumps(dict(reversed(JWK.items()))),
        json.dumps({"keys": json.dumps({"keys": [JWK]})}),
        json.dumps({"keys": json.dumps(dict(reversed(JWK.items())))}),
        repr(JWK),
        repr(dict(reversed(JWK.items()))),
    ],
)
def test_a_key_as_json(text: str) -> None:
    assert [what for what, _ in secrets_in(text.encode())] == ["a private key (JWK)"]


def test_a_public_key_as_json_is_none() -> None:
    public = {name: value for name, value in JWK.items() if name != "d"}
    assert list(secrets_in(json.dumps(public).encode())) == []
    assert list(secrets_in(json.dumps([public, {"d": JWK["d"]}]).encode())) == [], "the two are not of one key"


@pytest.mark.parametrize(
    "address",
    [
        "postgres://app:S3cr3tP4ss@db.prod.internal:5432/app",
        "redis://:kd83hsdfTT@cache/0",
        "mongodb+srv://u:zW3rLongOne@cluster0.abcde.mongodb.net/x",
        "amqps://u:p%40x9fk2zz@rabbit.corp/",
        "https://deploy:correcthorse@git.corp.io/repo.git",
        "postgres://app:S3cr3tP4ss@db.example.com/app",
    ],
)
def test_a_password_in_an_address(address: str) -> None:
    assert list(secrets_in(f"\nURL = '{address}'\n".encode())) == [("a password in an address", 2)]


@pytest.mark.parametrize(
    "address",
    [
        "http://user:password@localhost",
        "https://user:pass@proxy.corp.io:3128",
        "postgresql://scott:tiger@db.corp.io/test",
        "postgres://app:S3cr3tP4ss@localhost/app",
        "ftp://<user>:<password>@host.corp.io",
        "ftp://user:${PASSWORD}@host.corp.io",
        "ftp://user:$PASSWORD@host.corp.io",
        "ftp://user:{password}@host.corp.io",
        "ftp://user:%s@host.corp.io",
        "ftp://user:xxxxxxxx@host.corp.io",
        "ftp://user:********@host.corp.io",
        "ftp://user:...@host.corp.io",
        "bus://POLICY_NAME:POLICY_KEY@NAME.corp.io",
        "https://me%40email.com:a%20secret@m.corp.io",
        "github://org:repo@sha/path",
        "https://host.corp.io:8080/a@b",
        "https://me:letters@www.example.org",
        "[user[:password]@]host",
    ],
)
def test_an_address_without_a_password_of_anybody(address: str) -> None:
    assert list(secrets_in(f"see {address} for more".encode())) == []


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (f"aws_session_token = {text_of(200)}", "an AWS session token"),
        (f'export AWS_SESSION_TOKEN="{text_of(200)}"', "an AWS session token"),
        (f'"SessionToken": "{text_of(200)}"', "an AWS session token"),
        (f"AWS_SECRET_KEY={text_of(40)}", "an AWS secret access key"),
        (f'aws_secret_key: "{text_of(40)}"', "an AWS secret access key"),
    ],
)
def test_what_else_aws_gives(text: str, what: str) -> None:
    assert list(secrets_in(text.encode())) == [(what, 1)]


@pytest.mark.parametrize(
    "text", ["aws_session_token = AQoDYXdzEJr...<token>", f"SessionToken={text_of(60)}EXAMPLE{text_of(60)}"]
)
def test_examples_of_tokens(text: str) -> None:
    assert list(secrets_in(text.encode())) == []


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_a_key_in_utf_16(encoding: str, ending: str) -> None:
    text = ("one\ntwo\n" + RSA).replace("\n", ending)
    assert list(secrets_in(text.encode(encoding))) == [("a private key", 3)]
    public = text.replace("RSA PRIVATE", "RSA PUBLIC")
    assert list(secrets_in(public.encode(encoding))) == []


def test_other_secrets_in_a_text_that_says_that_it_is_utf_16() -> None:
    text = f"first\nAWS_SECRET_KEY={text_of(40)}\n"
    assert list(secrets_in(text.encode("utf-16"))) == [("an AWS secret access key", 2)]


@pytest.mark.parametrize("ending", ["\r", "\\r"])
def test_a_key_whose_lines_end_as_they_once_did(ending: str) -> None:
    assert [what for what, _ in secrets_in(RSA.replace("\n", ending).encode())] == ["a private key"]
