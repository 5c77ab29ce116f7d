"""Private keys and credentials, recognized by their content: a name says nothing, and a CA bundle is neither.

What only talks about keys is not one: a key has its header and a body of base64, a credential its own form. The
examples of AWS's documentation, which botocore carries, are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

# A line break may be a real one, or what a JSON text has for it, which may be in a JSON text itself.
_BREAK = rb"(?:\r?\n|(?:\\+r)?\\+n)"
# What stands before a line where a text is indented, or put together in source code.
_BEFORE = rb"[ \t\"'+]*"

_KEY = re.compile(
    rb"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----"
    # Ends of lines, with the headers of an encrypted key, blank ones among them.
    rb"(?:" + _BEFORE + rb"(?:[A-Za-z-]+:[^\r\n\\]*)?" + _BREAK + rb"){1,20}" + _BEFORE + rb"[A-Za-z0-9+/=]{40}"
)

_AWS_SECRET = rb"[\"']?\s{0,3}[=:]\s{0,3}[\"']?[A-Za-z0-9/+]{40}(?![A-Za-z0-9/+=])"

# Name, a text that is in every such credential (which is quick to look for), and the form. The forms are those that
# their issuers document, with the prefix they gave them so that they can be found.
_FORMS: tuple[tuple[str, bytes, re.Pattern[bytes]], ...] = (
    ("a private key", b"PRIVATE KEY", _KEY),
    ("an AWS access key", b"ASIA", re.compile(rb"(?<![A-Za-z0-9])ASIA[A-Z2-7]{16}(?![A-Za-z0-9])")),
    (
        "an AWS access key",
        b"AKIA",
        re.compile(rb"(?<![A-Za-z0-9])AKIA[A-Z2-7]{16}(?![A-Za-z0-9])"),
    ),
    *(  # in files of settings, in the environment, in what AWS's services answer
        ("an AWS secret access key", name, re.compile(name + _AWS_SECRET))
        for name in (b"aws_secret_access_key", b"AWS_SECRET_ACCESS_KEY", b"SecretAccessKey")
    ),
    ("a GitHub token", b"gh", re.compile(rb"(?<![A-Za-z0-9_])gh[pousr]_[A-Za-z0-9]{36}(?![A-Za-z0-9])")),
    ("a GitHub token", b"github_pat_", re.compile(rb"(?<![A-Za-z0-9_])github_pat_[A-Za-z0-9_]{82}(?![A-Za-z0-9_])")),
    ("a GitLab token", b"glpat-", re.compile(rb"(?<![A-Za-z0-9_])glpat-[A-Za-z0-9_.-]{20,}")),
    ("a Slack token", b"xox", re.compile(rb"(?<![A-Za-z0-9])xox[abprs]-[0-9]{8,}-[0-9A-Za-z-]{20,}")),
    ("a Stripe key", b"k_live_", re.compile(rb"(?<![A-Za-z0-9])[rs]k_live_[0-9A-Za-z]{24,}")),
    ("a PyPI token", b"pypi-AgEIcHlwaS5vcmc", re.compile(rb"pypi-AgEIcHlwaS5vcmc[A-Za-z0-9_-]{50,}")),
    ("an Azure storage key", b"AccountKey=", re.compile(rb"AccountKey=[A-Za-z0-9+/]{86}==")),
)

_EXAMPLE = b"EXAMPLE"


def secrets_in(content: bytes) -> Iterator[tuple[str, int]]:
    """What secrets ``content`` has: what each is, and the line it begins in (from 1). Never the secret itself."""
    for name, sign, form in _FORMS:
        if sign not in content:
            continue
        for match in form.finditer(content):
            if _EXAMPLE not in match[0]:
                yield name, content.count(b"\n", 0, match.start()) + 1
