"""Credentials, profiles, roles and endpoints: as the AWS CLI has them, and one clear line where they are wrong."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from layerkit.aws import Aws, AwsError, check_account
from layerkit.environments import Environment
from layerkit.errors import ConfigurationError, ExternalError
from tests.support.aws import ACCOUNT, ENVIRONMENT, StandIn, moto, strict_aws
from tests.support.index import Index

TRIAL = Environment("trial", ACCOUNT, ("eu-west-1", "us-east-1"))


@pytest.fixture(scope="module")
def behind() -> Iterator[str]:
    with moto() as url:
        yield url


@pytest.fixture
def strict(behind: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    with strict_aws(behind, monkeypatch) as stand_in:
        yield stand_in


def test_the_account_is_checked(strict: StandIn) -> None:
    with pytest.raises(ConfigurationError) as caught:
        check_account(Aws(replace(TRIAL, account="999999999999")))
    assert "999999999999" in caught.value.message
    assert ACCOUNT in caught.value.message
    assert check_account(Aws(TRIAL)).account == ACCOUNT


def test_a_role_is_assumed(strict: StandIn) -> None:
    role = f"arn:aws:iam::{ACCOUNT}:role/layers"
    identity = check_account(Aws(replace(TRIAL, role=role)))
    assert identity.arn == f"arn:aws:sts::{ACCOUNT}:assumed-role/layers/layerkit"
    assert [operation for _, operation in strict.asked] == ["AssumeRole", "GetCallerIdentity"]


def test_a_profile_has_its_own_keys_and_region(
    strict: StandIn, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "config").write_text("[profile shop]\naws_access_key_id = A\naws_secret_access_key = B\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert check_account(Aws(replace(TRIAL, profile="shop"))).account == ACCOUNT
    monkeypatch.setenv("AWS_PROFILE", "shop")
    assert check_account(Aws(TRIAL)).account == ACCOUNT
    for variable, environment in (
        ("shop", replace(TRIAL, profile="nobody")),
        ("nobody", TRIAL),
    ):
        monkeypatch.setenv("AWS_PROFILE", variable)
        with pytest.raises(ConfigurationError, match=r"profile \(nobody\) could not be found"):
            check_account(Aws(environment))


def test_no_credentials(strict: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    for environment in (TRIAL, replace(TRIAL, role=f"arn:aws:iam::{ACCOUNT}:role/layers")):
        with pytest.raises(AwsError, match="there are no credentials of AWS for the environment trial"):
            check_account(Aws(environment))


@pytest.mark.parametrize(
    ("variable", "value", "kind", "what"),
    [
        ("AWS_ENDPOINT_URL", "nonsense", ConfigurationError, "AWS can't be asked: Invalid endpoint: nonsense"),
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:1/", ExternalError, "sts:GetCallerIdentity in eu-west-1: AWS can't be"),
        ("AWS_MAX_ATTEMPTS", "many", ConfigurationError, "AWS_MAX_ATTEMPTS is no number"),
        ("AWS_RETRY_MODE", "many", ConfigurationError, "AWS can't be asked: Invalid value provided to"),
        ("AWS_CONFIG_FILE", "{broken}", ConfigurationError, "AWS can't be asked: Unable to parse config file"),
    ],
)
def test_settings_of_aws_that_are_wrong(
    variable: str,
    value: str,
    kind: type[Exception],
    what: str,
    strict: StandIn,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    (tmp_path / "broken").write_text("no section = 1")
    monkeypatch.setenv(variable, value.format(broken=tmp_path / "broken"))
    with pytest.raises(kind) as caught:
        check_account(Aws(TRIAL))
    assert what in str(caught.value)
    assert ENVIRONMENT["AWS_SECRET_ACCESS_KEY"] not in str(caught.value)


def test_a_server_that_is_not_aws(strict: StandIn, monkeypatch: pytest.MonkeyPatch, index: Index) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", index.url.removesuffix("/simple/"))
    with pytest.raises(ExternalError, match="sts:GetCallerIdentity in eu-west-1"):
        check_account(Aws(TRIAL))
