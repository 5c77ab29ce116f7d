"""Private keys and credentials, recognized by their content: a name says nothing, and a CA bundle is neither.

What only talks about keys is not one: a key has its header and a body of base64, a credential its own form. The
examples of AWS's documentation, which botocore carries, are left out, and so are the keys that Microsoft publishes for
its emulators.
"""

from __future__ import annotations

import re
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterator

# A line break may be a real one, or what a JSON text has for it, which may be in a JSON text itself.
_BREAK = rb"(?:\r\n?|\n|\\+r(?:\\+n)?|\\+n)"
# What stands before a line where a text is indented, or put together in source code.
_BEFORE = rb"[ \t\"'+]*"
# Ends of lines, with the headers of an encrypted key, blank ones among them; then base64, not cut short with dots.
_BODY = (
    rb"(?:" + _BEFORE + rb"(?:[A-Za-z-]+:[^\r\n\\]*)?" + _BREAK + rb"){1,20}"
    + _BEFORE + rb"[A-Za-z0-9+/=]{40,}+(?!\.\.)"
)  # fmt: skip

_NO_WORD_BEFORE = rb"(?<![A-Za-z0-9_])"
_NO_WORD_AFTER = rb"(?![A-Za-z0-9_])"
# Without AWS's own examples, which end with that word.
_AWS_SECRET = rb"[\"']?\s{0,3}[=:]\s{0,3}[\"']?(?![A-Za-z0-9/+]*EXAMPLE)[A-Za-z0-9/+]{40}(?![A-Za-z0-9/+=])"
# What STS gives along with a temporary key; its documentation shortens its examples or puts that word into them.
_AWS_TOKEN = rb"[\"']?\s{0,3}[=:]\s{0,3}[\"']?(?![A-Za-z0-9/+=]*EXAMPLE)[A-Za-z0-9/+=]{100,}"
# A JSON text, which may be in a JSON text itself, or a dict as Python writes it.
_QUOTE = rb"\\*[\"']"
_KTY = rb"\s*:\s*" + _QUOTE + rb"(?:RSA|EC|OKP)" + _QUOTE
_D = rb"\s*:\s*" + _QUOTE + rb"[A-Za-z0-9_-]{20,}" + _QUOTE
# A login in an address. The password is none where it is a word for one, or a pattern that something is put into (there
# a percent sign does not encode anything); where the host is this machine or a word for one; and where an example says
# by its host that it is one (RFC 2606), unless the password looks like one all the same. One of letters alone needs a
# host with a dot or a port. Tokens that have a form of their own are told by that.
_LETTER = rb"(?:[^\s:/?#@\"'`<>{}()\[\]\\,|*%]|%[0-9A-Fa-f]{2})"
_NO_PASSWORD = (
    rb"(?!(?i:my|your|the|some|a)?[-_]?(?i:user(?:name)?|pass(?:word|wd|phrase)?|passw(?:or)?d|pwd?|psw|secret|token|key"
    rb"|api[-_]?key|credentials?|changeme|hunter2|guest|root|admin|test(?:ing)?|foo|bar|baz|spam|eggs|none|null"
    rb"|postgres|rabbitmq|redacted|hidden|masked)\d?@|tiger\W|[^@]{0,20}(?i:secret|passw(?:or)?d)@"
    rb"|[A-Z]+(?:_[A-Z]+)+@|\$|[xX.*_-]+@|gh[oprsu]_|github_pat_|glpat-)"
)
_PLACEHOLDER_HOST = (
    rb"(?!(?i:localhost|127\.[\d.]+|0\.0\.0\.0|(?:my)?(?:host(?:name)?|server(?:name)?|proxy|domain|address|ip|db"
    rb"|database|remote|test|foo|bar))(?![A-Za-z0-9.-]))"
)
_EXAMPLE_HOST = rb"(?:[A-Za-z0-9-]+\.)*(?i:example(?:\.[a-z]+)?|[a-z0-9-]+\.(?:test|invalid))(?![A-Za-z0-9.-])"
_LOGIN = (
    rb"(?:[A-Za-z0-9._~+-]|%[0-9A-Fa-f]{2}){0,64}:" + _NO_PASSWORD
    + rb"(?:(?=" + _LETTER + rb"{0,200}?\d)(?=" + _LETTER + rb"{0,200}?[A-Za-z])" + _LETTER + rb"{8,200}@"
    + rb"|" + _LETTER + rb"{6,200}@(?!" + _EXAMPLE_HOST + rb")(?=[A-Za-z0-9-]+[.:]))"
    + _PLACEHOLDER_HOST + rb"(?:[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*|\[[0-9A-Fa-f:]+\])"
)  # fmt: skip
# The emulators of Azure Storage and of Cosmos DB have one key everywhere.
_EMULATORS = (
    rb"(?!Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
    rb"|C2y6yDjf5/R\+ob0N8A7Cgv30VRDJIWEHLM\+4QDU5DE2nQ9nDuVTqobD4b8mGGyPMbIZnqyMsEcaGQy67XIw/Jw==)"
)


def _form(what: str, sign: bytes, rest: bytes, before: bytes = _NO_WORD_BEFORE) -> tuple[str, bytes, re.Pattern[bytes]]:
    return what, sign, re.compile(before + re.escape(sign) + rest)


# Name, a text that every such credential has (which is quick to look for), and the form from there on. The forms are
# those that their issuers document, with the prefix they gave them so that they can be found.
_FORMS = (
    _form("a private key", b"-----BEGIN ", rb"(?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----" + _BODY, b""),
    _form("a private key", b"---- BEGIN SSH2 ", rb"(?:[A-Z0-9]+ )*PRIVATE KEY ----" + _BODY, b""),
    _form(  # a PEM text once more in base64, as settings of Kubernetes and of CI have it
        "a private key",
        b"LS0tLS1CRUdJTi",
        rb"(?:BQUklWQVRFIEtFWS|BSU0EgUFJJVkFURSBLRVkt|BFQyBQUklWQVRFIEtFWS|BPUEVOU1NIIFBSSVZBVEUgS0VZ"
        rb"|BFTkNSWVBURUQgUFJJVkFURSBLRVkt|BEU0EgUFJJVkFURSBLRVkt)[A-Za-z0-9+/=]{60}",
        b"",
    ),
    _form(
        "a private key (PuTTY)",
        b"PuTTY-User-Key-File-",
        rb"[123]: [\s\S]{0,8000}?Private-Lines: \d+" + _BREAK + _BEFORE + rb"[A-Za-z0-9+/=]{40}",
        b"",
    ),
    *(  # the two forms of its files; a "shadowed" one is on a card
        _form("a private key (GnuPG)", sign, rest + rb"(?:rsa|dsa|elg|ecc|ecdsa|ecdh)\s?\(", rb"(?<!shadowed-)")
        for sign, rest in ((b"private-key (", b""), (b"private-key(", rb"\d:"))
    ),
    _form("a private key (age)", b"AGE-SECRET-KEY-1", rb"[0-9A-Z]{58}(?![0-9A-Za-z])", b""),
    *(
        _form("an AWS access key", sign, rb"(?![A-Z2-7]*EXAMPLE)[A-Z2-7]{16}(?![A-Za-z0-9])", rb"(?<![A-Za-z0-9])")
        for sign in (b"AKIA", b"ASIA")
    ),
    *(  # in files of settings, in the environment, in what AWS's services answer
        _form("an AWS secret access key", name, _AWS_SECRET, b"")
        for name in (
            b"aws_secret_access_key",
            b"AWS_SECRET_ACCESS_KEY",
            b"SecretAccessKey",
            b"aws_secret_key",
            b"AWS_SECRET_KEY",
        )
    ),
    *(
        _form("an AWS session token", name, _AWS_TOKEN, b"")
        for name in (b"aws_session_token", b"AWS_SESSION_TOKEN", b"SessionToken", b"aws_security_token")
    ),
    # A JSON Web Key (RFC 7517) has its private part in "d" (RFC 7518), before or behind its type.
    _form(
        "a private key (JWK)", b"kty", _QUOTE + _KTY + rb"[^{}]{0,8000}?" + _QUOTE + rb"d" + _QUOTE + _D, rb"(?<=[\"'])"
    ),
    *(
        _form("a private key (JWK)", sign, end + _D + rb"[^{}]{0,8000}?" + _QUOTE + rb"kty" + _QUOTE + _KTY, b"")
        for sign, end in ((b'"d"', b""), (b"'d'", b""), (b'"d\\', rb"\\*\""))
    ),
    _form("a password in an address", b"://", _LOGIN, rb"(?<=[A-Za-z0-9])"),
    *(
        _form("a GitHub token", sign, rb"[A-Za-z0-9]{36}(?![A-Za-z0-9])")
        for sign in (b"ghp_", b"gho_", b"ghu_", b"ghs_", b"ghr_")
    ),
    _form("a GitHub token", b"github_pat_", rb"[A-Za-z0-9_]{82}" + _NO_WORD_AFTER),
    _form("a GitLab token", b"glpat-", rb"[A-Za-z0-9_.-]{20,}"),
    _form("a Slack token", b"xox", rb"[abprs]-[0-9]{8,}-[0-9A-Za-z-]{20,}", rb"(?<![A-Za-z0-9])"),
    _form(
        "a Slack webhook",
        b"hooks.slack.com/",
        rb"(?:services|workflows)/T[A-Z0-9]{7,}/[AB][A-Z0-9]{7,}/[A-Za-z0-9/]{24}",
    ),
    _form("a Stripe key", b"k_live_", rb"[0-9A-Za-z]{24,}", rb"(?<=[rs])(?<![A-Za-z0-9].)"),
    _form("a PyPI token", b"pypi-AgEIcHlwaS5vcmc", rb"[A-Za-z0-9_-]{50,}", b""),
    _form("an npm token", b"npm_", rb"[A-Za-z0-9]{36}" + _NO_WORD_AFTER),
    _form("an Azure storage key", b"AccountKey=", _EMULATORS + rb"[A-Za-z0-9+/]{86}==", b""),
    _form("an Azure access key", b"SharedAccessKey=", rb"[A-Za-z0-9+/]{43}=", b""),
    _form("a Google API key", b"AIza", rb"[A-Za-z0-9_-]{35}(?![A-Za-z0-9_-])", rb"(?<![A-Za-z0-9_-])"),
    _form("a Google client secret", b"GOCSPX-", rb"[A-Za-z0-9_-]{28}(?![A-Za-z0-9_-])"),
    _form("an Anthropic key", b"sk-ant-", rb"[a-z]{3,5}\d\d-[A-Za-z0-9_-]{80,}"),
    _form("an OpenAI key", b"sk-proj-", rb"[A-Za-z0-9_-]{40,}"),
    _form("an OpenAI key", b"T3BlbkFJ", rb"[A-Za-z0-9]{20}(?![A-Za-z0-9])", rb"(?<=sk-[A-Za-z0-9]{20})"),
    _form("a Hugging Face token", b"hf_", rb"[A-Za-z]{34}" + _NO_WORD_AFTER),
)

# The bytes that no sign has: a content without them is much smaller, and has every sign that it had before.
_IN_NO_SIGN = bytes(set(range(256)) - set(b"".join(sign for _, sign, _ in _FORMS)))


_BEGINS_PEM = "-----BEGIN ".encode("utf-16-le")


def secrets_in(content: bytes) -> Iterator[tuple[str, int]]:
    """What secrets ``content`` has: what each is, and the line it begins in (from 1). Never the secret itself.

    A text in UTF-16 is looked at where it says that it is one, and private keys in PEM also where it does not.
    """
    if content.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
        yield from _secrets_in(content.decode("utf-16", errors="replace").encode())
        return
    yield from _secrets_in(content)
    # Found in either order of bytes, since what is ASCII has a zero on both sides then.
    at = content.find(_BEGINS_PEM)
    if at >= 0:
        before = content.count(b"\n", 0, at)
        for what, line in _secrets_in(content[at::2]):
            yield what, before + line


def _secrets_in(content: bytes) -> Iterator[tuple[str, int]]:
    sieved = content.translate(None, _IN_NO_SIGN)
    for what, sign, form in _FORMS:
        at = content.find(sign) if sign in sieved else -1
        while at >= 0:
            match = form.match(content, at)
            if match:
                yield what, content.count(b"\n", 0, at) + 1
            at = content.find(sign, match.end() if match else at + 1)
