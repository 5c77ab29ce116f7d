"""Licences: what METADATA says in each of its ways, and a deny list that nothing unknown passes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerkit.errors import ConfigurationError
from layerkit.licences import Licence, check_licences, licence_of, newly
from layerkit.trees import installed

MIT = """Copyright (c) 2020 Some One

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files. The above copyright notice and this permission notice shall be included in all copies.
"""
BSD_2 = """Copyright 2020 Some One. All rights reserved.

1. Redistributions of source code must retain the above copyright notice.
2. Redistributions in binary form must reproduce the above copyright notice.
"""
BSD_3 = BSD_2 + "3. No name may be used to endorse or promote products derived from this software.\n"


def metadata(*headers: str, text: str = "") -> str:
    folded = "License: " + text.rstrip().replace("\n", "\n        ") if text else ""
    lines = ["Metadata-Version: 2.1", "Name: thing", "Version: 1.0", *headers, *([folded] if folded else [])]
    return "\n".join(lines) + "\n\nThe description, which says License: GPL-3.0-only.\n"


def install(tree: Path, text: str | None, files: dict[str, str] | None = None) -> None:
    """The distribution thing 1.0 with that METADATA, and ``files`` in its dist-info."""
    info = tree / "thing-1.0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    content = {**(files or {}), **({} if text is None else {"METADATA": text})}
    for path, inside in content.items():
        (info / path).parent.mkdir(exist_ok=True)
        (info / path).write_text(inside)
    (info / "RECORD").write_text("".join(f"{info.name}/{path},,\n" for path in content))


def licence(tree: Path, text: str | None, files: dict[str, str] | None = None) -> Licence:
    install(tree, text, files)
    (distribution,) = installed(tree)
    return licence_of(distribution)


def classifier(name: str) -> str:
    return f"Classifier: License :: OSI Approved :: {name}"


# ---- what METADATA says ----


@pytest.mark.parametrize(
    ("stated", "expression"),
    [
        ("MIT", "MIT"),
        ("mit", "MIT"),
        ("apache-2.0 or bsd-3-clause", "Apache-2.0 OR BSD-3-Clause"),
        ("MIT AND (Apache-2.0 OR BSD-2-Clause)", "MIT AND (Apache-2.0 OR BSD-2-Clause)"),
        ("GPL-3.0-or-later WITH GCC-exception-3.1", "GPL-3.0-or-later WITH GCC-exception-3.1"),
        ("LicenseRef-Ours", "LicenseRef-Ours"),
        ("LGPL-2.1", "LGPL-2.1-only"),  # identifiers that SPDX has replaced
        ("GPL-2.0+ OR MIT", "GPL-2.0-or-later OR MIT"),
        ("LGPL-2.1-or-later", "LGPL-2.1-or-later"),
        ("AGPL-3.0", "AGPL-3.0-only"),
        ("Nonsense-1.0", ""),
        ("MIT OR", ""),
    ],
)
def test_an_expression(tmp_path: Path, stated: str, expression: str) -> None:
    found = licence(tmp_path, metadata(f"License-Expression: {stated}"))
    assert (found.expression, found.given) == (expression, stated)
    assert str(found) == (expression or stated)


@pytest.mark.parametrize(
    ("text", "expression"),
    [
        ("MIT", "MIT"),
        ("MIT License", "MIT"),
        ("The MIT License", "MIT"),
        ("BSD-3-Clause", "BSD-3-Clause"),
        ("BSD 3-Clause License", "BSD-3-Clause"),
        ("3-Clause BSD License", "BSD-3-Clause"),
        ("Apache 2.0", "Apache-2.0"),
        ("Apache License 2.0", "Apache-2.0"),
        ("Apache License, Version 2.0", "Apache-2.0"),
        ("Apache License (2.0)", "Apache-2.0"),
        ("Apache Software License 2.0", "Apache-2.0"),
        ("MPL v2.0", "MPL-2.0"),
        ("EPL-2.0 OR GPL-2.0-or-later", "EPL-2.0 OR GPL-2.0-or-later"),
        ("GPLv3+", "GPL-3.0-or-later"),
        ("ISC license", "ISC"),
    ],
)
def test_names_in_the_field_license(tmp_path: Path, text: str, expression: str) -> None:
    assert licence(tmp_path, metadata(f"License: {text}")).expression == expression


@pytest.mark.parametrize(
    ("text", "unsettled"),
    [
        ("BSD", (("0BSD", "BSD-*"),)),
        ("GPLv3", (("GPL-3.0-*",),)),  # that version alone, or later ones too
        ("LGPL", (("LGPL-*",),)),
        ("Dual License", ((),)),
        ("Some terms of our own", ((),)),
        ("https://example.com/licence", ((),)),
    ],
)
def test_names_that_leave_it_open(tmp_path: Path, text: str, unsettled: tuple[tuple[str, ...], ...]) -> None:
    assert licence(tmp_path, metadata(f"License: {text}")) == Licence("thing", "1.0", "", text, unsettled)


@pytest.mark.parametrize(
    ("name", "expression"),
    [
        ("MIT License", "MIT"),
        ("ISC License (ISCL)", "ISC"),
        ("Mozilla Public License 2.0 (MPL 2.0)", "MPL-2.0"),
        ("GNU General Public License v3 (GPLv3)", "GPL-3.0-only"),
        ("GNU General Public License v3 or later (GPLv3+)", "GPL-3.0-or-later"),
        ("GNU Affero General Public License v3", "AGPL-3.0-only"),
        ("SIL Open Font License 1.1 (OFL-1.1)", ""),
        ("Apache Software License", ""),  # three versions
        ("BSD License", ""),
        ("A License Of The Future", ""),
    ],
)
def test_a_classifier(tmp_path: Path, name: str, expression: str) -> None:
    found = licence(tmp_path, metadata(classifier(name)))
    assert (found.expression, found.given) == (expression, name)
    assert bool(found.unsettled) is not bool(expression)


def test_several_classifiers_all_count(tmp_path: Path) -> None:
    found = licence(tmp_path, metadata(classifier("MIT License"), classifier("ISC License (ISCL)")))
    assert found.expression == "MIT AND ISC"
    found = licence(tmp_path, metadata(classifier("MIT License"), classifier("BSD License")))
    assert (found.expression, found.unsettled) == ("", (("MIT",), ("0BSD", "BSD-*")))


def test_the_field_decides_where_classifiers_say_no_more(tmp_path: Path) -> None:
    both = [classifier("Apache Software License"), classifier("MIT License")]
    assert licence(tmp_path, metadata("License: MIT OR Apache-2.0", *both)) == Licence(
        "thing", "1.0", "MIT OR Apache-2.0", "MIT OR Apache-2.0; Apache Software License; MIT License"
    )
    assert licence(tmp_path, metadata("License: BSD", classifier("MIT License"))).expression == ""
    assert licence(tmp_path, metadata("License: GPL", classifier("GNU General Public License v3 (GPLv3)"))) == Licence(
        "thing", "1.0", "GPL-3.0-only", "GPL; GNU General Public License v3 (GPLv3)"
    )


def test_a_classifier_that_says_otherwise_counts_as_well(tmp_path: Path) -> None:
    found = licence(tmp_path, metadata("License: MIT", classifier("GNU General Public License v3 (GPLv3)")))
    assert (found.expression, found.unsettled) == ("MIT", (("GPL-3.0-only",),))


@pytest.mark.parametrize(
    "headers", [(), ("License: UNKNOWN",), ("License:",), ("Classifier: License :: OSI Approved",)]
)
def test_nothing_said_is_unknown(tmp_path: Path, headers: tuple[str, ...]) -> None:
    found = licence(tmp_path, metadata(*headers))
    assert (found, str(found)) == (Licence("thing", "1.0", "", ""), "unknown")


@pytest.mark.parametrize("text", [None, "", "\x00", "no headers at all"])
def test_metadata_that_is_not_there_or_none(tmp_path: Path, text: str | None) -> None:
    assert str(licence(tmp_path, text)) == "unknown"


# ---- texts ----


@pytest.mark.parametrize(("text", "expression"), [(MIT, "MIT"), (BSD_2, "BSD-2-Clause"), (BSD_3, "BSD-3-Clause")])
def test_a_text_in_the_field_license(tmp_path: Path, text: str, expression: str) -> None:
    found = licence(tmp_path, metadata(*[classifier("BSD License")] if "BSD" in expression else [], text=text))
    assert found.expression == expression
    assert found.given.startswith("Copyright")
    assert "\n" not in found.given


def test_a_text_with_the_licences_that_it_bundles(tmp_path: Path) -> None:
    bundled = "\n----\n\nName: OpenBLAS\nLicense: BSD-3-Clause\n   Some text\n\nName: GCC\n"
    bundled += "License: GPL-3.0-or-later WITH GCC-exception-3.1\nName: x\nLicense: MIT OR Apache-2.0\n"
    found = licence(tmp_path, metadata(text=BSD_3 + bundled))
    assert found.expression == ("BSD-3-Clause AND GPL-3.0-or-later WITH GCC-exception-3.1 AND (MIT OR Apache-2.0)")


@pytest.mark.parametrize(
    "text",
    [
        MIT + "\n" + "And much more. " * 100,  # it may be anything
        MIT + "\n----\n\nName: OpenBLAS\nLicense: as it pleases\n",
        MIT + "\n----\n\nSomething else comes with it.\n",
        "Our own terms\n\nYou may not.\n",
        BSD_3 + "4. All advertising materials must say so.\n",
    ],
)
def test_a_text_that_is_not_one_licence_alone_is_not_told(tmp_path: Path, text: str) -> None:
    found = licence(tmp_path, metadata(text=text))
    assert (found.expression, found.unsettled) == ("", ((),))


def test_the_licence_file_settles_what_a_classifier_leaves_open(tmp_path: Path) -> None:
    said = metadata(classifier("BSD License"), "License-File: LICENSE")
    assert licence(tmp_path / "1", said, {"licenses/LICENSE": BSD_3}).expression == "BSD-3-Clause"
    assert licence(tmp_path / "2", said, {"LICENSE": BSD_2}).expression == "BSD-2-Clause"
    assert licence(tmp_path / "3", said, {"LICENSE": MIT}).expression == ""  # not what the classifier says
    assert licence(tmp_path / "4", said).expression == ""
    several = metadata("License-File: LICENSE", "License-File: OTHER")
    assert licence(tmp_path / "5", several, {"LICENSE": MIT, "OTHER": "Our own terms"}).expression == ""


@given(text=st.text(max_size=200), name=st.sampled_from(["License", "License-Expression", "Classifier"]))
def test_any_metadata_gives_a_licence(tmp_path_factory: pytest.TempPathFactory, text: str, name: str) -> None:
    found = licence(tmp_path_factory.getbasetemp() / "any", f"Name: thing\nVersion: 1.0\n{name}: {text}\n")
    assert "\n" not in found.given
    assert check_licences("web", [found], ["AGPL-*"]).check == "licences"


# ---- what the team says ----


def test_the_team_may_say_what_metadata_does_not(tmp_path: Path) -> None:
    install(tmp_path, metadata("License: Dual License"))
    (distribution,) = installed(tmp_path)
    found = licence_of(distribution, {"other": "MIT", "Thing": "apache-2.0 or bsd-3-clause"})
    assert found.expression == "Apache-2.0 OR BSD-3-Clause"
    with pytest.raises(ConfigurationError, match=r"licences_known: 'BSD', given for thing, is no SPDX expression"):
        licence_of(distribution, {"thing": "BSD"})


# ---- the deny list ----


def verdict(expression: str, *deny: str, unsettled: tuple[tuple[str, ...], ...] = ()) -> str:
    """``banned``, ``unknown`` or ``passes``."""
    checked = check_licences("web", [Licence("thing", "1.0", expression, "said", unsettled)], deny)
    assert not (checked.findings and checked.skipped)
    return "banned" if checked.failed else "unknown" if checked.skipped else "passes"


@pytest.mark.parametrize(
    ("expression", "deny", "expected"),
    [
        ("GPL-3.0-only", ["GPL-3.0-only"], "banned"),
        ("GPL-3.0-only", ["gpl-3.0-ONLY"], "banned"),
        ("GPL-3.0-or-later", ["GPL-3.0-only"], "passes"),
        ("GPL-3.0-or-later", ["GPL-3.0-*"], "banned"),
        ("LGPL-3.0-only", ["GPL-*"], "passes"),  # a pattern is about the whole identifier
        ("AGPL-3.0-only", ["MIT", "AGPL-*"], "banned"),
        ("MIT", ["GPL-*", "AGPL-*"], "passes"),
        ("MIT OR GPL-3.0-only", ["GPL-*"], "passes"),
        ("MIT AND GPL-3.0-only", ["GPL-*"], "banned"),
        ("AGPL-3.0-only OR GPL-3.0-only", ["*GPL-*"], "banned"),
        ("MIT AND (Apache-2.0 OR GPL-2.0-only)", ["GPL-*"], "passes"),
        ("MIT AND (AGPL-3.0-only OR GPL-2.0-only)", ["*GPL-*"], "banned"),
        ("(MIT AND GPL-2.0-only) OR Apache-2.0", ["GPL-*"], "passes"),
        ("GPL-2.0-only WITH Classpath-exception-2.0", ["GPL-2.0-only"], "banned"),
        ("GPL-2.0-only", ["GPL-2.0-only WITH Classpath-exception-2.0"], "passes"),
        ("GPL-2.0-only WITH Classpath-exception-2.0", ["GPL-2.0-only WITH Classpath-*"], "banned"),
        ("LicenseRef-Ours", ["LicenseRef-Ours"], "banned"),
        ("GPL-3.0-only", [], "passes"),
        ("", ["AGPL-*"], "unknown"),
        ("", [], "passes"),
    ],
)
def test_a_deny_list(expression: str, deny: list[str], expected: str) -> None:
    assert verdict(expression, *deny) == expected


@pytest.mark.parametrize(
    ("unsettled", "deny", "expected"),
    [
        ((("0BSD", "BSD-*"),), ["AGPL-*"], "passes"),  # whichever it is
        ((("0BSD", "BSD-*"),), ["BSD-4-Clause"], "unknown"),
        ((("GPL-3.0-*",),), ["GPL-3.0-only"], "unknown"),
        ((("GPL-3.0-*",),), ["GPL-*"], "banned"),
        (((),), ["AGPL-*"], "unknown"),
        ((("MIT",), ("GPL-*",)), ["GPL-*"], "banned"),
        ((("MIT",), ()), ["GPL-*"], "unknown"),
    ],
)
def test_what_is_open_passes_only_when_all_it_may_be_does(
    unsettled: tuple[tuple[str, ...], ...], deny: list[str], expected: str
) -> None:
    assert verdict("", *deny, unsettled=unsettled) == expected


def test_a_classifier_that_says_otherwise_is_held_against_the_list_too() -> None:
    assert verdict("MIT", "GPL-*", unsettled=(("GPL-3.0-only",),)) == "banned"
    assert verdict("MIT", "AGPL-*", unsettled=(("GPL-3.0-only",),)) == "passes"


@pytest.mark.parametrize("pattern", ["GPLv3", "GPL", "", "MTI", "AGPL-9.*"])
def test_a_pattern_that_would_ban_nothing_is_a_mistake(pattern: str) -> None:
    with pytest.raises(ConfigurationError, match=f"licences_deny: '{pattern}".replace("*", r"\*")) as caught:
        check_licences("web", [], ["MIT", pattern])
    assert "GPL-3.0-only" in caught.value.hint


def test_what_is_said_names_the_distribution_the_licence_and_the_way_out() -> None:
    entries = [
        Licence("scipy", "1.18", "BSD-3-Clause AND GPL-3.0-or-later WITH GCC-exception-3.1", "Copyright ..."),
        Licence("nothing", "2.0", "", ""),
        Licence("fine", "1.0", "MIT", "MIT"),
    ]
    checked = check_licences("web", entries, ["GPL-*"])
    (finding,), (skipped,) = checked.findings, checked.skipped
    assert finding.subject == skipped.subject == "web"
    assert finding.message == (
        "scipy 1.18 is under GPL-3.0-or-later WITH GCC-exception-3.1, which licences_deny bans; "
        "its METADATA says 'Copyright ...'"
    )
    assert "licences_known" in finding.hint
    assert skipped.reason == "the licence of nothing 2.0 is not known: its METADATA says nothing"
    assert "licences_known" in skipped.hint
    assert checked.detail == "3 distributions, 1 without a licence that can be told"


def test_what_is_new_is_told_by_distribution_and_not_by_version() -> None:
    before = check_licences(
        "web", [Licence("old", "1.0", "GPL-3.0-only", "GPL"), Licence("blank", "1.0", "", "")], ["*GPL-*"]
    )
    after = check_licences(
        "web",
        [
            Licence("old", "2.0", "GPL-3.0-only", "GPL, version 3"),
            Licence("blank", "2.0", "", "Dual"),
            Licence("fresh", "1.0", "GPL-3.0-only", "GPL"),
            Licence("dark", "1.0", "", ""),
        ],
        ["*GPL-*"],
    )
    new = newly(after, before)
    assert [finding.message.partition(" is")[0] for finding in new.findings] == ["fresh 1.0"]
    assert [skipped.reason.partition(" is")[0] for skipped in new.skipped] == ["the licence of dark 1.0"]
    assert newly(after, None) == after
    worse = check_licences("web", [Licence("old", "3.0", "AGPL-3.0-only", "AGPL")], ["*GPL-*"])
    assert len(newly(worse, before).findings) == 1, "another licence is news"
    assert (
        len(newly(check_licences("web", [Licence("blank", "2.0", "GPL-3.0-only", "")], ["*GPL-*"]), before).findings)
        == 1
    )


IDENTIFIERS = ["MIT", "Apache-2.0", "GPL-3.0-only", "AGPL-3.0-only"]
TREES = st.recursive(
    st.sampled_from(IDENTIFIERS),
    lambda inner: st.tuples(st.sampled_from(["AND", "OR"]), st.lists(inner, min_size=2, max_size=3)),
    max_leaves=8,
)


def written(tree: str | tuple[str, list[object]]) -> str:
    if isinstance(tree, str):
        return tree
    return "(" + f" {tree[0]} ".join(written(part) for part in tree[1]) + ")"  # type: ignore[arg-type]


def allowed(tree: str | tuple[str, list[object]], deny: Sequence[str]) -> bool:
    if isinstance(tree, str):
        return tree not in deny
    parts = [allowed(part, deny) for part in tree[1]]  # type: ignore[arg-type]
    return all(parts) if tree[0] == "AND" else any(parts)


@given(tree=TREES, deny=st.sets(st.sampled_from(IDENTIFIERS), min_size=1))
def test_an_expression_passes_exactly_when_there_is_an_allowed_way(
    tree: str | tuple[str, list[object]], deny: set[str]
) -> None:
    expected = "passes" if allowed(tree, sorted(deny)) else "banned"
    assert verdict(written(tree), *sorted(deny)) == expected
