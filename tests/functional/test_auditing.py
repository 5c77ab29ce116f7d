"""pip-audit's answers, from the real program on a loopback OSV and from programs that answer as it never should."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerkit.auditing import NAME, Audited, Auditor, Pin, Reported, carried_by, chunks_of, read_answer
from layerkit.errors import ExternalError
from layerkit.virtualenvs import environment, requirements_of
from tests.support.osv import Document, Mode, Osv, document, serve

ROOT = Path(__file__).parents[2]


def dist(tree: Path, name: str, version: str, more: str = "", *, folder: str = "", metadata: str = "METADATA") -> Path:
    """A distribution's metadata in a tree."""
    info = tree / (folder or f"{name.replace('-', '_')}-{version}.dist-info")
    info.mkdir(parents=True)
    (info / metadata).write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{more}\nText.\n")
    return info


def verdicts(audited: Sequence[Audited]) -> dict[str, str | tuple[str, ...]]:
    """By name: why not scanned, or the advisories, of which a clean one has none."""
    return {one.name: one.not_scanned or tuple(found.id for found in one.advisories) for one in audited}


# ---- what a tree carries ----


def test_what_is_expected_and_what_is_found_is_carried(tmp_path: Path) -> None:
    dist(tmp_path, "Typing_Extensions", "4.0")
    dist(tmp_path, "python-dateutil", "2.9.0.post0", folder="python-dateutil-2.9.0.post0.dist-info")
    dist(tmp_path, "torch", "1.0+cu118", folder="torch-1.0_cu118.dist-info")
    dist(tmp_path, "by-hand", "3")
    expected = [("typing-extensions", "4.0.0"), ("python-dateutil", "2.9.0.post0"), ("torch", "1.0+cu118")]
    assert carried_by(tmp_path, expected) == {
        ("by-hand", "3"): "",
        ("python-dateutil", "2.9.0.post0"): "",
        ("torch", "1.0+cu118"): "",
        ("typing-extensions", "4.0.0"): "",
    }


def test_what_is_not_there_as_expected_is_not_asked_about(tmp_path: Path) -> None:
    dist(tmp_path, "raised", "2.0")
    (tmp_path / "bare-1.0.dist-info").mkdir()
    dist(tmp_path, "other", "1.0", folder="renamed-1.0.dist-info")
    dist(tmp_path, "moved", "1.1", folder="moved-1.0.dist-info")
    (tmp_path / "rubbish-1.0.dist-info").mkdir()
    (tmp_path / "rubbish-1.0.dist-info" / "METADATA").write_bytes(b"\xff\xfe\0")
    expected = [("raised", "1.0"), ("gone", "1.0")]
    assert carried_by(tmp_path, expected) == {
        ("bare", "1.0"): "its dist-info has no METADATA",
        ("gone", "1.0"): "the tree has no metadata of it",
        ("moved", "1.0"): "its METADATA is that of moved 1.1",
        ("raised", "1.0"): "the tree has version 2.0 in its place",
        ("raised", "2.0"): "",
        ("renamed", "1.0"): "its METADATA is that of other 1.0",
        ("rubbish", "1.0"): "its METADATA has no name and version",
    }


def test_metadata_in_the_old_form_counts(tmp_path: Path) -> None:
    dist(tmp_path, "old", "1.0", folder="old-1.0-py3.11.egg-info", metadata="PKG-INFO")
    (tmp_path / "older-2.0.egg-info").write_text("Name: older\nVersion: 2.0\n")
    (tmp_path / "empty-3.0-py3.11.egg-info").mkdir()
    assert carried_by(tmp_path, []) == {
        ("empty", "3.0"): "its egg-info has no PKG-INFO",
        ("old", "1.0"): "",
        ("older", "2.0"): "",
    }


def test_a_tree_that_is_not_there_carries_nothing_as_expected(tmp_path: Path) -> None:
    assert carried_by(tmp_path / "nothing", [("six", "1.0")]) == {("six", "1.0"): "the tree has no metadata of it"}


NAMES = st.sampled_from([f"name-{number}" for number in range(30)])
VERSIONS = st.sampled_from(["1.0", "1.1", "2.0"])
PINS = st.sets(st.tuples(NAMES, VERSIONS)).map(sorted)


@given(PINS, st.integers(0, 8))
def test_each_is_in_one_run_which_has_its_name_once(pins: list[Pin], jobs: int) -> None:
    chunks = chunks_of(pins, jobs)
    assert sorted(pin for chunk in chunks for pin in chunk) == pins
    assert all(len({name for name, _ in chunk}) == len(chunk) > 0 for chunk in chunks)
    if len(dict(pins)) == len(pins):
        assert len(chunks) <= max(1, jobs)


# ---- what an answer says ----

ASKED = [("requests", "2.31.0"), ("six", "1.17.0")]
# As pip-audit 2.10.1 wrote it, but for the description.
RECORDED = (
    '{"dependencies": [{"name": "requests", "version": "2.31.0", "vulns": [{"id": "CVE-2024-35195", "fix_versions": '
    '["2.32.0"], "aliases": ["GHSA-9wx4-h78v-vm56"], "description": "Session\\n stays"}]}, {"name": "six", '
    '"version": "1.17.0", "vulns": []}], "fixes": []}'
)


def test_an_answer_as_it_was_recorded() -> None:
    advisory = Reported("CVE-2024-35195", ("GHSA-9wx4-h78v-vm56",), ("2.32.0",), "Session stays")
    assert read_answer(RECORDED, ASKED) == {
        ("requests", "2.31.0"): Audited("requests", "2.31.0", (advisory,)),
        ("six", "1.17.0"): Audited("six", "1.17.0"),
    }


def test_what_an_answer_skips_or_lacks_is_not_scanned() -> None:
    skipped = {"name": "requests", "skip_reason": "Dependency not found on PyPI and could not be audited"}
    answer = read_answer(json.dumps({"dependencies": [skipped]}), ASKED)
    assert verdicts(tuple(answer.values())) == {
        "requests": "pip-audit skipped it: Dependency not found on PyPI and could not be audited",
        "six": "pip-audit left it out of its answer",
    }


def test_one_reason_for_all_that_are_skipped() -> None:
    """PyPI's reason ends with what it is about."""
    words = "Dependency not found on PyPI and could not be audited"
    skipped = [{"name": name, "skip_reason": f"{words}: {name} ({version})"} for name, version in ASKED]
    answer = read_answer(json.dumps({"dependencies": skipped}), ASKED)
    assert {one.not_scanned for one in answer.values()} == {f"pip-audit skipped it: {words}"}
    assert all(one.by_service for one in answer.values())


def test_an_answer_about_another_version_is_none() -> None:
    entry = {"name": "Six", "version": "1.16.0", "vulns": []}
    answer = read_answer(json.dumps({"dependencies": [entry]}), [("six", "1.17.0")])
    assert answer["six", "1.17.0"].not_scanned == "pip-audit answered for version 1.16.0"


@pytest.mark.parametrize(
    "dependencies",
    [
        None,
        {},
        ["six"],
        [{"version": "1.17.0", "vulns": []}],
        [{"name": "somebody-else", "version": "1.0", "vulns": []}],
        [{"name": "six", "version": "1.17.0", "vulns": []}] * 2,
        [{"name": "six", "version": "1.17.0"}],
        [{"name": "six", "version": "1.17.0", "vulns": [{"aliases": ["CVE-1"]}]}],
        [{"name": "six", "version": "1.17.0", "vulns": [{"id": "X", "aliases": "CVE-1"}]}],
        [{"name": "six", "version": "1.17.0", "vulns": ["X"]}],
    ],
)
def test_what_is_no_answer_is_an_error(dependencies: Any) -> None:
    with pytest.raises(ValueError, match=r"^(it|X) "):
        read_answer(json.dumps({"dependencies": dependencies}), ASKED)


SCALARS = st.none() | st.booleans() | st.integers() | st.sampled_from(["six", "1.17.0", "requests", "", "X"])
KEYS = st.sampled_from(["dependencies", "name", "version", "vulns", "skip_reason", "id", "aliases"])
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=5))


@given(st.fixed_dictionaries({"dependencies": JSON | st.lists(st.dictionaries(KEYS, JSON))}) | JSON)
def test_only_what_says_so_is_clean(found: Any) -> None:
    try:
        answer = read_answer(json.dumps(found), ASKED)
    except ValueError:
        return
    assert set(answer) == set(ASKED)
    said = [(entry["name"], entry.get("version"), entry.get("vulns")) for entry in found["dependencies"]]
    for pin, audited in answer.items():
        assert (audited.name, audited.version) == pin
        if not audited.not_scanned and not audited.advisories:
            assert (*pin, []) in said


@given(st.text())
def test_text_that_is_no_json_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"^it "):
        read_answer(text, ASKED)


# ---- programs that are no good ----

# Stands in for the interpreter of an environment: it notes how it was called, and does as `behaviour` says.
FAKE = """#!{python}
import json, os, pathlib, sys, time
words = sys.argv[1:]
value = lambda flag: words[words.index(flag) + 1]
here = pathlib.Path(__file__).parent
names = [folder.name.split("-")[0] for folder in pathlib.Path(value("--path")).iterdir()]
with open(here / "calls", "a") as calls:
    print(json.dumps([words, dict(os.environ), sorted(names)]), file=calls)
def answer(vulns=(), text=None):
    entries = [dict(name=name, version="1.0", vulns=list(vulns)) for name in names]
    pathlib.Path(value("--output")).write_text(text or json.dumps(dict(dependencies=entries, fixes=[])))
{behaviour}
"""


def fake(tmp_path: Path, behaviour: str, **options: Any) -> Auditor:
    python = tmp_path / "python"
    python.write_text(FAKE.format(python=sys.executable, behaviour=behaviour))
    python.chmod(0o755)
    return Auditor(python, **{"osv": "http://me:hunter22@127.0.0.1:9/v1/query", "jobs": 1, **options})


def calls(tmp_path: Path) -> list[Any]:
    return [json.loads(line) for line in (tmp_path / "calls").read_text().splitlines()]


NUMBERED = [(f"d{number}", "1.0") for number in range(8)]


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("sys.exit(0)", "pip-audit failed (exit code 0)"),
        ("answer(); sys.exit(1)", "pip-audit failed (exit code 1)"),
        ("answer(); print('Boom'); sys.exit(3)", "pip-audit failed (exit code 3): Boom"),
        ("answer(); os.kill(os.getpid(), 9)", "pip-audit failed (signal 9)"),
        ("answer(text='[')", "pip-audit's answer can't be read: it is not JSON"),
        ("answer(text='{}')", "pip-audit's answer can't be read: it has no list of dependencies"),
        ("answer(); print('WARNING:pip_audit._service.osv:Unsupported')", "pip-audit left out an advisory"),
        ("print('requests.exceptions.SSLError: (certificate verify failed)')", "can't be reached (certificate verify"),
        ("print('ERROR: Could not connect to http://me:hunter22@h/')", "can't be reached"),
    ],
)
def test_what_it_does_not_say_is_not_scanned(tmp_path: Path, behaviour: str, reason: str) -> None:
    answer = fake(tmp_path, behaviour).audit(NUMBERED)
    assert list(answer) == NUMBERED
    assert all(reason in audited.not_scanned for audited in answer.values())
    assert not [audited for audited in answer.values() if "hunter22" in audited.not_scanned]


def test_findings_count_whatever_the_exit_code(tmp_path: Path) -> None:
    answer = fake(tmp_path, "answer([dict(id='X', aliases=['CVE-1'], fix_versions=[])])").audit([("six", "1.0")])
    assert answer["six", "1.0"].advisories == (Reported("X", ("CVE-1",)),)


def test_its_time_is_up(tmp_path: Path) -> None:
    answer = fake(tmp_path, "answer(); sys.stdout.flush(); time.sleep(600)", seconds=0.5).audit(NUMBERED)
    assert {audited.not_scanned for audited in answer.values()} == {"pip-audit had not ended after 0.5 s"}
    assert len(calls(tmp_path)) == 1


def test_one_odd_answer_is_found_among_good_ones(tmp_path: Path) -> None:
    answer = fake(tmp_path, "if 'd5' in names: sys.exit('KeyError: 7')\nanswer()").audit(NUMBERED)
    reasons = {name: audited.not_scanned for (name, _), audited in answer.items() if audited.not_scanned}
    assert reasons == {"d5": "the advisory service's answer is not one of its kind (KeyError: 7)"}
    asked = [names for _, _, names in calls(tmp_path)]
    assert [len(names) for names in asked] == [8, 4, 4, 2, 2, 1, 1]


REFUSED = "sys.exit('requests.exceptions.HTTPError: {} Client Error: Not Found for url: http://h/')"


def test_an_error_about_one_is_not_said_of_others(tmp_path: Path) -> None:
    behaviour = f"if 'd5' in names: {REFUSED.format(404)}\nanswer()"
    answer = fake(tmp_path, behaviour).audit(NUMBERED)
    assert {name: one.not_scanned for (name, _), one in answer.items() if one.not_scanned} == {
        "d5": "the advisory service answered 404 Not Found"
    }
    assert answer["d5", "1.0"].by_service


def test_an_error_that_ends_a_run_is_not_said_to_be_about_each(tmp_path: Path) -> None:
    answer = fake(tmp_path, REFUSED.format(403)).audit(NUMBERED)
    assert {one.not_scanned for one in answer.values()} == {
        "the advisory service answered 403 Not Found, about one of those that pip-audit was asking for at once"
    }


def test_a_service_that_is_no_good_is_not_asked_for_each(tmp_path: Path) -> None:
    fake(tmp_path, "sys.exit('KeyError: 7')").audit(NUMBERED)
    assert [len(names) for _, _, names in calls(tmp_path)] == [8, 4, 4]


def test_one_that_can_not_be_reached_is_asked_once(tmp_path: Path) -> None:
    fake(tmp_path, "sys.exit('requests.exceptions.ConnectionError: [Errno 111] Connection refused')").audit(NUMBERED)
    assert len(calls(tmp_path)) == 1


def test_how_it_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://elsewhere.example")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    fake(tmp_path, "answer()").audit([("six", "1.0")])
    ((words, variables, _),) = calls(tmp_path)
    assert words[:6] == ["-I", "-B", "-X", "utf8", "-m", "pip_audit"]
    assert not [word for word in words if "hunter22" in word]
    assert variables["PIP_AUDIT_OSV_URL"] == "http://me:hunter22@127.0.0.1:9/v1/query"
    assert not {"PIP_INDEX_URL", "PYTHONPATH"} & set(variables)
    assert not Path(variables["HOME"]).exists()


def test_without_an_address_pypi_is_asked(tmp_path: Path) -> None:
    fake(tmp_path, "answer()", osv=None).audit([("six", "1.0")])
    ((words, variables, _),) = calls(tmp_path)
    assert words[words.index("--vulnerability-service") + 1] == "pypi"
    assert "PIP_AUDIT_OSV_URL" not in variables


def test_what_nobody_can_be_asked_about(tmp_path: Path) -> None:
    auditor = fake(tmp_path, "answer()")
    pins = [("argparse", "1.4.0"), ("../up", "1.0"), ("odd", "1-x_y"), ("none", ""), ("six", "1.0")]
    assert verdicts(tuple(auditor.audit(pins).values())) == {
        "../up": "'../up' is not the name of a distribution",
        "argparse": "pip takes it for a part of Python, so pip-audit does not see it",
        "none": "its version '' can't be compared with any (PEP 440)",
        "odd": "its version '1-x_y' can't be compared with any (PEP 440)",
        "six": (),
    }
    assert [names for _, _, names in calls(tmp_path)] == [["six"]]


def test_nothing_to_ask_about_starts_nothing(tmp_path: Path) -> None:
    assert fake(tmp_path, "answer()").audit([]) == {}
    assert not (tmp_path / "calls").exists()


def test_one_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ExternalError, match="can't be started"):
        Auditor(tmp_path / "nothing", None).audit([("six", "1.0")])


# ---- the real one ----


@pytest.fixture(scope="module")
def pip_audit(caches: dict[str, str]) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAYERKIT_CACHE_DIR", caches["LAYERKIT_CACHE_DIR"])
        yield environment(NAME, requirements_of(NAME), ROOT, lambda text: None)


DOCUMENTS = [
    document("GHSA-1", "requests", {"introduced": "0"}, {"fixed": "2.32.0"}, aliases=["CVE-2024-35195"], summary="S"),
    document("PYSEC-1", "requests", {"introduced": "0"}, {"fixed": "2.32.0"}, aliases=["GHSA-1"]),
    document("GHSA-2", "urllib3", {"introduced": "0"}, {"fixed": "1.26.17"}),
    document("GHSA-2b", "urllib3", {"introduced": "2.0.0"}, {"fixed": "2.0.6"}),
    document("GHSA-3", "typing-extensions", {"introduced": "0"}, withdrawn="2024-01-01T00:00:00Z"),
]


def ask(pip_audit: Path, osv: Osv, trees: Mapping[Path, list[Pin]], **options: Any) -> dict[Path, tuple[Audited, ...]]:
    auditor = Auditor(pip_audit, f"{osv.url}/v1/query", **{"jobs": 2, "seconds": 60, "wait": 2, **options})
    return auditor.audit_trees(trees)


def asked_of(osv: Osv) -> list[Pin]:
    return sorted((question["package"]["name"], question["version"]) for _, question in osv.asked)


@pytest.mark.online
def test_every_distribution_is_in_the_answer_once(pip_audit: Path, tmp_path: Path) -> None:
    """Whatever the Python that it is for, the markers, and the layers that carry it."""
    one, other = tmp_path / "one", tmp_path / "other"
    dist(one, "requests", "2.31.0", 'Requires-Python: <3\nRequires-Dist: six; python_version < "3"\n')
    dist(one, "Typing_Extensions", "4.0.0")
    (one / "bare-1.0.dist-info").mkdir()
    dist(other, "requests", "2.31.0")
    dist(other, "urllib3", "2.0.4")
    broken = dist(other, "six", "1.17.0")
    (broken / "direct_url.json").write_text("rubbish")
    with serve(DOCUMENTS) as osv:
        found = ask(pip_audit, osv, {one: [("requests", "2.31.0"), ("gone", "1.0")], other: []})
        assert asked_of(osv) == [
            ("requests", "2.31.0"),
            ("six", "1.17.0"),
            ("typing-extensions", "4.0.0"),
            ("urllib3", "2.0.4"),
        ]
    assert verdicts(found[one]) == {
        "bare": "its dist-info has no METADATA",
        "gone": "the tree has no metadata of it",
        "requests": ("PYSEC-1",),
        "typing-extensions": (),
    }
    assert verdicts(found[other]) == {"requests": ("PYSEC-1",), "six": (), "urllib3": ("GHSA-2b",)}
    assert found[one][2] == found[other][0]
    (advisory,) = found[other][0].advisories
    assert advisory.aliases == ("GHSA-1",)  # the CVE of that one is lost: pip-audit puts the two together by halves


@pytest.mark.online
@pytest.mark.parametrize(
    ("mode", "reason"),
    [
        ("down", "the advisory service can't be reached (Connection refused)"),
        ("404", "the advisory service answered 404 Not Found"),
        ("500", "the advisory service answered 500 Internal Server Error"),
        ("malformed", "the advisory service's answer is not JSON"),
        ("slow", "the advisory service can't be reached (timed out)"),
    ],
)
def test_a_service_that_is_no_good_makes_nothing_clean(
    pip_audit: Path, tmp_path: Path, mode: Mode, reason: str
) -> None:
    dist(tmp_path, "six", "1.17.0")
    with serve(DOCUMENTS, mode) as osv:
        (found,) = ask(pip_audit, osv, {tmp_path: []}).values()
    assert verdicts(found) == {"six": reason}


@pytest.mark.online
def test_one_that_answers_for_ever_is_given_up(pip_audit: Path, tmp_path: Path) -> None:
    dist(tmp_path, "six", "1.17.0")
    with serve(DOCUMENTS, "slow") as osv:
        (found,) = ask(pip_audit, osv, {tmp_path: []}, seconds=3, wait=600).values()
    assert verdicts(found) == {"six": "pip-audit had not ended after 3 s"}


def odd(**changes: Any) -> Document:
    """An advisory about six that pip-audit can't read."""
    found = document("GHSA-9", "six", {"introduced": "0"})
    return {key: value for key, value in {**found, **changes}.items() if value is not None}


@pytest.mark.online
@pytest.mark.parametrize(
    ("unreadable", "reason"),
    [
        (odd(schema_version="2.0.0"), "pip-audit left out an advisory that it can't read (Unsupported OSV schema"),
        (odd(id=None), "the advisory service's answer is not one of its kind (KeyError: 'id')"),
    ],
)
def test_an_advisory_that_it_can_not_read_hides_no_other(
    pip_audit: Path, tmp_path: Path, unreadable: Document, reason: str
) -> None:
    for name, version in (("six", "1.17.0"), ("requests", "2.31.0"), ("urllib3", "2.0.6")):
        dist(tmp_path, name, version)
    with serve([*DOCUMENTS, unreadable]) as osv:
        (found,) = ask(pip_audit, osv, {tmp_path: []}).values()
    result = verdicts(found)
    assert str(result.pop("six")).startswith(reason)
    assert result == {"requests": ("PYSEC-1",), "urllib3": ()}


@pytest.mark.online
def test_nothing_is_left_or_taken_from_this_users_home(
    pip_audit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, tree = tmp_path / "home", tmp_path / "tree"
    (home / ".config" / "pip").mkdir(parents=True)
    (home / ".config" / "pip" / "pip.conf").write_text("[global]\nformat = freeze\nproxy = http://127.0.0.1:9\n")
    (home / ".netrc").write_text("machine 127.0.0.1 login me password hunter22\n")
    before = sorted(home.rglob("*"))
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("PIP_AUDIT_FORMAT", "columns")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    dist(tree, "requests", "2.31.0")
    with serve(DOCUMENTS) as osv:
        (found,) = ask(pip_audit, osv, {tree: []}).values()
    assert verdicts(found) == {"requests": ("PYSEC-1",)}
    assert sorted(home.rglob("*")) == before
