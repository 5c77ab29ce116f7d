"""What counts of what was found: exceptions with a reason and a day, and thresholds."""

from __future__ import annotations

from collections import Counter
from datetime import date, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerkit.advisories import Level
from layerkit.errors import ConfigurationError
from layerkit.judging import Standing, Suspicion, Vulnerability, exemption_notes, judge
from layerkit.model import Exemption
from layerkit.project import read_exemptions
from layerkit.suspects import Suspect

TODAY = date(2026, 11, 25)
TOMORROW, YESTERDAY = TODAY + timedelta(days=1), TODAY - timedelta(days=1)


def vulnerability(id_: str = "PYSEC-1", *aliases: str, level: Level = Level.HIGH, **changes: Any) -> Vulnerability:
    values: dict[str, Any] = {"name": "requests", "version": "1.0", "layers": ("web",), "score": None, "fixed": None}
    values |= {"summary": "", "url": "", "found_by": ("pip-audit",), "advisories": ()}
    return Vulnerability(id=id_, aliases=aliases, level=level, **(values | changes))


def suspicion(path: str = "data.txt", layer: str = "web") -> Suspicion:
    return Suspicion(layer, f"layers/{layer}/python", Suspect(path, 3, "secret", "a private key"))


def exemption(id_: str, expires: date = TOMORROW, layer: str = "") -> Exemption:
    return Exemption(id_, "why", expires, "invoke.yaml", layer)


def standings(one: Vulnerability, *exemptions: Exemption, fail_on: Level | None = None) -> dict[str, Standing]:
    """By layer."""
    judged, _ = judge([one], [], exemptions, fail_on, TODAY)
    return {layer: part.standing for part in judged for layer in part.layers}


# ---- exceptions ----


@pytest.mark.parametrize("id_", ["PYSEC-1", "CVE-2026-1", "GHSA-abcd", "ghsa-ABCD"])
def test_any_name_will_do(id_: str) -> None:
    assert standings(vulnerability("PYSEC-1", "CVE-2026-1", "GHSA-abcd"), exemption(id_)) == {"web": Standing.EXEMPT}


def test_another_name_is_about_something_else() -> None:
    assert standings(vulnerability("PYSEC-1", "CVE-2026-1"), exemption("CVE-2026-11")) == {"web": Standing.COUNTS}


@pytest.mark.parametrize(
    ("expires", "standing"),
    [(TOMORROW, Standing.EXEMPT), (TODAY, Standing.EXEMPT), (YESTERDAY, Standing.EXPIRED)],
)
def test_it_holds_up_to_its_day(expires: date, standing: Standing) -> None:
    assert standings(vulnerability(), exemption("PYSEC-1", expires)) == {"web": standing}


def test_the_last_day_of_several_decides() -> None:
    both = [exemption("PYSEC-1", YESTERDAY), exemption("PYSEC-1", TOMORROW, "web")]
    assert standings(vulnerability(), *both) == standings(vulnerability(), *reversed(both)) == {"web": Standing.EXEMPT}


def test_that_of_one_layer_is_for_that_layer_only() -> None:
    one = vulnerability(layers=("api", "web"))
    assert standings(one, exemption("PYSEC-1", layer="web")) == {"web": Standing.EXEMPT, "api": Standing.COUNTS}
    assert standings(one, exemption("PYSEC-1")) == {"web": Standing.EXEMPT, "api": Standing.EXEMPT}


def test_a_suspicious_file_is_named_by_kind_and_path() -> None:
    entries = [exemption("secret:data.txt", layer="web")]
    _, suspected = judge([], [suspicion(), suspicion("Data.txt"), suspicion(layer="api")], entries, None, TODAY)
    found = {(one.layer, one.suspect.path): one.standing for one in suspected}
    assert found == {
        ("web", "data.txt"): Standing.EXEMPT,
        ("web", "Data.txt"): Standing.COUNTS,
        ("api", "data.txt"): Standing.COUNTS,
    }


# ---- thresholds ----


@pytest.mark.parametrize("fail_on", [Level.LOW, Level.MEDIUM, Level.HIGH, Level.CRITICAL])
@pytest.mark.parametrize("level", list(Level))
def test_what_is_less_severe_does_not_count(level: Level, fail_on: Level) -> None:
    scale = [Level.LOW, Level.MEDIUM, Level.HIGH, Level.CRITICAL]
    counts = level is Level.UNKNOWN or scale.index(level) >= scale.index(fail_on)
    assert standings(vulnerability(level=level), fail_on=fail_on) == {
        "web": Standing.COUNTS if counts else Standing.BELOW
    }


def test_an_expired_exception_makes_nothing_more_severe() -> None:
    one = vulnerability(level=Level.LOW)
    assert standings(one, exemption("PYSEC-1", YESTERDAY), fail_on=Level.HIGH) == {"web": Standing.BELOW}


NAMES = st.sampled_from(["requests", "urllib3"])
IDS = st.sampled_from(["A", "B", "C"])
LAYERS = st.sampled_from(["web", "api", "core"])
FOUND = st.lists(
    st.builds(
        vulnerability, IDS, IDS, level=st.sampled_from(Level), name=NAMES, layers=st.sets(LAYERS, min_size=1).map(tuple)
    ),
    max_size=4,
)
EXEMPTIONS = st.lists(
    st.builds(exemption, IDS, st.sampled_from([YESTERDAY, TODAY, TOMORROW]), st.just("") | LAYERS), max_size=4
)


@given(FOUND, EXEMPTIONS, st.none() | st.sampled_from([Level.LOW, Level.HIGH, Level.CRITICAL]))
def test_each_is_there_once_for_each_layer_and_only_an_open_exception_hides_an_unknown_one(
    found: list[Vulnerability], exemptions: list[Exemption], fail_on: Level | None
) -> None:
    judged, _ = judge(found, [], exemptions, fail_on, TODAY)
    before = Counter((one.ids, one.name, one.level, layer) for one in found for layer in one.layers)
    assert Counter((one.ids, one.name, one.level, layer) for one in judged for layer in one.layers) == before
    assert [one.standing.counts for one in judged] == sorted((one.standing.counts for one in judged), reverse=True)
    for one in judged:
        for layer in one.layers:
            is_open = any(e.id in one.ids and e.layer in ("", layer) and e.expires >= TODAY for e in exemptions)
            assert (one.standing is Standing.EXEMPT) == is_open
            if one.level is Level.UNKNOWN:
                assert one.standing.counts == (not is_open)


def test_the_worst_is_first_and_a_distributions_stand_together() -> None:
    found = [
        vulnerability("A", level=Level.LOW, name="b"),
        vulnerability("B", level=Level.UNKNOWN, name="a"),
        vulnerability("C", level=Level.CRITICAL, name="b"),
        vulnerability("D", level=Level.CRITICAL, name="z"),
    ]
    judged, _ = judge(found, [], [exemption("D")], None, TODAY)
    assert [one.id for one in judged] == ["C", "A", "B", "D"]


# ---- what is said of exceptions ----


def notes(
    one: Vulnerability, entry: Exemption, *covered: str, by_safety: bool = True, fail_on: Level | None = None
) -> list[str]:
    judged, _ = judge([one], [], [entry], fail_on, TODAY)
    return list(exemption_notes([entry], judged, covered, by_safety=by_safety))


def test_one_that_is_needed_is_not_talked_about() -> None:
    assert notes(vulnerability(), exemption("PYSEC-1"), "", "web") == []


def test_an_expired_one_is_told() -> None:
    said = f"invoke.yaml: the exception for PYSEC-1 expired on {YESTERDAY}, so that it counts again"
    assert notes(vulnerability(), exemption("PYSEC-1", YESTERDAY), "", "web") == [said]
    assert notes(vulnerability(), exemption("PYSEC-1", YESTERDAY)) == [said]


def test_an_unused_one_is_told_where_everything_was_looked_at() -> None:
    one = vulnerability()
    (said,) = notes(one, exemption("CVE-9"), "", "web")
    assert said.startswith("invoke.yaml: the exception for CVE-9 matches nothing that was found: take it out")
    assert notes(one, exemption("CVE-9", layer="web"), "web") != []
    assert notes(one, exemption("CVE-9"), "web") == []  # another layer may need it
    assert notes(one, exemption("CVE-9", layer="api"), "", "web") == []
    assert notes(one, exemption("PYSEC-1", layer="api"), "api") != []  # that layer does not have it


@pytest.mark.parametrize("id_", ["SAFETY-70000", "PVE-2026-1", "safety-70000"])
def test_one_that_only_safety_can_match_needs_its_answer(id_: str) -> None:
    assert notes(vulnerability(), exemption(id_), "", by_safety=False) == []
    assert notes(vulnerability(), exemption(id_), "", by_safety=True) != []


# ---- how they are written ----


def test_they_are_read_from_toml_and_yaml_alike() -> None:
    toml = {"id": "CVE-1", "reason": "not reached", "expires": date(2027, 1, 31)}
    yaml = {**toml, "expires": "2027-01-31"}
    (one,), (other,) = read_exemptions([toml], "layer.toml"), read_exemptions([yaml], "layer.toml")
    assert one == other
    assert one == Exemption("CVE-1", "not reached", date(2027, 1, 31), one.where)
    assert one.where.startswith("layer.toml")


WHOLE = {"id": "CVE-1", "reason": "not reached", "expires": "2027-01-31"}


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({**WHOLE, "reason": ""}, "reason"),
        ({**WHOLE, "expires": "soon"}, "expires must be a day such as 2027-01-31, not 'soon'"),
        ({**WHOLE, "until": "2027-01-31"}, "has 'until'"),
        ({**WHOLE, "id": 7}, "id"),
        *(({key: value for key, value in WHOLE.items() if key != left_out}, left_out) for left_out in WHOLE),
    ],
)
def test_all_of_it_is_required(entry: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read_exemptions([WHOLE, entry], "invoke.yaml")
    assert "exception 2" in caught.value.message
    assert said in caught.value.message


@pytest.mark.parametrize("value", ["CVE-1", {"id": "CVE-1"}, ["CVE-1"]])
def test_a_list_is_what_they_are(value: object) -> None:
    with pytest.raises(ConfigurationError, match="must be a list of exceptions"):
        read_exemptions(value, "invoke.yaml")
