"""Advisories: what documents say, held against the schema's own pseudocode; and a database that is whole or refused."""

from __future__ import annotations

import io
import itertools
import json
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.version import Version

from layerkit.advisories import Advisory, Affected, Level, applies, fixed_above, merge, parse_advisory
from layerkit.advisorydb import Store, import_archive, store_path
from layerkit.errors import ConfigurationError, ExternalError
from tests.support.osv import KNOWN, Document, affects, archive, document

ROOT = Path(__file__).parents[2]

V2 = "AV:N/AC:L/Au:N/C:P/I:P/A:P"  # 7.5
V3 = "CVSS:3.1/AV:N/AC:H/PR:N/UI:N/S:C/C:H/I:N/A:N"  # 6.8
V30 = "CVSS:3.0/AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:H/A:H"  # 9.8
V4 = "CVSS:4.0/AV:N/AC:L/AT:N/PR:H/UI:N/VC:L/VI:L/VA:N/SC:N/SI:N/SA:N"  # 5.1

URLLIB3 = document(
    "PYSEC-2023-192",
    "urllib3",
    {"introduced": "0"},
    {"fixed": "1.26.17"},
    {"introduced": "2.0.0"},
    {"fixed": "2.0.6"},
    aliases=["GHSA-v845-jxx5-vc9f", "CVE-2023-43804"],
    details="urllib3 does not treat the `Cookie` header specially,\nand may leak it to another origin by redirects.",
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)

# A few versions close together, so that bounds meet them: pre-releases, post-releases, other spellings of one version.
VERSIONS = st.sampled_from(
    [
        "0",
        "0.1",
        "0.9rc1",
        "1",
        "1.0",
        "1.0.0",
        "1.0.post1",
        "1.0.1.dev2",
        "1.0.1a1",
        "1.0.1",
        "1.1",
        "v1.1",
        "1.10",
        "2",
    ]
) | st.builds("{}.{}{}".format, st.integers(0, 2), st.integers(0, 3), st.sampled_from(["", ".1", "b2", ".post1"]))


@st.composite
def documents(draw: st.DrawFn) -> Document:
    """Advisories about ``a`` and ``b``, with several entries, ranges and events in any order."""
    entries = []
    for _ in range(draw(st.integers(1, 3))):
        ranges = []
        for _ in range(draw(st.integers(0, 2))):
            end = draw(st.sampled_from(["fixed", "last_affected"]))
            event = st.builds(lambda kind, version: {kind: version}, st.sampled_from(["introduced", end]), VERSIONS)
            ranges.append(
                {
                    "type": draw(st.sampled_from(["ECOSYSTEM"] * 3 + ["GIT"])),
                    "events": draw(st.lists(event, max_size=6)),
                }
            )
        ecosystem = draw(st.sampled_from(["PyPI"] * 4 + ["npm"]))
        package = {"name": draw(st.sampled_from(["a", "A", "b"])), "ecosystem": ecosystem}
        entries.append({"package": package, "ranges": ranges, "versions": draw(st.lists(VERSIONS, max_size=3))})
    return {**document(f"X-{draw(st.integers(0, 9))}", "a"), "affected": entries}


# ---- what a document says ----


def test_a_document_of_pypis_own_database() -> None:
    advisory = parse_advisory(URLLIB3)
    assert advisory == Advisory(
        id="PYSEC-2023-192",
        aliases=("CVE-2023-43804", "GHSA-v845-jxx5-vc9f"),
        summary="urllib3 does not treat the `Cookie` header specially, and may leak it to another origin by redirects.",
        level=Level.UNKNOWN,
        score=None,
        vector="",
        affected=(Affected("urllib3", (("0", "1.26.17", False), ("2.0.0", "2.0.6", False)), (), ("1.26.17", "2.0.6")),),
        url="https://osv.dev/vulnerability/PYSEC-2023-192",
        modified="2024-01-02T03:04:05Z",
        withdrawn=False,
    )


def severities(*vectors: object) -> list[dict[str, object]]:
    return [{"type": "CVSS_V3", "score": vector} for vector in vectors]


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, (Level.UNKNOWN, None, "")),
        ({"severity": severities(V2)}, (Level.HIGH, 7.5, V2)),
        ({"severity": severities(V3)}, (Level.MEDIUM, 6.8, V3)),
        ({"severity": severities(V30)}, (Level.CRITICAL, 9.8, V30)),
        ({"severity": severities(V4)}, (Level.MEDIUM, 5.1, V4)),
        ({"severity": severities(V3, V30, V4, V2)}, (Level.CRITICAL, 9.8, V30)),
        ({"severity": severities("CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:N/I:N/A:N")}, (Level.LOW, 0.0, None)),
        ({"severity": severities("CVSS:3.1/AV:P/AC:H/PR:H/UI:R/S:U/C:L/I:N/A:N")}, (Level.LOW, 1.6, None)),
        ({"severity": severities(V3), "database_specific": {"severity": "LOW"}}, (Level.MEDIUM, 6.8, V3)),
        ({"database_specific": {"severity": "MODERATE"}}, (Level.MEDIUM, None, "")),
        ({"database_specific": {"severity": "critical"}}, (Level.CRITICAL, None, "")),
        ({"database_specific": {"severity": "dreadful"}}, (Level.UNKNOWN, None, "")),
        ({"database_specific": {"severity": 9}}, (Level.UNKNOWN, None, "")),
        ({"database_specific": "HIGH"}, (Level.UNKNOWN, None, "")),
        ({"severity": severities("CVSS:3.1/AV:N", "high", "", None, 9.8, V4)}, (Level.MEDIUM, 5.1, V4)),
        ({"severity": severities("CVSS:9.9/AV:N")}, (Level.UNKNOWN, None, "")),
        ({"severity": severities("CVSS:3.1/"), "database_specific": {"severity": "HIGH"}}, (Level.HIGH, None, "")),
        ({"severity": "CVSS:3.1"}, (Level.UNKNOWN, None, "")),
        ({"severity": ["HIGH", None]}, (Level.UNKNOWN, None, "")),
    ],
)
def test_severity(more: Document, expected: tuple[Level, float | None, str | None]) -> None:
    advisory = parse_advisory({**URLLIB3, **more})
    level, score, vector = expected
    assert (advisory.level, advisory.score) == (level, score)
    assert vector is None or advisory.vector == vector


def test_the_severity_of_a_package_counts_too() -> None:
    (entry,) = URLLIB3["affected"]
    advisory = parse_advisory({**URLLIB3, "affected": [{**entry, "severity": severities(V4)}]})
    assert (advisory.level, advisory.vector) == (Level.MEDIUM, V4)


@given(vector=st.text() | st.lists(st.sampled_from([*V3.split("/"), *V4.split("/"), "E:P", "X"])).map("/".join))
def test_no_vector_is_an_error(vector: str) -> None:
    advisory = parse_advisory({**URLLIB3, "severity": severities(vector)})
    assert (advisory.score is None) == (advisory.level is Level.UNKNOWN)
    assert advisory.score is None or 0 <= advisory.score <= 10


def test_unknown_is_above_every_threshold() -> None:
    scale = [Level.LOW, Level.MEDIUM, Level.HIGH, Level.CRITICAL]
    for one, threshold in itertools.product(scale, scale):
        assert one.reaches(threshold) == (scale.index(one) >= scale.index(threshold))
    assert all(Level.UNKNOWN.reaches(threshold) for threshold in scale)


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ([], "not an object"),
        ({}, "no id"),
        ({**URLLIB3, "id": None}, "no id"),
        ({**URLLIB3, "id": 7}, "no id"),
        ({**URLLIB3, "id": "PYSEC-1\x1b[2J"}, "no id"),
        ({**URLLIB3, "modified": None}, "when it was modified"),
        ({**URLLIB3, "modified": "yesterday"}, "when it was modified"),
        ({**URLLIB3, "modified": "0001-01-01T00:00:00+23:00"}, "when it was modified"),
        ({**URLLIB3, "schema_version": "2.0.0"}, "schema version '2.0.0'"),
        ({**URLLIB3, "schema_version": 1}, "schema version 1"),
        ({**URLLIB3, "aliases": "CVE-1"}, "'aliases' is malformed"),
        ({**URLLIB3, "aliases": [1]}, "'aliases' is malformed"),
        ({**URLLIB3, "affected": {"package": {}}}, "'affected' is malformed"),
        ({**URLLIB3, "affected": [{"package": "urllib3"}]}, "no ecosystem"),
        ({**URLLIB3, "affected": [{"package": {"name": "urllib3"}}]}, "no ecosystem"),
        ({**URLLIB3, "affected": [{"package": {"ecosystem": "PyPI"}}]}, "no name"),
        ({**URLLIB3, "affected": [{**URLLIB3["affected"][0], "ranges": ["1.0"]}]}, "'ranges' is malformed"),
        ({**URLLIB3, "affected": [{**URLLIB3["affected"][0], "versions": [1.0]}]}, "'versions' is malformed"),
        (document("X-1", "a", {"introduced": 1}), "'introduced' is no text"),  # type: ignore[dict-item]
    ],
)
def test_what_is_no_advisory(broken: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_advisory(broken)


@given(value=JSON)
def test_anything_is_an_advisory_or_a_value_error(value: Any) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  (which one it is stands in test_what_is_no_advisory)
        parse_advisory(value)


@given(base=documents(), key=st.sampled_from([*URLLIB3, "severity", "withdrawn", "database_specific"]), value=JSON)
def test_a_document_with_anything_in_one_place(base: Document, key: str, value: Any) -> None:
    try:
        advisory = parse_advisory({**base, key: value})
    except ValueError:
        return
    assert advisory.id
    assert advisory.summary.isprintable()
    applies(advisory, "a", "1.0")
    fixed_above(advisory, "a", "1.0")


def test_a_summary_is_one_printable_line() -> None:
    advisory = parse_advisory({**URLLIB3, "summary": "\x1b[31mred\x1b[0m\r\nand\tthe \u202enext line " + "x" * 500})
    assert advisory.summary.startswith("[31mred[0m and the next line xxx")
    assert len(advisory.summary) == 160
    assert advisory.summary.isprintable()


def test_aliases_that_are_no_ids_are_left_out() -> None:
    advisory = parse_advisory({**URLLIB3, "aliases": ["CVE-2", "not an id", "PYSEC-2023-192", "CVE-1", "CVE-2", ""]})
    assert advisory.aliases == ("CVE-1", "CVE-2")
    assert advisory.ids == {"PYSEC-2023-192", "CVE-1", "CVE-2"}


# ---- what it means for a version ----


@pytest.mark.parametrize(
    ("version", "affected", "fixed"),
    [
        ("1.26.16", True, "1.26.17"),
        ("1.26.17", False, "2.0.6"),
        ("1.26.17.dev1", True, "1.26.17"),
        ("2.0.0a1", False, "2.0.6"),
        ("2.0.0", True, "2.0.6"),
        ("2.0.4", True, "2.0.6"),
        ("2.0.6", False, None),
        ("0", True, "1.26.17"),
        ("not a version", False, None),
        ("9" * 5000, False, None),
    ],
)
def test_several_ranges(version: str, affected: bool, fixed: str | None) -> None:
    advisory = parse_advisory(URLLIB3)
    assert applies(advisory, "urllib3", version) == affected
    assert fixed_above(advisory, "urllib3", version) == fixed


def test_a_fix_of_one_range_that_another_affects_is_none() -> None:
    one = document("X-1", "a", {"introduced": "0"}, {"fixed": "1.5"})
    one["affected"][0]["ranges"].append({"type": "ECOSYSTEM", "events": [{"introduced": "1.2"}, {"fixed": "1.7"}]})
    one["affected"].append({"package": {"ecosystem": "PyPI", "name": "A"}, "versions": ["1.7"]})
    advisory = parse_advisory(one)
    assert applies(advisory, "a", "1.0")
    assert fixed_above(advisory, "a", "1.0") is None


def test_a_fix_that_ends_no_stretch_is_one_all_the_same() -> None:
    """Two lines of releases in one range, whose stretches overlap: the second fix is that of the second line."""
    events = ({"introduced": "2.11"}, {"fixed": "2.11.7"}, {"introduced": "0"}, {"fixed": "2.11.6"})
    one = document("X-1", "a", *events, {"introduced": "2.12"}, {"fixed": "2.12.4"}, versions=["2.11.1", "2.11.6"])
    advisory = parse_advisory(one)
    assert fixed_above(advisory, "a", "2.11.1") == "2.11.7"
    assert fixed_above(advisory, "a", "2.12") == "2.12.4"


def test_the_last_affected_version_is_no_fix() -> None:
    advisory = parse_advisory(document("X-1", "py", {"introduced": "0"}, {"last_affected": "1.11.0"}))
    assert applies(advisory, "py", "1.11.0")
    assert not applies(advisory, "py", "1.11.1")
    assert fixed_above(advisory, "py", "1.11.0") is None


def test_listed_versions_are_affected_however_they_are_written() -> None:
    one = document("X-1", "jw.util", versions=["1.0", "2.0-alpha", "odd-build"])
    advisory = parse_advisory(one)
    for version in ("1.0", "1.0.0", "v1", "2.0a0", "odd-build"):
        assert applies(advisory, "jw.util", version), version
    for version in ("1.0.1", "odd", "1.0.post1"):
        assert not applies(advisory, "jw.util", version), version
    for name in ("jw-util", "JW_Util", "jw...util"):
        assert applies(advisory, name, "1.0"), name
    assert not applies(advisory, "jwutil", "1.0")


def test_commits_are_not_versions() -> None:
    one = document("X-1", "a", versions=["1.0"])
    one["affected"][0]["ranges"] = [{"type": "GIT", "events": [{"introduced": "0"}, {"fixed": "2" * 40}]}]
    one["affected"].append({"ranges": [{"type": "GIT", "events": [{"introduced": "0"}]}]})
    one["affected"].append(
        {"package": {"ecosystem": "npm", "name": "a"}, "ranges": [{"events": [{"introduced": "0"}]}]}
    )
    advisory = parse_advisory(one)
    assert applies(advisory, "a", "1.0")
    assert not applies(advisory, "a", "1.1")


def test_what_is_no_version_ends_nothing() -> None:
    never_ending = parse_advisory(document("X-1", "a", {"introduced": "1.0"}, {"fixed": "the next one"}))
    assert applies(never_ending, "a", "99")
    assert fixed_above(never_ending, "a", "1.0") is None
    from_the_beginning = parse_advisory(document("X-2", "a", {"introduced": "some time"}, {"fixed": "2.0"}))
    assert applies(from_the_beginning, "a", "0.1")
    assert not applies(from_the_beginning, "a", "2.0")


def test_an_installed_version_that_is_none_is_affected_when_all_are() -> None:
    always = parse_advisory(document("X-1", "a", {"introduced": "0"}))
    assert applies(always, "a", "2004d-final")
    assert not applies(parse_advisory(document("X-2", "a", {"introduced": "1"})), "a", "2004d-final")


@pytest.mark.parametrize(
    ("events", "version", "affected"),
    [
        ([{"introduced": "0"}, {"last_affected": "2.0.1"}], "2.0.1+cpu", True),
        ([{"introduced": "0"}, {"fixed": "2.0.1"}], "2.0.1+cpu", False),
        ([{"introduced": "0"}, {"fixed": "2.0.1"}], "2.0.0+cpu", True),
        ([{"introduced": "2.0.1"}], "2.0.1+cpu", True),
        ([{"introduced": "0"}, {"fixed": "2.0.1+patched.2"}], "2.0.1+patched.1", True),
        ([{"introduced": "0"}, {"fixed": "2.0.1+patched.2"}], "2.0.1+patched.2", False),
    ],
)
def test_a_local_version_is_what_it_was_made_from(events: list[dict[str, str]], version: str, affected: bool) -> None:
    assert applies(parse_advisory(document("X-1", "torch", *events)), "torch", version) == affected


def test_a_listed_version_covers_its_local_ones() -> None:
    advisory = parse_advisory(document("X-1", "torch", versions=["2.0.1"]))
    assert applies(advisory, "torch", "2.0.1+cpu")
    assert not applies(parse_advisory(document("X-1", "torch", versions=["2.0.1+cu118"])), "torch", "2.0.1")


def test_what_was_withdrawn_affects_nothing() -> None:
    advisory = parse_advisory({**URLLIB3, "withdrawn": "2024-01-01T00:00:00Z"})
    assert advisory.withdrawn
    assert not applies(advisory, "urllib3", "2.0.4")


@given(one=documents(), name=st.sampled_from(["a", "b"]), version=VERSIONS)
def test_applies_is_what_the_schema_says(one: Document, name: str, version: str) -> None:
    assert applies(parse_advisory(one), name, version) == affects(one, name, version)


@given(one=documents(), name=st.sampled_from(["a", "b"]), version=VERSIONS)
def test_a_fix_is_the_lowest_above_that_is_free(one: Document, name: str, version: str) -> None:
    ends = {
        event["fixed"]
        for affected in one["affected"]
        if affected["package"]["ecosystem"] == "PyPI" and affected["package"]["name"].lower() == name
        for range_ in affected["ranges"]
        if range_["type"] != "GIT"
        for event in range_["events"]
        if "fixed" in event and Version(event["fixed"]) > Version(version) and not affects(one, name, event["fixed"])
    }
    fixed = fixed_above(parse_advisory(one), name, version)
    assert (fixed is None) == (not ends)
    assert fixed is None or (fixed in ends and Version(fixed) == min(map(Version, ends)))


@given(one=documents(), version=VERSIONS)
def test_what_is_affected_and_ends_with_a_fix_has_one(one: Document, version: str) -> None:
    """Where the highest event of all is a fix, there is a way out."""
    top = {"introduced": "0"}, {"fixed": "9"}
    for entry in one["affected"]:
        entry["ranges"] = [{"type": "ECOSYSTEM", "events": [*top]}]
    advisory = parse_advisory(one)
    assert fixed_above(advisory, "a", version) == ("9" if any(e.name == "a" for e in advisory.affected) else None)


# ---- several documents of one vulnerability ----


def three_of_one() -> tuple[Advisory, Advisory, Advisory]:
    """Connected in a row, only the last knows how severe it is."""
    return (
        parse_advisory(
            document("PYSEC-1", "a", {"introduced": "0"}, {"fixed": "1.5"}, aliases=["CVE-1"], details="Long " * 20)
        ),
        parse_advisory(document("CVE-1", "a", aliases=["GHSA-1"], modified="2024-05-01T00:00:00+02:00")),
        parse_advisory(
            document(
                "GHSA-1",
                "a",
                {"introduced": "0"},
                {"fixed": "1.6"},
                summary="Short",
                database_specific={"severity": "HIGH"},
                modified="2024-04-30T23:00:00Z",
            )
        ),
    )


def test_documents_of_one_vulnerability_are_merged() -> None:
    (merged,) = merge(three_of_one())
    assert (merged.id, merged.aliases) == ("PYSEC-1", ("CVE-1", "GHSA-1"))
    assert (merged.level, merged.summary) == (Level.HIGH, "Short")
    assert merged.modified == "2024-04-30T23:00:00Z"
    assert applies(merged, "a", "1.5")
    assert fixed_above(merged, "a", "1.0") == "1.6"


def test_a_known_severity_goes_before_an_unknown_one_and_a_higher_before_a_lower() -> None:
    levels: list[tuple[str, Document]] = [
        ("A-1", {}),
        ("A-2", {"severity": severities(V4)}),
        ("A-3", {"severity": severities(V3)}),
    ]
    (merged,) = merge(parse_advisory(document(id_, "a", aliases=["CVE-1"], **more)) for id_, more in levels)
    assert (merged.level, merged.score, merged.vector) == (Level.MEDIUM, 6.8, V3)


def test_withdrawn_documents_add_names_only() -> None:
    in_force, _, ghsa = three_of_one()
    gone = parse_advisory(
        document(
            "PYSEC-0",
            "a",
            {"introduced": "0"},
            aliases=["CVE-1"],
            withdrawn="2024-01-01T00:00:00Z",
            severity=severities(V30),
        )
    )
    (merged,) = merge([gone, in_force])
    assert (merged.id, merged.aliases, merged.withdrawn) == ("PYSEC-1", ("CVE-1", "PYSEC-0"), False)
    assert (merged.level, merged.affected) == (Level.UNKNOWN, in_force.affected)
    assert [one.withdrawn for one in merge([gone, ghsa])] == [False, True]


ADVISORIES = st.lists(
    st.builds(
        lambda id_, aliases, level, one: parse_advisory(
            {**one, "id": id_, "aliases": aliases, "database_specific": {"severity": level}}
        ),
        st.sampled_from(["PYSEC-1", "PYSEC-2", "GHSA-1", "GHSA-2", "CVE-1", "CVE-2", "MAL-1"]),
        st.lists(st.sampled_from(["PYSEC-1", "GHSA-2", "CVE-1", "CVE-2", "CVE-3"]), max_size=2),
        st.sampled_from(["LOW", "MODERATE", "CRITICAL", ""]),
        documents(),
    ),
    unique_by=lambda advisory: advisory.id,
    max_size=7,
)


@given(advisories=ADVISORIES, seed=st.randoms(use_true_random=False))
def test_merging_is_a_partition_and_once_is_enough(advisories: list[Advisory], seed: random.Random) -> None:
    merged = merge(advisories)
    assert merge(merged) == merged
    shuffled = list(advisories)
    seed.shuffle(shuffled)
    assert [(one.ids, one.level) for one in merge(shuffled)] == [(one.ids, one.level) for one in merged]
    assert sum(len(one.ids) for one in merged) == len(frozenset().union(*(one.ids for one in advisories)))
    for advisory in advisories:
        (home,) = [one for one in merged if advisory.id in one.ids]
        assert advisory.ids <= home.ids
        assert advisory.level is Level.UNKNOWN or home.level is not Level.UNKNOWN
        for name, version in itertools.product("ab", ["0.1", "1.0", "1.1", "2"]):
            assert not applies(advisory, name, version) or applies(home, name, version)


# ---- the database ----

DOCUMENTS = [
    URLLIB3,
    document(
        "GHSA-v845-jxx5-vc9f",
        "urllib3",
        {"introduced": "2.0.0"},
        {"fixed": "2.0.6"},
        aliases=["CVE-2023-43804"],
        severity=severities(V3),
        modified="2024-02-02T00:00:00.123456789Z",
    ),
    document("PYSEC-9", "urllib3", {"introduced": "0"}, withdrawn="2024-01-01T00:00:00Z", aliases=["CVE-9"]),
    document("PYSEC-10", "Jinja2", {"introduced": "0"}, {"fixed": "3.0"}, aliases=["CVE-10"]),
    {**document("GHSA-npm", "left-pad"), "affected": [{"package": {"ecosystem": "npm", "name": "urllib3"}}]},
]
NOW = datetime(2024, 6, 1, tzinfo=UTC)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A database of ``DOCUMENTS``."""
    path = tmp_path / "cache" / "advisories" / "pypi.sqlite"
    import_archive(io.BytesIO(archive(DOCUMENTS)), path, now=NOW)
    return path


def ids(advisories: tuple[Advisory, ...]) -> list[str]:
    return [advisory.id for advisory in advisories]


def test_what_is_imported_is_found(store: Path) -> None:
    with Store.open(store) as opened:
        assert ids(opened.query("urllib3", "2.0.4")) == ["GHSA-v845-jxx5-vc9f", "PYSEC-2023-192"]
        assert ids(opened.query("urllib3", "1.26.0")) == ["PYSEC-2023-192"]
        assert ids(opened.query("urllib3", "2.0.6")) == []
        assert ids(opened.query("JINJA2", "2.0")) == ["PYSEC-10"]
        assert ids(opened.query("left-pad", "1.0")) == []
        assert ids(opened.about("urllib3")) == ["GHSA-v845-jxx5-vc9f", "PYSEC-2023-192"]
        assert opened.query("urllib3", "2.0.4")[1] == parse_advisory(URLLIB3)


def test_an_advisory_is_got_by_any_of_its_names(store: Path) -> None:
    with Store.open(store) as opened:
        for name in ("PYSEC-2023-192", "GHSA-v845-jxx5-vc9f", "CVE-2023-43804"):
            found = opened.get(name)
            assert found is not None
            assert (found.id, found.level, found.aliases) == (
                "PYSEC-2023-192",
                Level.MEDIUM,
                ("CVE-2023-43804", "GHSA-v845-jxx5-vc9f"),
            )
        gone = opened.get("CVE-9")
        assert gone is not None
        assert gone.withdrawn
        assert opened.get("GHSA-npm") is None
        assert opened.get("CVE-0000-0000") is None


def test_what_a_database_was_made_from(store: Path, tmp_path: Path) -> None:
    (tmp_path / "all.zip").write_bytes(archive(DOCUMENTS))
    told: list[tuple[int, int]] = []
    edition = import_archive(tmp_path / "all.zip", store, now=NOW, tell=lambda done, total: told.append((done, total)))
    assert told == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]
    with Store.open(store) as opened:
        assert opened.edition == edition
        assert (opened.count, opened.date) == (4, datetime(2024, 2, 2, 0, 0, 0, 123456, tzinfo=UTC))
        assert (edition.imported, edition.source) == (NOW, str(tmp_path / "all.zip"))


def test_a_date_in_the_future_makes_no_data_new(tmp_path: Path) -> None:
    slip = document("X-2", "a", {"introduced": "0"}, modified="2099-01-01T00:00:00Z")
    edition = import_archive(io.BytesIO(archive([*DOCUMENTS, slip])), tmp_path / "db", now=NOW)
    assert edition.date.year == 2024
    late = {**KNOWN, "modified": "2099-02-01T00:00:00Z"}
    assert import_archive(io.BytesIO(archive([slip, late])), tmp_path / "db", now=NOW).date.year == 2099


def test_of_two_documents_with_one_id_the_newer_counts(tmp_path: Path) -> None:
    old = document("X-1", "a", {"introduced": "0"}, aliases=["CVE-1"], modified="2024-01-01T00:00:00Z")
    new = document("X-1", "b", {"introduced": "0"}, aliases=["CVE-2"], modified="2024-01-01T01:30:00+01:00")
    for number, order in enumerate(([old, new, KNOWN], [new, old, KNOWN])):
        folder = tmp_path / f"documents{number}"
        folder.mkdir()
        for place, one in enumerate(order):
            (folder / f"{place}.json").write_text(json.dumps(one))
        assert import_archive(folder, tmp_path / "db").count == 2
        with Store.open(tmp_path / "db") as opened:
            assert (ids(opened.about("a")), ids(opened.about("b"))) == ([], ["X-1"])
            assert opened.get("CVE-1") is None


def test_a_folder_with_documents_or_with_the_archive(tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    (folder / "urllib3").mkdir(parents=True)
    (folder / "README.md").write_text("not an advisory")
    (folder / "all.zip").write_bytes(archive(DOCUMENTS))
    assert import_archive(folder, tmp_path / "db").count == 4
    (folder / "urllib3" / "one.json").write_text(json.dumps(KNOWN))
    assert import_archive(folder, tmp_path / "db").count == 1


def test_a_folder_with_several_archives_is_none(tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    for name in ("all.zip", "old.zip"):
        (tmp_path / "copy" / name).write_bytes(archive(DOCUMENTS))
    with pytest.raises(ExternalError, match="has several zips and no documents: name the one"):
        import_archive(tmp_path / "copy", tmp_path / "db")


def with_member(name: str, content: bytes, compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    target = io.BytesIO(archive(DOCUMENTS))
    with zipfile.ZipFile(target, "a") as opened:
        opened.writestr(name, content, compression)
    return target.getvalue()


def lying_about_its_size() -> bytes:
    """A member that unzips to 64 MiB and says that it has 100 bytes."""
    content = with_member("X.json", b" " * 64 * 1024 * 1024)
    return content.replace((64 * 1024 * 1024).to_bytes(4, "little"), (100).to_bytes(4, "little"))


def encrypted() -> bytes:
    """The flag in the member's own header and in the directory."""
    content = bytearray(archive(DOCUMENTS[:1]))
    for sign, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(sign) + offset] |= 1
    return bytes(content)


BROKEN: dict[str, tuple[Callable[[], bytes], str]] = {
    "nothing": (lambda: b"", "not a zip"),
    "a page": (lambda: b"<html>Please log in</html>", "not a zip"),
    "cut short": (lambda: archive(DOCUMENTS)[:-30], "not a zip"),
    "the beginning is missing": (lambda: archive(DOCUMENTS)[200:], "can't be imported"),
    "damaged": (lambda: _with_flipped(archive(DOCUMENTS), 60), "can't be imported"),
    "of nothing": (lambda: archive([]), "no advisories about distributions on PyPI"),
    "of something small": (lambda: archive(DOCUMENTS[:1]), "is no copy of OSV's data: it has no advisory about jinja2"),
    "of a later jinja2 only": (
        lambda: archive([document("X", "jinja2", {"introduced": "3"})]),
        "is no copy of OSV's data",
    ),
    "of another ecosystem": (lambda: archive(DOCUMENTS[-1:]), "no advisories about distributions on PyPI"),
    "of something else": (lambda: with_member("package.json", b'{"name": "left-pad"}'), "package.json is no advisory"),
    "one that is not JSON": (lambda: with_member("X.json", b"id: PYSEC-1"), "X.json is no advisory.*not JSON"),
    "one that is not text": (lambda: with_member("X.json", b"\xff\xfe\x00"), "X.json is no advisory.*not JSON"),
    "one that is deep": (lambda: with_member("X.json", b"[" * 100_000), "X.json is no advisory"),
    "one of a later schema": (
        lambda: archive([*DOCUMENTS, {**URLLIB3, "id": "X", "schema_version": "2.0"}]),
        "X.json is no advisory.*schema version",
    ),
    "one that is huge": (lambda: with_member("X.json", b" " * (17 * 1024 * 1024)), "X.json is too large"),
    "one that lies": (lying_about_its_size, "can't be imported"),
    "encrypted": (encrypted, "encrypted"),
    "compressed otherwise": (lambda: with_member("X.json", b"{}", zipfile.ZIP_LZMA), "not compressed as OSV does it"),
    "a name for a terminal": (lambda: with_member("\x1b]0;x\x07.json", b"{}"), "no advisory"),
}


def _with_flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :]


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_archive_changes_nothing(kind: str, store: Path, tmp_path: Path) -> None:
    make, reason = BROKEN[kind]
    (tmp_path / "all.zip").write_bytes(make())
    before = store.read_bytes()
    with pytest.raises(ExternalError, match=reason) as caught:
        import_archive(tmp_path / "all.zip", store)
    assert caught.value.message.startswith(f"{tmp_path / 'all.zip'} can't be imported: ")
    assert caught.value.message.isprintable()
    assert "unchanged" in caught.value.hint
    assert store.read_bytes() == before
    assert sorted(path.name for path in store.parent.iterdir()) == ["lock", "pypi.sqlite"]


def test_without_a_database_there_is_none_to_be_unchanged(tmp_path: Path) -> None:
    (tmp_path / "all.zip").write_bytes(b"")
    with pytest.raises(ExternalError) as caught:
        import_archive(tmp_path / "all.zip", tmp_path / "cache" / "db")
    assert caught.value.hint == "Get OSV's archive for PyPI (all.zip) again."


@given(place=st.integers(0), length=st.integers(0, 40), filler=st.binary(max_size=8))
def test_an_archive_changed_anywhere_is_imported_whole_or_refused(
    place: int, length: int, filler: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    good = archive(DOCUMENTS)
    place %= len(good)
    folder = tmp_path_factory.mktemp("changed")
    try:
        edition = import_archive(io.BytesIO(good[:place] + filler + good[place + length :]), folder / "db", now=NOW)
    except ExternalError:
        assert sorted(path.name for path in folder.iterdir()) == ["lock"]
    else:
        with Store.open(folder / "db") as opened:
            assert opened.edition == edition


def test_paths_with_nothing(store: Path, tmp_path: Path) -> None:
    before = store.read_bytes()
    with pytest.raises(ConfigurationError, match=r"nowhere\.zip: there is no such"):
        import_archive(tmp_path / "nowhere.zip", store)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ExternalError, match="no advisories"):
        import_archive(tmp_path / "empty", store)
    (tmp_path / "empty" / "big.json").write_bytes(b" " * (17 * 1024 * 1024))
    with pytest.raises(ExternalError, match=r"big\.json is too large"):
        import_archive(tmp_path / "empty", store)
    assert store.read_bytes() == before


RUN = """
import os, resource, signal, sys
from pathlib import Path
from layerkit.advisorydb import import_archive
archive, store, how, at = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
if how == "full":
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (at, at))
def dying(event, arguments):
    global at
    if event in ("os.rename", "os.remove"):
        at -= 1
        if at == 0:
            os.kill(os.getpid(), signal.SIGKILL)
if how == "moving":
    sys.addaudithook(dying)
def tell(done, total):
    if how == "reading" and done == at:
        os.kill(os.getpid(), signal.SIGKILL)
import_archive(archive, store, tell=tell)
"""


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", RUN, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("how", "at"), [("reading", 1), ("reading", 300), ("moving", 1)])
def test_a_killed_import_changes_nothing(how: str, at: int, store: Path, tmp_path: Path) -> None:
    before = store.read_bytes()
    many = [document(f"X-{n}", "a", {"introduced": "0"}) for n in range(300)]
    (tmp_path / "all.zip").write_bytes(archive([*many, KNOWN]))
    assert run(tmp_path / "all.zip", store, how, at).returncode == -signal.SIGKILL
    assert store.read_bytes() == before
    left = [path for path in store.parent.iterdir() if path.name.startswith(".pypi.sqlite.")]
    assert len(left) == 1
    # What is left goes with the next one.
    assert run(tmp_path / "all.zip", store, "", 0).returncode == 0
    assert sorted(path.name for path in store.parent.iterdir()) == ["lock", "pypi.sqlite"]
    with Store.open(store) as opened:
        assert opened.count == 301


def test_a_full_disk_changes_nothing(store: Path, tmp_path: Path) -> None:
    before = store.read_bytes()
    many = [document(f"X-{n}", "a", {"introduced": "0"}) for n in range(300)]
    (tmp_path / "all.zip").write_bytes(archive([*many, KNOWN]))
    done = run(tmp_path / "all.zip", store, "full", 20_000)
    assert done.returncode == 1
    assert f"ExternalError: The database of advisories can't be written to {store.parent}" in done.stderr
    assert store.read_bytes() == before
    assert sorted(path.name for path in store.parent.iterdir()) == ["lock", "pypi.sqlite"]


def test_an_open_database_stays_what_it_is(store: Path) -> None:
    with Store.open(store) as opened:
        import_archive(io.BytesIO(archive([document("X-1", "a", {"introduced": "0"}), KNOWN])), store)
        assert ids(opened.query("urllib3", "2.0.4")) == ["GHSA-v845-jxx5-vc9f", "PYSEC-2023-192"]
    with Store.open(store) as opened:
        assert ids(opened.query("urllib3", "2.0.4")) == []
        assert ids(opened.query("a", "1")) == ["X-1"]


def test_a_database_that_is_no_copy_of_osvs_data(store: Path) -> None:
    """One that was made in another way; an import refuses such an archive."""
    with Store.open(store) as opened:
        opened.check()
    connection = sqlite3.connect(store)
    gone = json.dumps({**DOCUMENTS[3], "withdrawn": "2024-01-01T00:00:00Z"}).encode()
    connection.execute("UPDATE advisories SET document = ? WHERE id = 'PYSEC-10'", (zlib.compress(gone),))
    connection.commit()
    connection.close()
    with Store.open(store) as opened, pytest.raises(ExternalError, match=r"no advisory about jinja2 2\.4\.1") as caught:
        opened.check()
    assert "inv advisories-update" in caught.value.hint


def sqlite_of(*statements: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        connection = sqlite3.connect(path)
        for statement in statements:
            connection.execute(statement)
        connection.commit()
        connection.close()

    return make


def truncated(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (Path.unlink, "There is no local database of advisories"),
        (lambda path: path.write_bytes(b""), "is not a database of advisories"),
        (lambda path: path.write_bytes(b"something else" * 100), "can't be read: file is not a database"),
        (truncated, "can't be read"),
        (sqlite_of("PRAGMA application_id = 1"), "is not a database of advisories"),
        (sqlite_of("PRAGMA user_version = 0"), "is of another version of layerkit"),
        (sqlite_of("DROP TABLE names"), "can't be read: no such table"),
        (sqlite_of("DELETE FROM packages WHERE name = 'urllib3'"), "can't be read: it is damaged"),
        (
            sqlite_of("UPDATE about SET value = '2030-01-01T00:00:00' WHERE key = 'date'"),
            "can't be read: it is damaged",
        ),
        (sqlite_of("DELETE FROM about"), "can't be read"),
    ],
)
def test_a_database_that_cant_be_used(change: Callable[[Path], object], reason: str, store: Path) -> None:
    change(store)
    with pytest.raises(ExternalError, match=reason) as caught:
        Store.open(store)
    assert "inv advisories-update" in caught.value.hint


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM advisories WHERE id = 'PYSEC-2023-192'",
        "UPDATE advisories SET document = x'00' WHERE id = 'PYSEC-2023-192'",
        "UPDATE advisories SET id = 'X' WHERE id = 'PYSEC-2023-192'",
        "UPDATE advisories SET document = (SELECT document FROM advisories WHERE id = 'PYSEC-10')",
    ],
)
def test_a_document_that_is_missing_or_damaged_is_no_empty_answer(statement: str, store: Path) -> None:
    sqlite_of(statement)(store)
    with Store.open(store) as opened:
        for ask in (lambda: opened.query("urllib3", "2.0.4"), lambda: opened.get("CVE-2023-43804")):
            with pytest.raises(ExternalError, match="can't be read"):
                ask()


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A database of several pages that is only copied."""
    path = tmp_path_factory.mktemp("pristine") / "db"
    more = [document(f"X-{n}", f"package-{n % 40}", {"introduced": "0"}, aliases=[f"CVE-{n}"]) for n in range(300)]
    import_archive(io.BytesIO(archive([*DOCUMENTS, *more])), path, now=NOW)
    yield path
    shutil.rmtree(path.parent)


def answers(path: Path) -> object:
    with Store.open(path) as opened:
        names = ["urllib3", "jinja2", *(f"package-{n}" for n in range(40))]
        return opened.edition, [opened.query(name, "1.0") for name in names], [opened.get(f"CVE-{n}") for n in range(9)]


@given(place=st.integers(0), bit=st.integers(0, 7))
def test_a_damaged_database_gives_the_right_answer_or_none(
    place: int, bit: int, pristine: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    content = bytearray(pristine.read_bytes())
    content[place % len(content)] ^= 1 << bit
    copy = tmp_path_factory.mktemp("damaged") / "db"
    copy.write_bytes(content)
    try:
        found = answers(copy)
    except ExternalError:
        return
    finally:
        copy.unlink()
    assert found == answers(pristine)


def test_the_database_is_in_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAYERKIT_CACHE_DIR", str(tmp_path))
    assert store_path() == tmp_path / "advisories" / "pypi.sqlite"
    with pytest.raises(ExternalError, match="no local database") as caught:
        Store.open(store_path())
    assert caught.value.hint.startswith("Make it: inv advisories-update")
