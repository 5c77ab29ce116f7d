"""safety's answers: the real program on loopback services, and programs that leave what it was recorded to leave."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerkit.model import Skipped
from layerkit.safety import NAME, Database, Safety, SafetyAnswer, SafetyFinding, Unusable, reported
from layerkit.virtualenvs import environment, requirements_of
from tests.support.safety_service import Flaw, SafetyService, database, serve_safety

ROOT = Path(__file__).parents[2]

PINS = [("requests", "2.31.0"), ("six", "1.17.0")]
FLAW = Flaw("requests", ("<2.32.0",), "71064", ("CVE-2024-35195",), "A Session\n stays.", fixed=("2.32.0",))
FINDING = SafetyFinding(
    "requests", "2.31.0", "71064", ("CVE-2024-35195",), "A Session stays.", "unknown", None, ("2.32.0",), ""
)
LICENCE = "Licensed under CC-BY-4.0 by pyup.io"

# What safety 3.8.1 left of these two, without the parts that nothing here reads.
CHECKED = json.loads(
    '{"report_meta": {"scan_target": "files", "safety_version": "3.8.1", "packages_found": 2}, "scanned_packages": '
    '{"requests": {"name": "requests", "version": "2.31.0", "requirements": [{"raw": "requests==2.31.0", "extras": [], '
    '"marker": null, "name": "requests", "specifier": "==2.31.0", "url": null}]}, "six": {"name": "six", "version": '
    '"1.17.0", "requirements": [{"raw": "six==1.17.0", "extras": [], "marker": null, "name": "six", "specifier": '
    '"==1.17.0", "url": null}]}}, "announcements": [], "vulnerabilities": [{"vulnerability_id": "71064", '
    '"package_name": "requests", "ignored": {}, "vulnerable_spec": ["<2.32.0"], "analyzed_version": "2.31.0", '
    '"advisory": "A Session stays.", "fixed_versions": ["2.32.0"], "CVE": "CVE-2024-35195", "severity": null}], '
    '"ignored_vulnerabilities": [], "remediations": {}}'
)
SCANNED = json.loads(
    '{"meta": {"scan_type": "scan", "stage": "cicd", "authenticated": true, "schema_version": "3.0"}, "scan_results": '
    '{"files": [], "projects": [{"id": "", "policy": null, "git": null, "files": [{"location": "requirements.txt", '
    '"type": "requirements.txt", "categories": ["python"], "results": {"dependencies": [{"name": "requests", '
    '"specifications": [{"raw": "requests==2.31.0", "vulnerabilities": {"known_vulnerabilities": [{"id": "71064", '
    '"ignored": null, "vulnerable_spec": "<2.32.0"}], "remediation": {"vulnerabilities_found": 1}}}]}, {"name": "six", '
    '"specifications": [{"raw": "six==1.17.0", "vulnerabilities": {"known_vulnerabilities": [], "remediation": null}}]}'
    "]}}]}]}}"
)
NOISE = "\n\n+====+\n\nDEPRECATED: this command (`check`) has been DEPRECATED.\n\n+====+\n\n{ [ not JSON\n"


def cached(files: Mapping[str, Any]) -> dict[str, Any]:
    """A database as safety keeps it in its home."""
    return {name: {"cached_at": 1.0, "db": content} for name, content in files.items()}


# ---- what a report says ----


@pytest.mark.parametrize("report", [CHECKED, SCANNED], ids=["check", "scan"])
def test_a_report_as_it_was_recorded(report: Any) -> None:
    assert reported(report) == {("requests", "2.31.0"): {"71064"}, ("six", "1.17.0"): set()}


def test_what_a_policy_of_theirs_ignores_counts() -> None:
    (found,) = CHECKED["vulnerabilities"]
    ignoring = {**CHECKED, "vulnerabilities": [], "ignored_vulnerabilities": [found]}
    assert reported(ignoring)["requests", "2.31.0"] == {"71064"}


KEYS = st.sampled_from(["scan_results", "projects", "scanned_packages", "vulnerabilities", "ignored_vulnerabilities"])
JSON = st.recursive(
    st.none() | st.integers() | st.sampled_from(["six==1.17.0", ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
)


@given(JSON)
def test_what_is_no_report_is_an_error(report: Any) -> None:
    """Or one that has nothing of anything in it, so that nothing is clean by it."""
    try:
        found = reported(report)
    except Unusable:
        return
    assert found == {}


# ---- programs that leave something ----

# Stands in for the interpreter of an environment: it notes how it was called, and leaves what is in `left`.
FAKE = """#!{python}
import json, os, pathlib, sys, time
words = sys.argv[1:]
here = pathlib.Path(__file__).parent
left = json.loads((here / "left.json").read_text())
listed = pathlib.Path(words[words.index("--target") + 1], "requirements.txt") if "--target" in words else None
listed = listed or pathlib.Path(words[words.index("--file") + 1])
(here / "calls.json").write_text(json.dumps([words, dict(os.environ), listed.read_text()]))
report = words[words.index("--save-json") + 1] if "--save-json" in words else words[words.index("--save-as") + 2]
if left["report"] is not None:
    pathlib.Path(report).write_text(left["report"])
cache = pathlib.Path(os.environ["HOME"], ".safety", "200")
cache.mkdir(parents=True)
if left["cache"] is not None:
    (cache / "cache.json").write_text(left["cache"])
print(left["noise"])
sys.stdout.flush()
{behaviour}
sys.exit(left["code"])
"""


def fake(tmp_path: Path, behaviour: str = "", *, key: str = "", **left: Any) -> Safety:
    leaves = {
        "report": json.dumps(SCANNED if key else CHECKED),
        "cache": json.dumps(cached(database([FLAW]))),
        "noise": NOISE,
        "code": 64,
        **left,
    }
    (tmp_path / "left.json").write_text(json.dumps(leaves))
    python = tmp_path / "python"
    python.write_text(FAKE.format(python=sys.executable, behaviour=behaviour))
    python.chmod(0o755)
    return Safety(python, key, seconds=60)


def skipped(answer: SafetyAnswer | Skipped) -> str:
    assert isinstance(answer, Skipped), answer
    assert answer.reason.startswith("not scanned by safety: ")
    return answer.reason.removeprefix("not scanned by safety: ")


@pytest.mark.parametrize("key", ["", "sk-secret"], ids=["check", "scan"])
def test_what_it_leaves_is_read_and_what_it_prints_is_not(tmp_path: Path, key: str) -> None:
    answer = fake(tmp_path, key=key).screen(PINS)
    assert answer == SafetyAnswer(
        "scan" if key else "check", (FINDING,), {}, Database("2026-11-01T00:00:00", LICENCE, 1)
    )


def test_a_key_is_passed_on_where_nobody_else_can_read_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFETY_API_KEY", "another")
    monkeypatch.setenv("SAFETY_OUTPUT", "bare")
    safety = fake(tmp_path, key="sk-secret")
    assert "sk-secret" not in repr(safety)
    safety.screen(PINS)
    words, variables, listed = json.loads((tmp_path / "calls.json").read_text())
    assert words[:8] == ["-I", "-B", "-X", "utf8", "-m", "safety", "--disable-optional-telemetry", "scan"]
    assert not [word for word in words if "sk-secret" in word]
    assert variables["SAFETY_API_KEY"] == "sk-secret"
    assert "SAFETY_OUTPUT" not in variables
    assert listed == "requests==2.31.0\nsix==1.17.0\n"
    assert not Path(variables["HOME"]).exists()


def test_what_is_no_name_is_no_line_of_requirements(tmp_path: Path) -> None:
    answer = fake(tmp_path).screen([*PINS, ("-r /etc/passwd\nsix", "1.0"), ("", "1.0")])
    assert isinstance(answer, SafetyAnswer)
    assert set(answer.not_scanned) == {("-r /etc/passwd\nsix", "1.0"), ("", "1.0")}
    assert json.loads((tmp_path / "calls.json").read_text())[2] == "requests==2.31.0\nsix==1.17.0\n"


def test_without_a_key_none_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFETY_API_KEY", "not for check")
    fake(tmp_path).screen(PINS)
    words, variables, _ = json.loads((tmp_path / "calls.json").read_text())
    assert words[7] == "check"
    assert "SAFETY_API_KEY" not in variables


def test_what_the_environment_has_for_it(tmp_path: Path) -> None:
    variables = {"SAFETY_API_KEY": " sk-secret\n", "SAFETY_CA_BUNDLE": "/ca.pem", "SAFETY_OUTPUT": "bare", "HOME": "/"}
    safety = Safety.of(tmp_path / "python", variables)
    assert (safety.api_key, safety.variables) == ("sk-secret", {"SAFETY_CA_BUNDLE": "/ca.pem"})


SHORT = database([FLAW])["insecure.json"]


@pytest.mark.parametrize(
    ("short", "reason"),
    [
        ({}, "its database is malformed"),
        ({"meta": SHORT["meta"]}, "its database is malformed"),
        ({**SHORT, "vulnerable_packages": {}}, "its database is empty"),
        ({**SHORT, "vulnerable_packages": []}, "its database is malformed"),
        ({**SHORT, "vulnerable_packages": {"requests": "<2.32.0"}}, "its database is malformed"),
        ({**SHORT, "vulnerable_packages": {"requests": [7]}}, "its database is malformed"),
        ({**SHORT, "vulnerable_packages": {"requests": ["what"]}}, "its database is malformed"),
        ({**SHORT, "meta": {"schema_version": "1.0"}}, "its database is malformed"),
    ],
)
def test_a_database_that_is_no_good_makes_nothing_clean(tmp_path: Path, short: Any, reason: str) -> None:
    """safety itself ends with 0 on some of these, and a report without vulnerabilities."""
    clean = json.dumps({**CHECKED, "vulnerabilities": []})
    answer = fake(tmp_path, code=0, report=clean, cache=json.dumps(cached({"insecure.json": short}))).screen(PINS)
    assert skipped(answer) == reason


def test_what_its_database_knows_has_to_be_in_its_report(tmp_path: Path) -> None:
    """As where its two files do not fit together: safety then says nothing."""
    clean = json.dumps({**CHECKED, "vulnerabilities": []})
    answer = fake(tmp_path, code=0, report=clean).screen([*PINS, ("numpy", "2.0"), ("odd", "1-x_y")])
    assert isinstance(answer, SafetyAnswer)
    assert answer.findings == ()
    assert answer.not_scanned == {
        ("numpy", "2.0"): "safety left it out of its report",
        ("odd", "1-x_y"): "its version '1-x_y' can't be compared with any (PEP 440)",
        ("requests", "2.31.0"): (
            "safety's database says that requests<2.32.0 is affected, and its report has nothing of that"
        ),
    }


@pytest.mark.parametrize("code", [0, 64])
def test_a_scan_may_end_with_either_code(tmp_path: Path, code: int) -> None:
    answer = fake(tmp_path, key="sk-secret", code=code).screen(PINS)
    assert isinstance(answer, SafetyAnswer)
    assert answer.findings == (FINDING,)


@pytest.mark.parametrize(
    ("left", "reason"),
    [
        ({"code": 65}, "its service did not accept the API key"),
        ({"code": 66}, "its service takes no more requests for now"),
        ({"code": 67}, "its database was not found"),
        ({"code": 68}, "its database could not be had"),
        ({"code": 69}, "its database is malformed"),
        ({"code": 1, "noise": "httpx.ConnectError: [Errno -2] Name or service not known"}, "it can't be reached"),
        ({"code": 1, "noise": "httpx.ReadTimeout: The read operation timed out"}, "it can't be reached"),
        ({"code": 1, "noise": "Check your network connection, unable to reach the server."}, "it can't be reached"),
        ({"code": 1, "noise": "safety.errors.ServerError: Sorry."}, "its service answered with an error"),
        ({"code": 2, "noise": f"{NOISE}Usage: safety\n  no such sk-secret\n+===+\n"}, "no such ***"),
        ({"code": 70, "noise": ""}, "it failed (exit code 70)"),
        ({"report": None}, "it left no trace of its report"),
        ({"report": "{"}, "its report can't be read"),
        ({"report": "[]"}, "its report is not one that is known here"),
        ({"report": "{}"}, "its report is not one that is known here"),
        ({"cache": None}, "it left no trace of the database that it used"),
        ({"cache": "{"}, "the database that it used can't be read"),
        ({"cache": "[]"}, "its database is malformed"),
    ],
)
def test_what_gives_no_answer(tmp_path: Path, left: Mapping[str, Any], reason: str) -> None:
    assert reason in skipped(fake(tmp_path, key="sk-secret", **left).screen(PINS))


def test_a_key_that_is_refused_has_a_hint(tmp_path: Path) -> None:
    answer = fake(tmp_path, key="sk-secret", code=65).screen(PINS)
    assert isinstance(answer, Skipped)
    assert "SAFETY_API_KEY" in answer.hint


def test_its_time_is_up(tmp_path: Path) -> None:
    safety = replace(fake(tmp_path, "time.sleep(600)"), seconds=0.5)
    assert skipped(safety.screen(PINS)) == "it had not ended after 0.5 s"


def test_severities_and_dates_where_its_database_has_them(tmp_path: Path) -> None:
    """As the one that its owner sells has."""
    flaws = [FLAW, Flaw("six", ("<2",), "", ("PVE-2024-1", "CVE-2024-2"))]
    files = database(flaws, last_updated=None, attribution=None)
    files["insecure_full.json"]["meta"] |= {
        "base_domain": "https://data.example",
        "severities": {
            "CVE-2024-35195": {"cvssv3": {"base_score": 5.6, "base_severity": "MEDIUM"}, "cvssv2": {"base_score": 9.9}},
            "CVE-2024-2": {"cvssv3": None, "cvssv2": {"base_score": 9.0}},
        },
    }
    report = json.loads(json.dumps(SCANNED))
    six = report["scan_results"]["projects"][0]["files"][0]["results"]["dependencies"][1]["specifications"][0]
    six["vulnerabilities"]["known_vulnerabilities"] = [{"id": "", "ignored": None, "vulnerable_spec": "<2"}]
    left = {"report": json.dumps(report), "cache": json.dumps(cached(files))}
    answer = fake(tmp_path, key="sk-secret", **left).screen(PINS)
    assert isinstance(answer, SafetyAnswer)
    assert answer.database == Database("2026-11-01T00:00:00+00:00", "", 2)
    levels = [(one.id, one.aliases, one.level, one.score, one.url) for one in answer.findings]
    assert levels == [
        ("71064", ("CVE-2024-35195",), "medium", 5.6, "https://data.example/v/71064/97c"),
        ("CVE-2024-2", ("CVE-2024-2", "PVE-2024-1"), "critical", 9.0, "https://data.example/v//97c"),
    ]


# ---- the real one ----


@pytest.fixture(scope="module")
def python(caches: dict[str, str]) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAYERKIT_CACHE_DIR", caches["LAYERKIT_CACHE_DIR"])
        yield environment(NAME, requirements_of(NAME), ROOT, lambda text: None)


@pytest.fixture
def service() -> Iterator[SafetyService]:
    with serve_safety([FLAW, Flaw("numpy", ("<1",), "1")]) as served:
        yield served


def checking(python: Path, service: SafetyService, folder: Path, files: Mapping[str, Any]) -> Safety:
    """The real ``check`` on a local copy of the free database: where it fetches that from is not for us to say."""
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    return Safety(python, variables=service.addresses, free_database=folder, seconds=120)


@pytest.mark.online
def test_the_real_check(python: Path, service: SafetyService, tmp_path: Path) -> None:
    pins = [*PINS, ("requests", "2.32.0"), ("argparse", "1.4.0"), ("zope-interface", "5.0rc1")]
    answer = checking(python, service, tmp_path, service.files).screen(pins)
    assert answer == SafetyAnswer("check", (FINDING,), {}, Database("2026-11-01T00:00:00", LICENCE, 2))
    assert [path for _, path, _ in service.asked[:3]] == ["/.well-known/openid-configuration"] * 2 + ["/jwks"]


@pytest.mark.online
def test_the_real_check_on_a_database_with_nothing_in_it(python: Path, service: SafetyService, tmp_path: Path) -> None:
    files = {name: {"meta": content["meta"]} for name, content in service.files.items()}
    assert skipped(checking(python, service, tmp_path, files).screen(PINS)) == "its database is malformed"


@pytest.mark.online
@pytest.mark.parametrize("platform", [False, True], ids=["on its own", "with the platform"])
def test_the_real_scan(python: Path, service: SafetyService, platform: bool) -> None:
    service.platform = platform
    service.api_key = "sk-secret"
    answer = Safety(python, "sk-secret", variables=service.addresses, seconds=120).screen(PINS)
    assert answer == SafetyAnswer("scan", (FINDING,), {}, Database("2026-11-01T00:00:00", LICENCE, 2))
    assert ("GET", "/data/insecure.json", "sk-secret") in service.asked
    assert (("POST", "/cli/api/v1/scan", "sk-secret") in service.asked) == platform


@pytest.mark.online
def test_the_real_scan_with_a_key_that_is_refused(python: Path, service: SafetyService) -> None:
    service.api_key = "another"
    answer = Safety(python, "sk-secret", variables=service.addresses, seconds=120).screen(PINS)
    assert skipped(answer) == "its service did not accept the API key"


@pytest.mark.online
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"everything": 404}, "its service answered with an error"),
        ({"files": {"insecure.json": b"<html>"}}, "its database is malformed"),
        ({"files": {}}, "its database could not be had"),
        ({"hang": "jwks"}, "it had not ended after 5 s"),
    ],
    ids=["404", "malformed", "empty", "slow"],
)
def test_the_real_one_on_a_service_that_is_no_good(python: Path, options: Mapping[str, Any], reason: str) -> None:
    with serve_safety([FLAW], **options) as service:
        seconds = 5 if service.hang else 120
        answer = Safety(python, "sk-secret", variables=service.addresses, seconds=seconds).screen(PINS)
    assert skipped(answer) == reason


@pytest.mark.online
@pytest.mark.parametrize("key", ["", "sk-secret"], ids=["check", "scan"])
def test_the_real_one_without_its_service(python: Path, key: str) -> None:
    with serve_safety() as service:
        addresses = service.addresses
    assert skipped(Safety(python, key, variables=addresses, seconds=120).screen(PINS)) == "it can't be reached"


@pytest.mark.online
def test_the_real_one_leaves_nothing(
    python: Path, service: SafetyService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    system = os.path.exists("/etc/.safety")
    Safety(python, "sk-secret", variables=service.addresses, seconds=120).screen(PINS)
    assert list((tmp_path / "home").iterdir()) == []
    assert os.path.exists("/etc/.safety") == system
