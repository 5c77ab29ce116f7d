"""Publishing against moto, and against a Lambda that is strict where moto is not: all by boto3 over HTTP."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
import signal
import subprocess
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from layerkit.aws import Aws, AwsError
from layerkit.environments import Environment
from layerkit.errors import ConfigurationError
from layerkit.layerversions import Permission, parse_policy, versions
from layerkit.model import Target
from layerkit.publishing import (
    Action,
    Journal,
    Published,
    plan_publish,
    publish,
    read_arns,
    write_arns,
)
from layerkit.releasing import DESCRIPTION, Release, describe
from tests.support.aws import ACCOUNT, ENVIRONMENT, StandIn, moto, strict_aws
from tests.support.calls import Caller, Said
from tests.support.checkouts import HERE, REPOSITORY, Checkout

TARGET = Target("python3.13", "x86_64")
ARM = Target("python3.13", "arm64")
IRELAND, VIRGINIA = "eu-west-1", "us-east-1"
ORGANIZATION = Permission("all-of-us", "*", "o-1234567890")
PARTNER = Permission("partner", "210987654321")
EVERYBODY = Permission("everybody", "*")


@pytest.fixture(scope="module")
def behind() -> Iterator[str]:
    with moto() as url:
        yield url


@pytest.fixture
def strict(behind: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    with strict_aws(behind, monkeypatch) as stand_in:
        yield stand_in


ENVIRONMENT_HERE = Environment("trial", ACCOUNT, (IRELAND, VIRGINIA))


@pytest.fixture
def aws(strict: StandIn) -> Aws:
    return Aws(ENVIRONMENT_HERE)


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal" / "trial.json")


@pytest.fixture
def release(tmp_path: Path) -> Release:
    return make_release(tmp_path)


def make_release(
    folder: Path, layer: str = "web", content: str = "x = 1\n", target: Target = TARGET, licence: str = ""
) -> Release:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr(zipfile.ZipInfo("python/thing.py"), content)
    digest = hashlib.sha256(data.getvalue()).hexdigest()
    path = folder / f"{layer}-{target}-{digest[:8]}.zip"
    path.write_bytes(data.getvalue())
    inputs = hashlib.sha256(f"{layer} {target} {content}".encode()).hexdigest()
    description = describe(inputs, "1" * 64, "2" * 40, "What it is for")
    return Release(layer, target, path, digest, len(data.getvalue()), inputs, description, licence)


def at_once(seconds: float) -> None:
    """In place of waiting."""


def run(aws: Aws, journal: Journal, *wanted: Release, **options: Any) -> tuple[Published, ...]:
    plan = plan_publish(aws, wanted, options.pop("regions", (IRELAND,)), journal, **options)
    return publish(aws, plan, journal, wait=at_once)


def allow(strict: StandIn, aws: Aws, number: int, *permissions: Permission, layer: str = "web") -> None:
    for one in permissions:
        more: dict[str, Any] = {"OrganizationId": one.organization} if one.organization else {}
        aws.call(
            "lambda",
            IRELAND,
            "add_layer_version_permission",
            LayerName=layer,
            VersionNumber=number,
            StatementId=one.statement,
            Action=one.action,
            Principal=one.principal,
            **more,
        )


def allowed(strict: StandIn, number: int, layer: str = "web") -> set[str]:
    return set(strict.layer(IRELAND, layer).policies.get(number, {}))


# ---- what is there, and what is not ----


@pytest.mark.parametrize("server", ["moto", "strict"])
def test_what_is_published_is_found_again(
    server: str, behind: str, strict: StandIn, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The contract of both servers."""
    if server == "moto":
        monkeypatch.setenv("AWS_ENDPOINT_URL", behind)
    aws, journal = Aws(ENVIRONMENT_HERE), Journal(tmp_path / "journal.json")
    release = make_release(tmp_path, f"contract-{server}", licence="MIT")
    assert versions(aws, IRELAND, release.layer) == ()
    (first,) = run(aws, journal, release)
    assert (first.step.action, first.version, first.error) == (Action.PUBLISH, 1, None)
    assert first.arn == f"arn:aws:lambda:{IRELAND}:{ACCOUNT}:layer:{release.layer}:1"
    (second,) = run(aws, journal, release)
    assert (second.step.action, second.step.changes, second.arn) == (Action.PRESENT, False, first.arn)
    (there,) = versions(aws, IRELAND, release.layer)
    assert (there.description, there.licence, there.is_for(TARGET)) == (release.description, "MIT", True)


def test_each_of_content_runtime_architecture_and_licence_makes_another_version(
    strict: StandIn, aws: Aws, journal: Journal, tmp_path: Path
) -> None:
    for number, release in enumerate(
        [
            make_release(tmp_path),
            make_release(tmp_path, content="x = 2\n"),
            make_release(tmp_path, target=ARM),
            make_release(tmp_path, target=Target("python3.12", "x86_64")),
            make_release(tmp_path, licence="MIT"),
        ],
        1,
    ):
        (published,) = run(aws, journal, release)
        assert published.version == number
    (again,) = run(aws, journal, make_release(tmp_path))
    assert (again.version, strict.layer(IRELAND, "web").next) == (1, 6)


def test_a_description_only_finds_candidates(
    strict: StandIn, aws: Aws, journal: Journal, release: Release, tmp_path: Path
) -> None:
    run(aws, journal, release)
    other = make_release(tmp_path, content="x = 2\n")
    claims = replace(other, inputs=release.inputs, description=release.description)
    (published,) = run(aws, journal, claims)
    assert published.version == 2
    strict.asked.clear()
    run(aws, journal, make_release(tmp_path, content="x = 3\n"))
    assert strict.count("GetLayerVersion") == 0  # no description says that it could be one of them


def test_a_layer_with_more_versions_than_a_page(
    strict: StandIn, aws: Aws, journal: Journal, release: Release, tmp_path: Path
) -> None:
    run(aws, journal, release)
    layer = strict.layer(IRELAND, "web")
    for number in range(2, 120):
        arn = f"arn:aws:lambda:{IRELAND}:{ACCOUNT}:layer:web:{number}"
        layer.versions[number] = {"LayerVersionArn": arn, "Version": number, "Content": {"CodeSha256": ""}}
    layer.next = 120
    strict.asked.clear()
    (published,) = run(aws, journal, release)
    assert (published.step.action, published.version, strict.count("ListLayerVersions")) == (Action.PRESENT, 1, 3)


def test_layers_and_regions_side_by_side_and_only_what_is_missing_again(
    strict: StandIn, aws: Aws, journal: Journal, tmp_path: Path
) -> None:
    wanted = [make_release(tmp_path, "web"), make_release(tmp_path, "core")]
    both = threading.Barrier(4, timeout=30)

    def together(region: str, operation: str) -> None:
        if operation == "PublishLayerVersion":
            both.wait()

    strict.before = together  # passes only when all four are under way at the same time
    first = run(aws, journal, *wanted, regions=(IRELAND, VIRGINIA))
    strict.before = lambda region, operation: None
    assert [(one.step.release.layer, one.step.region, one.error) for one in first] == [
        ("web", IRELAND, None),
        ("web", VIRGINIA, None),
        ("core", IRELAND, None),
        ("core", VIRGINIA, None),
    ]
    del strict.layers[VIRGINIA, "core"]
    strict.asked.clear()
    second = run(aws, journal, *wanted, regions=(IRELAND, VIRGINIA))
    assert [one.step.action for one in second].count(Action.PUBLISH) == 1
    assert strict.count("PublishLayerVersion") == 1


# ---- large zips ----


def test_a_large_zip_goes_through_the_bucket_of_its_region(
    behind: str, strict: StandIn, journal: Journal, release: Release
) -> None:
    aws = Aws(replace(ENVIRONMENT_HERE, buckets={IRELAND: "zips-in-ireland"}))
    aws.call(
        "s3",
        IRELAND,
        "create_bucket",
        Bucket="zips-in-ireland",
        CreateBucketConfiguration={"LocationConstraint": IRELAND},
    )
    (published,) = run(aws, journal, release, direct=release.size - 1)
    assert (published.error, published.version, published.step.bucket) == (None, 1, "zips-in-ireland")
    path = f"/zips-in-ireland/layerkit/{release.sha256}.zip"
    assert strict.count(f"PUT {path}") == 1
    strict.layers.clear()
    (again,) = run(aws, journal, release, direct=release.size - 1)
    assert (again.error, again.version, strict.count(f"PUT {path}")) == (None, 1, 1)  # the object was there
    strict.layers.clear()
    (direct,) = run(aws, journal, release, direct=release.size)
    assert (direct.error, direct.step.bucket) == (None, "")


def test_a_large_zip_without_a_bucket_is_refused_before_anything_is_asked(
    strict: StandIn, aws: Aws, journal: Journal, release: Release
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        run(aws, journal, replace(release, size=52_428_801), regions=(IRELAND, VIRGINIA))
    assert caught.value.hint.endswith(f"layerkit.environments.trial.buckets.{IRELAND}")
    assert strict.asked == []


def test_a_bucket_that_is_not_there(strict: StandIn, journal: Journal, release: Release) -> None:
    aws = Aws(replace(ENVIRONMENT_HERE, buckets={IRELAND: "nobody-has-this-bucket"}))
    (published,) = run(aws, journal, release, direct=1)
    assert published.error is not None
    assert "s3:PutObject in eu-west-1: The specified bucket does not exist." in published.error.message
    assert strict.count("PublishLayerVersion") == 0


# ---- answers that are none ----


@pytest.mark.parametrize("lost", [1, 2])
def test_a_lost_answer_is_looked_for_before_anything_is_made_again(
    lost: int, strict: StandIn, aws: Aws, journal: Journal, release: Release
) -> None:
    strict.faults["PublishLayerVersion"] = ["lost"] * lost
    (published,) = run(aws, journal, release)
    assert (published.error, published.recovered, published.version) == (None, True, 1)
    assert strict.count("PublishLayerVersion") == 1  # it was made, and found
    assert len(strict.layer(IRELAND, "web").versions) == 1


def test_when_nothing_was_made_it_is_made_again(strict: StandIn, aws: Aws, journal: Journal, release: Release) -> None:
    strict.faults["PublishLayerVersion"] = ["failed"]
    (published,) = run(aws, journal, release)
    assert (published.error, published.recovered, published.version) == (None, False, 1)
    first = strict.asked.index((IRELAND, "PublishLayerVersion"))
    second = strict.asked.index((IRELAND, "PublishLayerVersion"), first + 1)
    assert strict.asked[first + 1 : second].count((IRELAND, "ListLayerVersions")) == 4


def test_what_somebody_else_has_published_meanwhile_is_as_good(
    strict: StandIn, aws: Aws, journal: Journal, release: Release
) -> None:
    plan = plan_publish(aws, [release], (IRELAND,), journal)
    run(aws, journal, release)  # somebody else's, after the plan: it is as good
    strict.faults["PublishLayerVersion"] = ["failed"]
    (published,) = publish(aws, plan, journal, wait=at_once)
    assert (published.recovered, published.version) == (True, 1)


def test_too_many_requests_are_waited_out(strict: StandIn, aws: Aws, journal: Journal, release: Release) -> None:
    strict.faults["PublishLayerVersion"] = ["throttled"] * 2
    waits: list[float] = []
    plan = plan_publish(aws, [release], (IRELAND,), journal)
    (published,) = publish(aws, plan, journal, wait=waits.append)
    assert (published.error, published.version, strict.count("PublishLayerVersion")) == (None, 1, 3)
    assert len(waits) == 2
    assert 0 < waits[0] <= 1 <= waits[1] <= 2


def test_what_fails_for_good_is_one_step_s_and_the_others_are_done(
    strict: StandIn, aws: Aws, journal: Journal, tmp_path: Path
) -> None:
    wanted = [make_release(tmp_path, "web"), make_release(tmp_path, "core")]
    plan = plan_publish(aws, wanted, (IRELAND,), journal)
    wanted[0].zip.write_bytes(b"another")
    web, core = publish(aws, plan, journal, wait=at_once)
    assert web.error is not None
    assert "was changed while it was published" in web.error.message
    assert (core.error, core.version, strict.count("PublishLayerVersion")) == (None, 1, 1)


def test_what_aws_says_is_shown_without_keys_and_signatures(
    strict: StandIn, aws: Aws, journal: Journal, release: Release
) -> None:
    strict.faults["PublishLayerVersion"] = ["echoed"]
    (published,) = run(aws, journal, release)
    assert published.error is not None
    assert "lambda:PublishLayerVersion in eu-west-1: AWS4-HMAC-SHA256" in published.error.message
    assert ENVIRONMENT["AWS_ACCESS_KEY_ID"] not in published.error.message
    assert "Signature=***" in published.error.message


def test_throttled_to_the_end(strict: StandIn, aws: Aws, journal: Journal, release: Release) -> None:
    strict.faults["PublishLayerVersion"] = ["throttled"] * 100
    (published,) = run(aws, journal, release)
    assert published.error is not None
    assert published.error.message.startswith("lambda:PublishLayerVersion in eu-west-1: there are too many requests")
    assert (published.error.exit_code, strict.count("PublishLayerVersion")) == (4, 4)


@pytest.mark.parametrize("operation", ["ListLayerVersions", "PublishLayerVersion"])
def test_what_is_denied_is_named(operation: str, strict: StandIn, aws: Aws, journal: Journal, release: Release) -> None:
    strict.denied.add(operation)
    try:
        (published,) = run(aws, journal, release)
        error: Exception | None = published.error
    except AwsError as raised:
        error = raised
    assert isinstance(error, AwsError)
    assert error.message == f"lambda:{operation} in eu-west-1 is denied to the credentials of the environment trial."
    assert f"lambda:{operation}" in error.hint


def test_expired_credentials(strict: StandIn, aws: Aws, journal: Journal, release: Release) -> None:
    strict.expired = True
    with pytest.raises(AwsError, match="the credentials of the environment trial have expired") as caught:
        run(aws, journal, release)
    assert "aws sso login" in caught.value.hint


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(faults=st.lists(st.sampled_from(["", "lost", "failed", "throttled"]), max_size=6))
def test_whatever_goes_wrong_there_is_one_version_in_the_end(
    faults: list[str], strict: StandIn, aws: Aws, journal: Journal, release: Release
) -> None:
    strict.layers.clear()
    strict.faults["PublishLayerVersion"] = [*faults]
    (first,) = run(aws, journal, release)
    assert (first.version == 1) == (first.error is None)
    assert len(strict.layer(IRELAND, "web").versions) == bool(first.version)
    strict.faults.clear()
    (second,) = run(aws, journal, release)
    assert (second.version, second.error, len(strict.layer(IRELAND, "web").versions)) == (1, None, 1)


# ---- permissions ----


def test_permissions_of_the_previous_version_are_carried_forward(
    strict: StandIn, aws: Aws, journal: Journal, release: Release, tmp_path: Path
) -> None:
    run(aws, journal, release)
    allow(strict, aws, 1, ORGANIZATION, PARTNER)
    (second,) = run(aws, journal, make_release(tmp_path, content="x = 2\n"))
    assert (second.version, second.step.permissions) == (2, (ORGANIZATION, PARTNER))
    assert strict.layer(IRELAND, "web").policies[2].keys() == {"all-of-us", "partner"}
    assert strict.layer(IRELAND, "web").policies[2]["all-of-us"]["Condition"] == {
        "StringEquals": {"aws:PrincipalOrgID": "o-1234567890"}
    }


def test_the_previous_version_is_that_for_the_same_target(
    strict: StandIn, aws: Aws, journal: Journal, release: Release, tmp_path: Path
) -> None:
    run(aws, journal, release)
    allow(strict, aws, 1, PARTNER)
    (arm,) = run(aws, journal, make_release(tmp_path, target=ARM))
    assert arm.step.permissions == (PARTNER,)  # there is none for it yet, so the newest of all
    allow(strict, aws, 2, Permission("friend", "111111111111"))
    (next_one,) = run(aws, journal, make_release(tmp_path, content="x = 2\n"))
    assert next_one.step.permissions == (PARTNER,)


def test_a_version_that_everybody_may_use_is_in_the_plan(
    strict: StandIn, aws: Aws, journal: Journal, release: Release, tmp_path: Path
) -> None:
    run(aws, journal, release)
    allow(strict, aws, 1, EVERYBODY, ORGANIZATION)
    plan = plan_publish(aws, [make_release(tmp_path, content="x = 2\n")], (IRELAND,), journal)
    assert [step.name for step in plan.public] == ["web in eu-west-1"]


def test_permissions_that_an_interrupted_run_had_not_given_are_given_by_the_next(
    strict: StandIn, aws: Aws, journal: Journal, release: Release, tmp_path: Path
) -> None:
    run(aws, journal, release)
    allow(strict, aws, 1, ORGANIZATION, PARTNER)
    newer = make_release(tmp_path, content="x = 2\n")
    strict.denied.add("AddLayerVersionPermission")
    (broken,) = run(aws, journal, newer)
    assert broken.error is not None
    assert (broken.version, allowed(strict, 2)) == (2, set())
    strict.denied.clear()
    (mended,) = run(aws, Journal(tmp_path / "journal" / "trial.json"), newer)
    assert (mended.step.action, mended.version, mended.error) == (Action.PRESENT, 2, None)
    assert allowed(strict, 2) == {"all-of-us", "partner"}
    (last,) = run(aws, journal, newer)
    assert not last.step.changes


def test_what_an_earlier_run_had_noted_and_not_published_is_forgotten(
    strict: StandIn, aws: Aws, journal: Journal, release: Release, tmp_path: Path
) -> None:
    run(aws, journal, release)
    allow(strict, aws, 1, PARTNER)
    newer = make_release(tmp_path, content="x = 2\n")
    strict.denied.add("PublishLayerVersion")
    run(aws, journal, newer)
    strict.denied.clear()
    strict.layer(IRELAND, "web").policies.clear()  # taken away meanwhile
    step = plan_publish(aws, [newer], (IRELAND,), journal).steps[0]
    assert journal.pending(step) == (PARTNER,)
    journal.note(step)
    assert journal.pending(step) == ()


def test_a_note_that_can_t_be_read_stops_a_step_before_anything_is_made(
    strict: StandIn, aws: Aws, journal: Journal, release: Release, tmp_path: Path
) -> None:
    (tmp_path / "journal").mkdir()
    (tmp_path / "journal" / "trial.json").write_text("{")
    (published,) = run(aws, journal, release)
    assert isinstance(published.error, ConfigurationError)
    assert "trial.json can't be read" in published.error.message
    assert strict.count("PublishLayerVersion") == 0


def test_permissions_that_somebody_took_away_are_said_and_not_given_back(
    strict: StandIn, aws: Aws, journal: Journal, release: Release, tmp_path: Path
) -> None:
    run(aws, journal, release)
    allow(strict, aws, 1, ORGANIZATION, PARTNER)
    newer = make_release(tmp_path, content="x = 2\n")
    run(aws, journal, newer)
    del strict.layer(IRELAND, "web").policies[2]["partner"]
    (again,) = run(aws, journal, newer)
    assert (again.step.changes, allowed(strict, 2)) == (False, {"all-of-us"})
    assert again.step.notes == ("version 2 does not allow what version 1 does (partner: the account 210987654321)",)


def test_a_permission_whose_answer_was_lost(
    strict: StandIn, aws: Aws, journal: Journal, release: Release, tmp_path: Path
) -> None:
    run(aws, journal, release)
    allow(strict, aws, 1, PARTNER)
    strict.faults["AddLayerVersionPermission"] = ["lost"]
    (second,) = run(aws, journal, make_release(tmp_path, content="x = 2\n"))
    assert (second.error, allowed(strict, 2)) == (None, {"partner"})


def test_what_can_t_be_carried_over_is_said() -> None:
    def statement(sid: str, **more: Any) -> dict[str, Any]:
        basis = {"Sid": sid, "Effect": "Allow", "Action": "lambda:GetLayerVersion", "Principal": "*"}
        return {**basis, **more}

    policy = {
        "Statement": [
            statement("fine", Principal={"AWS": "arn:aws:iam::210987654321:root"}),
            statement("denies", Effect="Deny"),
            statement("user", Principal={"AWS": "arn:aws:iam::210987654321:user/me"}),
            statement("address", Condition={"IpAddress": {"aws:SourceIp": "10.0.0.0/8"}}),
            statement("several", Principal={"AWS": ["210987654321", "111111111111"]}),
        ]
    }
    found, notes = parse_policy(json.dumps(policy))
    assert found == (Permission("fine", "210987654321"),)
    assert [note.rpartition(" ")[2] for note in notes] == ["denies", "user", "address", "several"]


# ---- where the ARNs go ----


def test_ssm_parameters_have_the_arns(strict: StandIn, journal: Journal, release: Release, tmp_path: Path) -> None:
    aws = Aws(replace(ENVIRONMENT_HERE, ssm_prefix="/layers/trial"))

    def value() -> Any:
        return aws.call("ssm", IRELAND, "get_parameter", Name=f"/layers/trial/web/{TARGET}")["Parameter"]["Value"]

    (first,) = run(aws, journal, release)
    assert (first.error, value()) == (None, first.arn)
    (second,) = run(aws, journal, make_release(tmp_path, content="x = 2\n"))
    assert value() == second.arn
    strict.asked.clear()
    (back,) = run(aws, journal, release)
    assert (back.step.action, value()) == (Action.PRESENT, first.arn)
    assert strict.count("PutParameter") == 1
    (nothing,) = run(aws, journal, release)
    assert (nothing.step.changes, strict.count("PutParameter")) == (False, 1)


def test_the_file_with_the_arns_keeps_what_is_not_of_this_run(
    strict: StandIn, aws: Aws, journal: Journal, release: Release, tmp_path: Path
) -> None:
    environment = replace(ENVIRONMENT_HERE, arns_file="reports/arns.json")
    write_arns(tmp_path, environment, run(aws, journal, release))
    write_arns(tmp_path, environment, run(aws, journal, make_release(tmp_path, "core"), regions=(VIRGINIA,)))
    document = json.loads((tmp_path / "reports" / "arns.json").read_text())
    assert document == {
        "schema": 1,
        "account": ACCOUNT,
        "layers": {
            "core": {str(TARGET): {VIRGINIA: f"arn:aws:lambda:{VIRGINIA}:{ACCOUNT}:layer:core:1"}},
            "web": {str(TARGET): {IRELAND: f"arn:aws:lambda:{IRELAND}:{ACCOUNT}:layer:web:1"}},
        },
    }


@pytest.mark.parametrize("content", ["not JSON", "[]", '{"schema": 1, "account": "1", "layers": {}}', '{"schema": 1}'])
def test_a_file_that_has_no_arns_is_left_alone(content: str, tmp_path: Path) -> None:
    environment = replace(ENVIRONMENT_HERE, arns_file="package.json")
    (tmp_path / "package.json").write_text(content)
    with pytest.raises(ConfigurationError, match=r"environments\.trial\.arns_file: package\.json is there"):
        read_arns(tmp_path, environment)


def test_a_file_that_leads_out_of_the_checkout(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "out").symlink_to(tmp_path)
    with pytest.raises(ConfigurationError, match="lies outside of the checkout"):
        read_arns(tmp_path / "root", replace(ENVIRONMENT_HERE, arns_file="out/arns.json"))


# ---- the description ----


@given(
    inputs=st.text("0123456789abcdef", min_size=64, max_size=64),
    lock=st.just("") | st.text("0123456789abcdef", min_size=64, max_size=64),
    commit=st.just("") | st.text("0123456789abcdef", min_size=40, max_size=40),
    changed=st.sampled_from(["", "+"]),
    text=st.text(max_size=400),
)
def test_a_description_is_what_aws_takes(inputs: str, lock: str, commit: str, changed: str, text: str) -> None:
    described = describe(inputs, lock, commit and commit + changed, text)
    assert described.startswith(f"layerkit inputs={inputs[:16]}")
    assert len(described) <= DESCRIPTION
    assert described.isprintable()
    assert (f"git={commit[:12]}{changed}" in described) == bool(commit)
    assert (f"lock={lock[:12]}" in described) == bool(lock)


# ---- interrupted ----


def test_when_it_is_interrupted_what_was_sent_is_told_and_nothing_else_is_begun(
    strict: StandIn, aws: Aws, journal: Journal, tmp_path: Path
) -> None:
    wanted = [make_release(tmp_path, name) for name in ("one", "two", "three")]
    plan = plan_publish(aws, wanted, (IRELAND,), journal)
    told: list[Published] = []
    noticed = threading.Event()

    def stop(number: int, frame: Any) -> None:
        noticed.set()
        raise KeyboardInterrupt

    def interrupt(region: str, operation: str) -> None:
        if operation == "PublishLayerVersion" and not noticed.is_set():
            os.kill(os.getpid(), signal.SIGINT)
            noticed.wait(30)

    strict.before = interrupt
    before = signal.signal(signal.SIGINT, stop)
    try:
        with pytest.raises(KeyboardInterrupt):
            publish(aws, plan, journal, jobs=1, tell=told.append)
    finally:
        signal.signal(signal.SIGINT, before)
    assert [(one.step.release.layer, one.version) for one in told if one.arn] == [("one", 1)]
    assert strict.count("PublishLayerVersion") == 1


# ---- the task ----


@pytest.fixture
def call(
    checkout: Checkout, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, strict: StandIn
) -> Caller:
    checkout.layer("web", "", code={"web.py": "x = 1\n"})
    return Caller(checkout.root, capfd, monkeypatch)


FOR_HERE: dict[str, Any] = {"runtime": HERE.runtime, "architecture": HERE.architecture}
SETTINGS: dict[str, Any] = {"environments": {"trial": {"account": ACCOUNT, "regions": [IRELAND, VIRGINIA]}}}


def with_settings(**more: Any) -> dict[str, Any]:
    return {"environments": {"trial": {**SETTINGS["environments"]["trial"], **more}}}


def build(call: Caller) -> None:
    said = call("build", skip_optimization=True, **FOR_HERE)
    assert said.code == 0, said.err


def published(call: Caller, settings: dict[str, Any] = SETTINGS, **flags: Any) -> Said:
    return call("publish", settings=settings, **{"environment": "trial", "json": True, **FOR_HERE, **flags})


def test_from_sources_to_layer_versions(call: Caller, strict: StandIn) -> None:
    settings = with_settings(arns_file="reports/arns.json", licence="MIT")
    refused = published(call, settings)
    assert (refused.code, refused.document["error"]["hint"]) == (3, "First: inv build --layer web")
    build(call)
    planned = published(call, settings, dry_run=True)
    assert (planned.code, planned.document["dry_run"]) == (0, True)
    assert [one["action"] for one in planned.document["versions"]] == ["publish", "publish"]
    assert strict.layers == {}
    done = published(call, settings)
    assert (done.code, done.err.count("version 1")) == (0, 2), done.err
    arns = {one["region"]: one["arn"] for one in done.document["versions"]}
    written = json.loads((call.root / "reports" / "arns.json").read_text())
    assert written["layers"] == {"web": {str(HERE): arns}}
    (version,) = strict.layer(IRELAND, "web").versions.values()
    content = (call.root / "dist" / f"web-{HERE}.zip").read_bytes()
    assert version["Content"]["CodeSha256"] == base64.b64encode(hashlib.sha256(content).digest()).decode()
    assert (version["CompatibleRuntimes"], version["CompatibleArchitectures"], version["LicenseInfo"]) == (
        [HERE.runtime],
        [HERE.architecture],
        "MIT",
    )
    again = published(call, settings)
    assert [one["action"] for one in again.document["versions"]] == ["already there", "already there"]
    assert strict.count("PublishLayerVersion") == 2
    shown = published(call, settings, json=False)
    assert "already there as version 1" in shown.out


def test_what_is_not_what_was_validated_is_refused(call: Caller, strict: StandIn) -> None:
    build(call)
    archive = call.root / "dist" / f"web-{HERE}.zip"
    content = bytearray(archive.read_bytes())
    content[-30] ^= 1
    archive.write_bytes(content)
    said = published(call)
    assert said.code == 3
    assert "is not the zip that was built and validated" in said.document["error"]["message"]
    (call.root / "layers" / "web" / "src" / "web.py").write_text("x = 2\n")
    assert "web is outdated" in published(call).document["error"]["message"]
    assert strict.count("PublishLayerVersion") == 0


def test_what_was_not_validated_is_refused(call: Caller, strict: StandIn) -> None:
    said = call("build", skip_optimization=True, skip_validation=True, **FOR_HERE)
    assert said.code in (0, 4), said.err
    said = published(call)
    assert (said.code, said.document["error"]["hint"]) == (3, "First: inv validate --layer web")


def test_what_could_not_be_checked_needs_to_be_allowed(call: Caller, strict: StandIn) -> None:
    foreign: dict[str, Any] = {
        "runtime": HERE.runtime,
        "architecture": "arm64" if HERE.architecture == "x86_64" else "x86_64",
    }
    call("build", skip_optimization=True, **foreign)
    call("validate", **foreign)
    said = published(call, **foreign)
    assert (said.code, "--allow-unverified" in said.document["error"]["hint"]) == (4, True), said.out
    assert published(call, allow_unverified=True, **foreign).code == 0
    assert len(strict.layer(IRELAND, "web").versions) == 1


def test_a_protected_environment_needs_a_word(call: Caller, strict: StandIn) -> None:
    build(call)
    settings = with_settings(protected=True)
    said = published(call, settings)
    assert (said.code, "trial is protected (2 of 2 to be published)" in said.document["error"]["message"]) == (2, True)
    assert strict.layers == {}
    assert published(call, settings, dry_run=True).code == 0
    assert published(call, settings, yes=True).code == 0
    assert published(call, settings).code == 0  # there is nothing to be done


def test_what_everybody_may_use_needs_a_word(call: Caller, strict: StandIn) -> None:
    build(call)
    published(call)
    allow(strict, Aws(ENVIRONMENT_HERE), 1, EVERYBODY)
    (call.root / "layers" / "web" / "src" / "web.py").write_text("x = 2\n")
    build(call)
    said = published(call)
    assert (said.code, "Everybody would be allowed" in said.document["error"]["message"]) == (2, True)
    assert published(call, yes=True).code == 0
    assert allowed(strict, 2) == {"everybody"}


@pytest.mark.parametrize(
    ("settings", "flags", "code", "what"),
    [
        (SETTINGS, {"environment": None}, 2, "--environment is missing"),
        (SETTINGS, {"environment": "prod"}, 2, "there is no environment called 'prod'"),
        (SETTINGS, {"region": ["eu-north-1"]}, 2, "'eu-north-1' is not a region of the environment trial"),
        (SETTINGS, {"layer": ["nobody"]}, 2, "there is no layer called 'nobody'"),
        (with_settings(account="999999999999"), {}, 2, "trial is the account 999999999999"),
        (with_settings(accounts=1), {}, 2, "layerkit.environments.trial.accounts is not known"),
        (with_settings(arns_file="invoke.yaml"), {}, 2, "invoke.yaml is there, and has no ARNs"),
    ],
)
def test_wrong_input_is_one_line_and_changes_nothing(
    settings: dict[str, Any], flags: dict[str, Any], code: int, what: str, call: Caller, strict: StandIn
) -> None:
    build(call)
    (call.root / "invoke.yaml").write_text("layerkit: {}\n")
    said = published(call, settings, **flags)
    assert (said.code, said.document["error"]["exit_code"]) == (code, code)
    assert what in said.document["error"]["message"]
    assert strict.count("PublishLayerVersion") == 0


def test_what_fails_in_one_region_is_partly_done(call: Caller, strict: StandIn) -> None:
    build(call)
    strict.denied.add(f"{VIRGINIA}/PublishLayerVersion")
    said = published(call)
    assert said.code == 5
    ireland, virginia = said.document["versions"]
    assert (ireland["version"], ireland["error"], virginia["version"]) == (1, None, None)
    assert virginia["error"].startswith("lambda:PublishLayerVersion in us-east-1 is denied")
    assert f"not done: web in us-east-1: {virginia['error']}" in said.err
    assert "The same command does what is missing." in said.err
    strict.denied.clear()
    assert published(call).code == 0
    assert len(strict.layer(VIRGINIA, "web").versions) == len(strict.layer(IRELAND, "web").versions) == 1


def test_when_nothing_could_be_published_it_is_4(call: Caller, strict: StandIn) -> None:
    build(call)
    strict.denied.add("PublishLayerVersion")
    said = published(call)
    assert (said.code, "nothing was published" in said.document["error"]["message"]) == (4, True)


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("yes", 0), ("n", 2), ("", 2)])
def test_somebody_is_asked_on_a_terminal(
    answer: str, code: int, checkout: Checkout, call: Caller, strict: StandIn
) -> None:
    build(call)
    (checkout.root / "invoke.yaml").write_text(json.dumps({"layerkit": with_settings(protected=True)}))
    words = ["publish", "--environment", "trial", "--runtime", HERE.runtime, "--architecture", HERE.architecture]
    person, terminal = os.openpty()
    try:
        os.write(person, f"{answer}\n".encode())
        done = checkout.inv(*words, stdin=terminal)
    finally:
        os.close(person)
        os.close(terminal)
    assert done.returncode == code, done.stderr
    assert "web in eu-west-1: the first version" in done.stderr
    assert "trial is protected (2 of 2 to be published). Go on? [y/N]" in done.stderr
    assert strict.count("PublishLayerVersion") == (0 if code else 2)


def test_the_description_names_the_commit(call: Caller, strict: StandIn) -> None:
    (call.root / ".gitignore").write_text("dist/\n.layerkit/\nlayers/*/python/\n")
    build(call)

    def git(*words: str) -> str:
        command = ["git", "-c", "user.name=me", "-c", "user.email=me@example.org", *words]
        return subprocess.run(command, cwd=call.root, capture_output=True, text=True, check=True).stdout.strip()

    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message", "web")
    commit = git("rev-parse", "HEAD")

    def description() -> str:
        document = published(call, dry_run=True).document
        return str(document["versions"][0]["description"])

    assert description().endswith(f" git={commit[:12]}")
    (call.root / "layers" / "web" / "notes").write_text("not part of the build")
    assert description().endswith(f" git={commit[:12]}+")


def iam(strict: StandIn) -> set[str]:
    """The permissions that what was asked needs."""
    services = {"GetParameter": "ssm", "PutParameter": "ssm"}
    found = {f"{services.get(name, 'lambda')}:{name}" for _, name in strict.asked if " " not in name}
    objects = {"HEAD": "s3:GetObject", "PUT": "s3:PutObject"}
    found |= {objects[name.split()[0]] for _, name in strict.asked if " " in name}
    return found - {"lambda:GetCallerIdentity"}


def test_the_documentation_has_the_permissions_that_each_task_needs(
    call: Caller, strict: StandIn, journal: Journal, tmp_path: Path
) -> None:
    text = (REPOSITORY / "docs" / "environments.md").read_text()
    rows = dict(re.findall(r"^\| `inv ([a-z -]+)` \| (.*) \|$", text, re.MULTILINE))
    documented = {task: set(re.findall(r"`([a-z0-9]+:[A-Za-z]+)`", row)) for task, row in rows.items()}
    build(call)
    published(call)
    allow(strict, Aws(ENVIRONMENT_HERE), 1, PARTNER)
    (call.root / "layers" / "web" / "src" / "web.py").write_text("x = 2\n")
    build(call)
    with_parameters = with_settings(ssm_prefix="/layers/needed")
    published(call, with_parameters)
    strict.asked.clear()
    assert published(call, with_parameters, dry_run=True).code == 0
    only_asked = iam(strict)
    assert only_asked == documented["publish --dry-run"]
    aws = Aws(replace(ENVIRONMENT_HERE, buckets={IRELAND: "zips-needed"}, ssm_prefix="/layers/needed"))
    place = {"LocationConstraint": IRELAND}
    aws.call("s3", IRELAND, "create_bucket", Bucket="zips-needed", CreateBucketConfiguration=place)
    strict.asked.clear()
    (done,) = run(aws, journal, make_release(tmp_path), direct=1)
    assert done.error is None
    # Without the permission to list, S3 does not say that an object is not there.
    assert iam(strict) | only_asked | {"s3:ListBucket"} == documented["publish"]
    strict.function(IRELAND, "shop", f"arn:aws:lambda:{IRELAND}:{ACCOUNT}:layer:web:1")
    strict.asked.clear()
    assert call("usage", settings=SETTINGS, environment="trial").code == 0
    assert iam(strict) == documented["usage"]


def test_the_program_is_interrupted_in_the_middle(
    checkout: Checkout, call: Caller, strict: StandIn, behind: str
) -> None:
    """A process: what had been sent when Ctrl-C came is there, is said, and is not made again."""
    build(call)
    (checkout.root / "invoke.yaml").write_text(json.dumps({"layerkit": with_settings(arns_file="arns.json")}))
    words = ["publish", "--environment", "trial", "--runtime", HERE.runtime, "--architecture", HERE.architecture]
    process: subprocess.Popen[str] | None = None
    ready = threading.Event()

    def interrupt(region: str, operation: str) -> None:
        if operation == "PublishLayerVersion" and region == IRELAND:
            ready.wait(30)
            assert process is not None
            process.send_signal(signal.SIGINT)

    strict.before = interrupt
    process = subprocess.Popen(
        checkout.command(*words),
        cwd=checkout.root,
        env={**os.environ, **checkout.environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    ready.set()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "the same command does what is missing" in err
    strict.before = lambda region, operation: None
    done = checkout.inv(*words)
    assert done.returncode == 0, done.stderr
    for region in (IRELAND, VIRGINIA):
        assert len(strict.layer(region, "web").versions) == 1
    assert set(json.loads((checkout.root / "arns.json").read_text())["layers"]["web"][str(HERE)]) == {IRELAND, VIRGINIA}


@pytest.mark.parametrize("operation", ["PublishLayerVersion", "AddLayerVersionPermission"])
def test_the_program_is_killed_in_the_middle(operation: str, checkout: Checkout, call: Caller, strict: StandIn) -> None:
    """Whatever had been sent by then: the next run makes no second version, and gives the permissions."""
    build(call)
    published(call, region=[IRELAND])
    allow(strict, Aws(ENVIRONMENT_HERE), 1, PARTNER, ORGANIZATION)
    (call.root / "layers" / "web" / "src" / "web.py").write_text("x = 2\n")
    build(call)
    (checkout.root / "invoke.yaml").write_text(json.dumps({"layerkit": SETTINGS}))
    words = ["publish", "--environment", "trial", "--region", IRELAND]
    words += ["--runtime", HERE.runtime, "--architecture", HERE.architecture]
    process: subprocess.Popen[bytes] | None = None
    ready = threading.Event()

    def kill(region: str, asked: str) -> None:
        if asked == operation:
            ready.wait(30)
            assert process is not None
            process.kill()
            process.wait()

    strict.before = kill
    process = subprocess.Popen(
        checkout.command(*words),
        cwd=checkout.root,
        env={**os.environ, **checkout.environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    ready.set()
    assert process.wait(timeout=60) == -signal.SIGKILL
    strict.before = lambda region, operation: None
    done = checkout.inv(*words)
    assert done.returncode == 0, done.stderr
    assert set(strict.layer(IRELAND, "web").versions) == {1, 2}
    assert allowed(strict, 2) == {"partner", "all-of-us"}
    assert json.loads((checkout.root / ".layerkit" / "publishing" / "trial.json").read_text()) == {}


def test_no_secret_is_said(call: Caller, strict: StandIn) -> None:
    build(call)
    secret = ENVIRONMENT["AWS_SECRET_ACCESS_KEY"]
    said = [published(call, json=False, dry_run=True)]
    strict.denied.add("ListLayerVersions")
    said.append(published(call, json=False))
    strict.expired = True
    said.append(published(call, json=False))
    assert [one.code for one in said] == [0, 4, 4]
    for one in said:
        assert secret not in one.out + one.err
        assert ENVIRONMENT["AWS_ACCESS_KEY_ID"] not in one.out + one.err


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
    build(call)
    published(call, region=[IRELAND])
    allow(strict, Aws(ENVIRONMENT_HERE), 1, PARTNER)
    (call.root / "layers" / "web" / "src" / "web.py").write_text("x = 2\n")
    build(call)
    assert keys(published(call, dry_run=True).document) == documented("publish")
