"""The licence of each distribution, from what its METADATA says, as an SPDX expression where that can be told.

A licence that can't be told is a value that says so, never a pass. Where METADATA leaves several open ("BSD License"
is at least three), those are kept, since often none of them is on a deny list.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from email.message import Message
from email.parser import HeaderParser
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

from layerkit.errors import ConfigurationError
from layerkit.model import Checked, Finding, Severity, Skipped, normalized
from layerkit.trees import Installed

_CHECK = "licences"
_SHOWN = 80
"""How many characters of a licence's text are shown."""

Choice = tuple[str, ...]
"""Licences of which one applies, and it is not said which: patterns of SPDX identifiers; none: it may be any."""


@dataclass(frozen=True)
class Licence:
    """What a distribution is licensed under."""

    name: str
    version: str
    expression: str
    """SPDX; empty where METADATA does not tell."""
    given: str
    """What METADATA says, in one line; empty where it says nothing."""
    unsettled: tuple[Choice, ...] = ()
    """What METADATA leaves open, or says otherwise than in the expression; each for itself."""

    def __str__(self) -> str:
        return self.expression or self.given or "unknown"


def licence_of(distribution: Installed, said: Mapping[str, str] | None = None) -> Licence:
    """The licence of an installed distribution; ``said`` are expressions that the team gives, by distribution.

    Raises ConfigurationError when one of those is no SPDX expression.
    """
    name, version = distribution.name, distribution.version
    for given_for, expression in (said or {}).items():
        if normalized(given_for) == name:
            if not _canonical(expression):
                raise ConfigurationError(
                    f"licences_known: {expression!r}, given for {given_for}, is no SPDX expression.",
                    "Write identifiers of the SPDX list, such as MIT or Apache-2.0 OR BSD-3-Clause.",
                )
            return Licence(name, version, _canonical(expression), expression)
    headers = _headers(distribution.folder / "METADATA")
    stated = str(headers.get("License-Expression", "")).strip()
    text = str(headers.get("License", "")).strip()
    if text == "UNKNOWN":  # what setuptools used to write for none
        text = ""
    lines = [str(line).split(" :: ") for line in headers.get_all("Classifier", [])]
    classifiers = [line[-1].strip() for line in lines if line[0] == "License" and line[-1].strip() != "OSI Approved"]
    given = "; ".join(dict.fromkeys(_short(line) for line in (stated, text, *classifiers) if line))

    choices = [_CLASSIFIERS.get(line, ()) for line in classifiers]
    if _plain(text) in _NAMES or ((stated or text) and not classifiers):
        choices.append(_NAMES.get(_plain(text), ()))
    exact = [choice[0] for choice in choices if _exact(choice)]
    choices = [choice for choice in choices if _exact(choice) or not any(_matches(one, choice) for one in exact)]
    expression = (
        _canonical(stated) or _of_text(text) or _of_choices(choices) or _of_files(distribution, headers, choices)
    )
    if not expression:
        return Licence(name, version, "", given, tuple(choices))
    # What names another licence than the expression counts as well.
    named = _identifiers(expression)
    others = (choice for choice in choices if choice and not any(_matches(one, choice) for one in named))
    return Licence(name, version, expression, given, tuple(dict.fromkeys(others)))


def _of_choices(choices: Sequence[Choice]) -> str:
    """The expression of licences that are all exact.

    METADATA does not say whether several are a choice or hold together. That they do can't be wrong for a ban.
    """
    if not all(_exact(choice) for choice in choices):
        return ""
    return _canonical(" AND ".join(dict.fromkeys(choice[0] for choice in choices)))


def _headers(path: Path) -> Message:
    try:
        return HeaderParser().parsestr(path.read_text(encoding="utf-8", errors="replace"))
    except FileNotFoundError:
        return Message()


def _canonical(expression: str) -> str:
    """An SPDX expression in its own spelling, with today's identifiers; empty for what is none."""
    try:
        canonical = str(canonicalize_license_expression(expression))
    except InvalidLicenseExpression:
        return ""
    return re.sub(
        r"(?<![\w.-])([AL]?GPL-\d\.\d)(\+)?(?![\w.+-])",
        lambda match: match[1] + ("-or-later" if match[2] else "-only"),
        canonical,
    )


def _short(text: str) -> str:
    """The first line of a text that says something, at most ``_SHOWN`` characters."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    more = len(line) > _SHOWN or line != text.strip()
    return f"{line[:_SHOWN]}..." if more else line


def _exact(choice: Choice) -> bool:
    return len(choice) == 1 and "*" not in choice[0]


# ---- names that are no identifiers ----

_BSD = ("0BSD", "BSD-*")
# The classifiers of licences (their list is PyPI's), with the identifiers that each may stand for.
_CLASSIFIERS: Mapping[str, Choice] = {
    "Academic Free License (AFL)": ("AFL-*",),
    "Apache Software License": ("Apache-*",),
    "Apple Public Source License": ("APSL-*",),
    "Artistic License": ("Artistic-*", "ClArtistic"),
    "Attribution Assurance License": ("AAL",),
    "BSD License": _BSD,
    "Blue Oak Model License (BlueOak-1.0.0)": ("BlueOak-1.0.0",),
    "Boost Software License 1.0 (BSL-1.0)": ("BSL-1.0",),
    "CC0 1.0 Universal (CC0 1.0) Public Domain Dedication": ("CC0-1.0",),
    "CEA CNRS Inria Logiciel Libre License, version 2.1 (CeCILL-2.1)": ("CECILL-2.1",),
    "CMU License (MIT-CMU)": ("MIT-CMU",),
    "CeCILL-B Free Software License Agreement (CECILL-B)": ("CECILL-B",),
    "CeCILL-C Free Software License Agreement (CECILL-C)": ("CECILL-C",),
    "Common Development and Distribution License 1.0 (CDDL-1.0)": ("CDDL-1.0",),
    "Common Public License": ("CPL-1.0",),
    "Eclipse Public License 1.0 (EPL-1.0)": ("EPL-1.0",),
    "Eclipse Public License 2.0 (EPL-2.0)": ("EPL-2.0",),
    "Educational Community License, Version 2.0 (ECL-2.0)": ("ECL-2.0",),
    "Eiffel Forum License": ("EFL-*",),
    "European Union Public Licence 1.0 (EUPL 1.0)": ("EUPL-1.0",),
    "European Union Public Licence 1.1 (EUPL 1.1)": ("EUPL-1.1",),
    "European Union Public Licence 1.2 (EUPL 1.2)": ("EUPL-1.2",),
    "GNU Affero General Public License v3": ("AGPL-3.0-only",),
    "GNU Affero General Public License v3 or later (AGPLv3+)": ("AGPL-3.0-or-later",),
    "GNU Free Documentation License (FDL)": ("GFDL-*",),
    "GNU General Public License (GPL)": ("GPL-*",),
    "GNU General Public License v2 (GPLv2)": ("GPL-2.0-only",),
    "GNU General Public License v2 or later (GPLv2+)": ("GPL-2.0-or-later",),
    "GNU General Public License v3 (GPLv3)": ("GPL-3.0-only",),
    "GNU General Public License v3 or later (GPLv3+)": ("GPL-3.0-or-later",),
    "GNU Lesser General Public License v2 (LGPLv2)": ("LGPL-2.0-only",),
    "GNU Lesser General Public License v2 or later (LGPLv2+)": ("LGPL-2.0-or-later",),
    "GNU Lesser General Public License v3 (LGPLv3)": ("LGPL-3.0-only",),
    "GNU Lesser General Public License v3 or later (LGPLv3+)": ("LGPL-3.0-or-later",),
    "GNU Library or Lesser General Public License (LGPL)": ("LGPL-*",),
    "Historical Permission Notice and Disclaimer (HPND)": ("HPND*",),
    "IBM Public License": ("IPL-1.0",),
    "ISC License (ISCL)": ("ISC",),
    "MIT License": ("MIT",),
    "MIT No Attribution License (MIT-0)": ("MIT-0",),
    "MirOS License (MirOS)": ("MirOS",),
    "Mozilla Public License 1.0 (MPL)": ("MPL-1.0",),
    "Mozilla Public License 1.1 (MPL 1.1)": ("MPL-1.1",),
    "Mozilla Public License 2.0 (MPL 2.0)": ("MPL-2.0",),
    "Mulan Permissive Software License v2 (MulanPSL-2.0)": ("MulanPSL-2.0",),
    "NASA Open Source Agreement v1.3 (NASA-1.3)": ("NASA-1.3",),
    "Open Software License 3.0 (OSL-3.0)": ("OSL-3.0",),
    "PostgreSQL License": ("PostgreSQL",),
    "Python License (CNRI Python License)": ("CNRI-Python",),
    "Python Software Foundation License": ("PSF-2.0", "Python-2.0*"),
    "Qt Public License (QPL)": ("QPL-1.0*",),
    "SIL Open Font License 1.1 (OFL-1.1)": ("OFL-1.1*",),
    "Sleepycat License": ("Sleepycat",),
    "Sun Public License": ("SPL-1.0",),
    "The Unlicense (Unlicense)": ("Unlicense",),
    "Universal Permissive License (UPL)": ("UPL-1.0",),
    "University of Illinois/NCSA Open Source License": ("NCSA",),
    "W3C License": ("W3C*",),
    "Zero-Clause BSD (0BSD)": ("0BSD",),
    "Zope Public License": ("ZPL-*",),
    "zlib/libpng License": ("Zlib", "zlib-acknowledgement", "Libpng", "libpng-2.0"),
}
# What people write in the field License, as ``_plain`` leaves it.
_NAMES: Mapping[str, Choice] = {
    "2-clause bsd": ("BSD-2-Clause",),
    "3-clause bsd": ("BSD-3-Clause",),
    "agpl": ("AGPL-*",),
    "agplv3": ("AGPL-3.0-*",),
    "agplv3+": ("AGPL-3.0-or-later",),
    "apache": ("Apache-*",),
    "apache 2": ("Apache-2.0",),
    "apache 2.0": ("Apache-2.0",),
    "apache software": ("Apache-*",),
    "apache software 2.0": ("Apache-2.0",),
    "apache-2": ("Apache-2.0",),
    "apache2": ("Apache-2.0",),
    "apache2.0": ("Apache-2.0",),
    "asl 2": ("Apache-2.0",),
    "asl 2.0": ("Apache-2.0",),
    "bsd": _BSD,
    "bsd 2-clause": ("BSD-2-Clause",),
    "bsd 3-clause": ("BSD-3-Clause",),
    "bsd-2": ("BSD-2-Clause",),
    "bsd-3": ("BSD-3-Clause",),
    "expat": ("MIT",),
    "gnu gpl": ("GPL-*",),
    "gnu gpl 3": ("GPL-3.0-*",),
    "gnu gplv3": ("GPL-3.0-*",),
    "gnu lgpl": ("LGPL-*",),
    "gpl": ("GPL-*",),
    "gpl 2": ("GPL-2.0-*",),
    "gpl 3": ("GPL-3.0-*",),
    "gplv2": ("GPL-2.0-*",),
    "gplv2+": ("GPL-2.0-or-later",),
    "gplv3": ("GPL-3.0-*",),
    "gplv3+": ("GPL-3.0-or-later",),
    "lgpl": ("LGPL-*",),
    "lgplv2": ("LGPL-2.*",),
    "lgplv2+": ("LGPL-2.*-or-later",),
    "lgplv2.1": ("LGPL-2.1-*",),
    "lgplv3": ("LGPL-3.0-*",),
    "lgplv3+": ("LGPL-3.0-or-later",),
    "modified bsd": ("BSD-3-Clause",),
    "mozilla public 2.0": ("MPL-2.0",),
    "mpl 2.0": ("MPL-2.0",),
    "mpl2": ("MPL-2.0",),
    "new bsd": ("BSD-3-Clause",),
    "psf": ("PSF-2.0", "Python-2.0*"),
    "python software foundation": ("PSF-2.0", "Python-2.0*"),
    "revised bsd": ("BSD-3-Clause",),
    "simplified bsd": ("BSD-2-Clause",),
}


def _plain(text: str) -> str:
    """``The Apache License, Version 2.0`` -> ``apache 2.0``."""
    words = re.sub(r"[,()\"]|\b(?:the|licen[sc]ed?|version|under)\b", " ", text.lower())
    return " ".join(re.sub(r"(?<=\s)v\.?(?=\d)", "", words).split())


# ---- texts ----

# Identifier, phrases that the text has, phrases that it has not, and how many words it may have at most: with more, it
# is not that licence alone.
_TEXTS: tuple[tuple[str, tuple[str, ...], tuple[str, ...], int], ...] = (
    (
        "MIT",
        ("permission is hereby granted, free of charge", "the above copyright notice and this permission"),
        (),
        250,
    ),
    (
        "BSD-3-Clause",
        ("redistributions of source code must retain", "redistributions in binary form", "endorse or promote products"),
        ("advertising materials",),
        330,
    ),
    (
        "BSD-2-Clause",
        ("redistributions of source code must retain", "redistributions in binary form"),
        ("endorse or promote", "advertising materials"),
        280,
    ),
    ("ISC", ("permission to use, copy, modify, and", "purpose with or without fee is hereby granted"), (), 180),
    ("Apache-2.0", ("apache license version 2.0", "grant of patent license", "end of terms and conditions"), (), 1800),
    ("MPL-2.0", ("mozilla public license version 2.0", "exhibit b"), (), 2700),
    ("Unlicense", ("this is free and unencumbered software released into the public domain",), (), 260),
    ("Zlib", ("this software is provided 'as-is'", "altered source versions must be plainly marked"), (), 200),
)


def _recognized(text: str) -> str:
    """The identifier of a licence by its whole text; empty for any other text."""
    words = text.lower().split()
    plain = " ".join(words).replace("license, version", "license version")
    for identifier, has, has_not, most in _TEXTS:
        if len(words) > most or any(phrase in plain for phrase in has_not):
            continue
        if all(phrase in plain for phrase in has):
            return identifier
    return ""


def _of_text(text: str) -> str:
    """The expression that the field License stands for: one, a name, or a licence's text with those it bundles."""
    if "\n" not in text:
        plain = _plain(text)
        choice = _NAMES.get(plain, ())
        return _canonical(text) or _canonical(plain) or (choice[0] if _exact(choice) else "")
    # As numpy, scipy and others have it: their own text, a line of dashes, "License: ID" for each part that is bundled.
    own, *bundled = re.split(r"\n\s*-{4,}\s*\n", text)
    parts = [_recognized(own)]
    for part in bundled:
        parts += [_canonical(line.strip()) for line in re.findall(r"^\s*Licen[sc]e:(.+)$", part, re.MULTILINE)]
    if not all(parts) or (len(parts) == 1 and any(part.strip() for part in bundled)):
        return ""
    return _canonical(" AND ".join(f"({part})" if " OR " in part else part for part in dict.fromkeys(parts)))


def _of_files(distribution: Installed, headers: Message, left: Sequence[Choice]) -> str:
    """The licence that the one licence file is, where METADATA leaves it open; empty where there is another or none."""
    names = [str(name) for name in headers.get_all("License-File", [])]
    prefix = f"{distribution.folder.name}/"
    paths = [path for name in names for path in (f"{prefix}licenses/{name}", f"{prefix}{name}")]
    found = [path for path in paths if path in distribution.rows]
    if len(found) != 1:
        return ""
    try:
        text = (distribution.folder.parent / found[0]).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    identifier = _recognized(text)
    return identifier if all(not choice or _matches(identifier, choice) for choice in left) else ""


# ---- the deny list ----


def check_licences(subject: str, licences: Iterable[Licence], deny: Sequence[str]) -> Checked:
    """Hold licences against the patterns of ``deny`` (``GPL-3.0-only``, ``AGPL-*``); ``subject`` is whose they are.

    Of an OR one side has to be allowed, of an AND both. A pattern bans a licence with an exception (WITH) as well. A
    licence of which it can't be told whether it is banned gives a ``Skipped``. Without patterns nothing is banned.
    Raises ConfigurationError for a pattern that no licence has.
    """
    for pattern in deny:
        if not _of_pattern(pattern) and not pattern.lower().startswith("licenseref-"):
            raise ConfigurationError(
                f"licences_deny: {pattern!r} matches no identifier of the SPDX list, so it would ban nothing.",
                "GPL 3 is GPL-3.0-only and GPL-3.0-or-later there, or GPL-3.0-* for both.",
            )
    entries = sorted(licences, key=lambda licence: licence.name)
    findings, skipped = [], []
    for entry in entries if deny else ():
        one = f"{entry.name} {entry.version}"
        says = f"its METADATA says {entry.given!r}" if entry.given else "its METADATA says nothing"
        banned = _banned(entry, deny)
        if banned:
            message = f"{one} is under {', '.join(banned)}, which licences_deny bans; {says}"
            hint = f"Do without it; or say with licences_known what else {entry.name} is under, when you know better."
            findings.append(Finding(_CHECK, Severity.ERROR, subject, message, hint))
        elif banned is None:
            hint = f"Look it up, and say with licences_known what {entry.name} is under."
            skipped.append(Skipped(_CHECK, subject, f"the licence of {one} is not known: {says}", hint))
    unknown = sum(not entry.expression for entry in entries)
    detail = f"{len(entries)} distributions" + (f", {unknown} without a licence that can be told" if unknown else "")
    return Checked(_CHECK, subject, tuple(findings), tuple(skipped), detail)


def newly(checked: Checked, before: Checked | None) -> Checked:
    """What ``checked`` has and ``before`` had not of the same distribution, whatever its version was and is."""
    earlier: tuple[Finding | Skipped, ...] = (*before.findings, *before.skipped) if before else ()
    known = {_of_any_version(one) for one in earlier}
    return replace(
        checked,
        findings=tuple(finding for finding in checked.findings if _of_any_version(finding) not in known),
        skipped=tuple(skipped for skipped in checked.skipped if _of_any_version(skipped) not in known),
    )


def _of_any_version(one: Finding | Skipped) -> str:
    """What is said of a licence, without the version and without METADATA's words."""
    said = one.message if isinstance(one, Finding) else one.reason
    return re.sub(r"^((?:the licence of )?\S+) \S+", r"\1", said).partition(" its METADATA says")[0]


def _banned(entry: Licence, deny: Sequence[str]) -> tuple[str, ...] | None:
    """What of a licence is banned, as far as it can't be avoided; None where that can't be told."""
    banned = _unavoidable(_parsed(entry.expression), deny) if entry.expression else ()
    open_to_question = not entry.expression and not entry.unsettled
    for choice in entry.unsettled:
        possible = {identifier for pattern in choice for identifier in _of_pattern(pattern)}
        bad = {identifier for identifier in possible if _matches(identifier, deny)}
        if possible and bad == possible:
            banned += choice
        elif bad or not possible:
            open_to_question = True
    return banned or (None if open_to_question else ())


def _unavoidable(node: Any, deny: Sequence[str]) -> tuple[str, ...]:
    """The banned licences of a parsed expression; none where a choice leads around them."""
    from license_expression import AND, OR

    if isinstance(node, (AND, OR)):
        sides = [_unavoidable(side, deny) for side in node.args]
        if isinstance(node, OR) and not all(sides):
            return ()
        return tuple(dict.fromkeys(banned for side in sides for banned in side))
    alone = getattr(node, "license_symbol", node)
    return (str(node),) if _matches(str(node), deny) or _matches(str(alone), deny) else ()


def _parsed(expression: str) -> Any:
    from license_expression import Licensing

    return Licensing().parse(expression)


def _identifiers(expression: str) -> tuple[str, ...]:
    """The licences in an expression, without exceptions."""
    return tuple(
        word.strip("()") for word in re.sub(r" WITH \S+", "", expression).split() if word not in {"AND", "OR", "WITH"}
    )


def _matches(identifier: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(identifier.lower(), pattern.lower()) for pattern in patterns)


def _of_pattern(pattern: str) -> tuple[str, ...]:
    """The identifiers of the SPDX list that a pattern stands for; what it says of an exception does not count."""
    alone = pattern.split(" WITH ")[0]
    return tuple(identifier for identifier in _spdx_identifiers() if _matches(identifier, [alone]))


@cache
def _spdx_identifiers() -> tuple[str, ...]:
    from license_expression import get_license_index

    entries = (entry["spdx_license_key"] for entry in get_license_index() if not entry.get("is_exception"))
    return tuple(sorted(entry for entry in entries if entry and not entry.startswith("LicenseRef-")))
