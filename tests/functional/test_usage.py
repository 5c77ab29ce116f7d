"""Who uses which layer version: against moto, and against a Lambda with pages, weights and denied calls."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from datetime import date, timedelta
from typing import Any

import pytest

from layerkit.aws import Aws
from layerkit.environments import Environment
from layerkit.runtimes import runtimes
from layerkit.usage import Attached, Usage, User, find_usage
from tests.support.aws import ACCOUNT, StandIn, moto, strict_aws
from tests.support.calls import Caller
from tests.support.checkouts import REPOSITORY, Checkout

IRELAND, VIRGINIA = "eu-west-1", "us-east-1"
TRIAL = Environment("trial", ACCOUNT, (IRELAND, VIRGINIA))


@pytest.fixture(scope="module")
def behind() -> Iterator[str]:
    with moto() as url:
        yield url


@pytest.fixture
def strict(behind: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    with strict_aws(behind, monkeypatch) as stand_in:
        yield stand_in


def arn(layer: str, number: int, region: str = IRELAND, account: str = ACCOUNT) -> str:
    return f"arn:aws:lambda:{region}:{account}:layer:{layer}:{number}"


def publish(
    strict: StandIn, layer: str, count: int = 1, runtime: str = "python3.13", architecture: str = "x86_64"
) -> None:
    """Put versions of a layer in Ireland, without a request."""
    there = strict.layer(IRELAND, layer)
    for _ in range(count):
        there.versions[there.next] = {
            "LayerVersionArn": arn(layer, there.next),
            "Version": there.next,
            "CreatedDate": "2026-11-23T10:00:00.000+0000",
            "CompatibleRuntimes": [runtime],
            "CompatibleArchitectures": [architecture],
        }
        there.next += 1


def usage(*layers: str, regions: tuple[str, ...] = (IRELAND,)) -> Usage:
    return find_usage(Aws(TRIAL), layers or ("web",), regions)


def names(users: tuple[User, ...]) -> list[tuple[str, str]]:
    return [(user.function, user.version) for user in users]


def test_what_is_live_on_moto(behind: str, strict: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """moto's own idea of versions, aliases and tags."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", behind)
    aws = Aws(TRIAL)
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("a.py", "")
    for _ in range(2):
        aws.call(
            "lambda",
            IRELAND,
            "publish_layer_version",
            LayerName="web",
            Content={"ZipFile": data.getvalue()},
            CompatibleRuntimes=["python3.13"],
            CompatibleArchitectures=["x86_64"],
        )
    role = aws.call("iam", IRELAND, "create_role", RoleName="r", AssumeRolePolicyDocument="{}")["Role"]["Arn"]
    aws.call(
        "lambda",
        IRELAND,
        "create_function",
        FunctionName="shop",
        Runtime="python3.13",
        Role=role,
        Handler="a.b",
        Code={"ZipFile": data.getvalue()},
        Layers=[arn("web", 1)],
        Tags={"aws:cloudformation:stack-name": "shop-stack"},
        Publish=True,
    )
    aws.call("lambda", IRELAND, "create_alias", FunctionName="shop", Name="live", FunctionVersion="1")
    found = usage()
    assert names(found.users) == [("shop", "$LATEST"), ("shop", "1")]
    latest, first = found.users
    assert (latest.aliases, first.aliases, latest.stack) == ((), ("live",), "shop-stack")
    assert latest.layers == first.layers == (Attached("web", 1, 2),)
    assert latest.is_behind
    assert first.is_behind
    assert found.users_of("web", IRELAND, 2) == ()


def test_one_sweep_over_all_pages(strict: StandIn) -> None:
    publish(strict, "web", 60)
    for number in range(120):
        strict.function(IRELAND, f"shop-{number:03}", arn("web", 1 + number % 60))
        strict.function(IRELAND, f"other-{number:03}")
    found = usage()
    assert len(found.users) == 120
    assert [len(found.users_of("web", IRELAND, number)) for number in (1, 60)] == [2, 2]
    assert (strict.count("ListFunctions"), strict.count("ListLayerVersions")) == (5, 2)
    assert (strict.count("ListAliases"), strict.count("ListTags")) == (120, 120)  # of those that use the layer


def test_versions_that_nobody_uses_and_functions_behind_the_newest(strict: StandIn) -> None:
    publish(strict, "web", 3)
    strict.function(IRELAND, "old", arn("web", 1))
    strict.function(IRELAND, "new", arn("web", 3))
    found = usage()
    unused = [one.number for one in found.layers[0].versions if not found.users_of("web", IRELAND, one.number)]
    assert unused == [2]
    assert {user.function: user.is_behind for user in found.users} == {"old": True, "new": False}


def test_the_newest_is_that_for_the_function_s_runtime_and_architecture(strict: StandIn) -> None:
    publish(strict, "web")
    publish(strict, "web", architecture="arm64")
    publish(strict, "web", runtime="python3.12")
    strict.function(IRELAND, "intel", arn("web", 1))
    strict.function(IRELAND, "arm", arn("web", 1), Architectures=["arm64"])
    strict.function(IRELAND, "older", arn("web", 3), Runtime="python3.12")
    strict.function(IRELAND, "oldest", arn("web", 1), Runtime="python3.9")
    found = {user.function: user.layers[0].newest for user in usage().users}
    assert found == {"intel": 1, "arm": 2, "older": 3, "oldest": 0}


def test_an_alias_with_weights_leads_to_two_versions(strict: StandIn) -> None:
    publish(strict, "web", 2)
    strict.function(IRELAND, "shop", arn("web", 2))
    for version in ("3", "4", "5"):
        strict.function(IRELAND, "shop", arn("web", 1), version=version)
    weights = {"AdditionalVersionWeights": {"4": 0.1}}
    strict.aliases[IRELAND, "shop"] = [
        {"Name": "live", "FunctionVersion": "3", "RoutingConfig": weights},
        {"Name": "trial", "FunctionVersion": "4"},
    ]
    found = usage()
    assert [(user.version, user.aliases) for user in found.users] == [
        ("$LATEST", ()),
        ("5", ()),
        ("4", ("live", "trial")),
        ("3", ("live",)),
    ]
    # A published version that nothing leads to can't be changed, and nobody calls it by chance.
    assert [user.version for user in found.users if user.is_behind] == ["4", "3"]


def test_layers_of_others_are_not_ours(strict: StandIn) -> None:
    publish(strict, "web", 1)
    strict.function(IRELAND, "theirs", arn("web", 1, account="999999999999"))
    strict.function(IRELAND, "both", arn("foreign", 7), arn("web", 1))
    strict.function(IRELAND, "image", PackageType="Image")
    found = usage("web", "core")
    assert names(found.users) == [("both", "$LATEST")]
    assert found.users[0].layers == (Attached("web", 1, 1),)
    assert [(one.layer, len(one.versions)) for one in found.layers] == [("web", 1), ("core", 0)]


def test_a_version_that_is_gone_is_still_in_use(strict: StandIn) -> None:
    publish(strict, "web", 2)
    del strict.layer(IRELAND, "web").versions[1]
    strict.function(IRELAND, "shop", arn("web", 1))
    (user,) = usage().users
    assert (user.layers[0], user.is_behind) == (Attached("web", 1, 2), True)


def test_regions(strict: StandIn) -> None:
    publish(strict, "web", 1)
    strict.function(IRELAND, "shop", arn("web", 1))
    strict.function(VIRGINIA, "shop", arn("web", 1, VIRGINIA))
    found = usage(regions=(IRELAND, VIRGINIA))
    assert [(user.region, user.layers[0].newest) for user in found.users] == [(IRELAND, 1), (VIRGINIA, 0)]


@pytest.mark.parametrize(("operation", "what"), [("ListTags", "owner"), ("ListAliases", "aliases")])
def test_what_may_not_be_asked_is_not_known(operation: str, what: str, strict: StandIn) -> None:
    publish(strict, "web", 1)
    for number in range(3):
        strict.function(IRELAND, f"shop-{number}", arn("web", 1))
    strict.denied.add(operation)
    found = usage()
    assert len(found.users) == 3
    (skipped,) = found.skipped
    assert (skipped.check, skipped.subject) == (what, IRELAND)
    assert skipped.reason.startswith(f"lambda:{operation} in eu-west-1 is denied")


def test_runtimes_and_their_dates() -> None:
    ends = runtimes()["python3.13"].deprecated
    user = User(IRELAND, "shop", "", "$LATEST", (), "python3.13", "x86_64", (), ends, ends)
    assert not user.runtime_ends(ends - timedelta(days=200))
    assert user.runtime_ends(ends - timedelta(days=100))
    assert user.runtime_ends(ends)
    assert replace(user, runtime="python2.7", deprecated=None).runtime_ends(date(2026, 1, 1))


# ---- the task ----


@pytest.fixture
def call(
    checkout: Checkout, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, strict: StandIn
) -> Caller:
    checkout.layer("web", "")
    checkout.layer("core", "")
    return Caller(checkout.root, capfd, monkeypatch)


SETTINGS: dict[str, Any] = {"environments": {"trial": {"account": ACCOUNT, "regions": [IRELAND]}}}


def test_the_task_says_all_of_it(call: Caller, strict: StandIn) -> None:
    publish(strict, "web", 2)
    owned = strict.function(IRELAND, "shop", arn("web", 1), Runtime="python3.9")
    strict.function(IRELAND, "shop", arn("web", 1), version="3")
    strict.aliases[IRELAND, "shop"] = [{"Name": "live", "FunctionVersion": "3"}]
    strict.tags[owned] = {"aws:cloudformation:stack-name": "shop-stack"}
    said = call("usage", settings=SETTINGS, environment="trial")
    assert said.code == 0, said.err
    assert "behind: shop:3 (live) in eu-west-1: web 1 -> 2" in said.out
    assert (
        "runtime: shop in eu-west-1: python3.9 is deprecated since 2025-12-15; no updates from 2026-03-09" in said.out
    )
    assert "owner: shop in eu-west-1: the CloudFormation stack shop-stack: its next deployment puts back" in said.out
    assert "core is not published in eu-west-1." in said.out
    rows = [words for line in said.out.splitlines() if (words := line.split())[:1] == ["web"]]
    assert [(row[2], row[4:]) for row in rows] == [("2", ["nobody"]), ("1", ["shop,", "shop:3", "(live)"])]
    document = call("usage", settings=SETTINGS, environment="trial", layer=["web"], json=True).document
    assert [(one["version"], len(one["used_by"])) for one in document["versions"]] == [(2, 0), (1, 2)]
    assert document["functions"][0]["stack"] == "shop-stack"
    assert json.dumps(document).count("2026-03-09") == 1


def test_what_is_not_known_is_4(call: Caller, strict: StandIn) -> None:
    publish(strict, "web", 1)
    strict.function(IRELAND, "shop", arn("web", 1))
    strict.denied.add("ListTags")
    said = call("usage", settings=SETTINGS, environment="trial", json=True)
    assert (said.code, said.document["not_known"][0]["what"]) == (4, "owner")
    assert "not checked: owner of eu-west-1" in call("usage", settings=SETTINGS, environment="trial").out


@pytest.mark.parametrize(
    ("flags", "operation", "code", "what"),
    [
        ({"environment": "prod"}, "", 2, "there is no environment called 'prod'"),
        ({"layer": ["nobody"]}, "", 2, "there is no layer called 'nobody'"),
        ({}, "ListFunctions", 4, "lambda:ListFunctions in eu-west-1 is denied"),
        ({}, "ListLayerVersions", 4, "lambda:ListLayerVersions in eu-west-1 is denied"),
    ],
)
def test_what_goes_wrong_is_one_line(
    flags: dict[str, Any], operation: str, code: int, what: str, call: Caller, strict: StandIn
) -> None:
    strict.denied.add(operation)
    said = call("usage", settings=SETTINGS, **{"environment": "trial", "json": True, **flags})
    assert (said.code, said.document["error"]["exit_code"]) == (code, code)
    assert said.document["error"]["message"].startswith(what) or what in said.document["error"]["message"]


def keys(document: Any, prefix: str = "") -> set[str]:
    """Every key of a document, with the keys that it is below."""
    if isinstance(document, list):
        return {key for entry in document for key in keys(entry, prefix)}
    if not isinstance(document, dict):
        return set()
    return {key for name, value in document.items() for key in {prefix + name} | keys(value, f"{prefix}{name}.")}


def documented(task: str) -> set[str]:
    text = (REPOSITORY / "docs" / "json.md").read_text()
    (section,) = [part for part in re.split(r"^## ", text, flags=re.MULTILINE) if part.startswith(f"{task}\n")]
    return set(re.findall(r"^\| `([a-z_.0-9]+)` \|", section, re.MULTILINE))


def test_every_key_is_documented_and_no_other(call: Caller, strict: StandIn) -> None:
    publish(strict, "web", 1)
    strict.function(IRELAND, "shop", arn("web", 1))
    strict.denied.add("ListTags")
    document = call("usage", settings=SETTINGS, environment="trial", json=True).document
    assert keys(document) == documented("usage")
