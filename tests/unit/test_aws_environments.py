"""Environments in invoke.yaml: what is read, and every mistake with the key that has it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from layerkit.environments import Check, Environment, chosen_environment, parse_environments
from layerkit.errors import ConfigurationError

ROOT = Path(__file__).parents[2]
LEAST: dict[str, Any] = {"account": "123456789012", "regions": ["eu-west-1", "us-east-1"]}


def parsed(**values: Any) -> Environment:
    return parse_environments({"production": {**LEAST, **values}})["production"]


def mistake(**values: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        parsed(**values)
    return caught.value.message


def test_the_least_that_is_needed() -> None:
    assert parsed() == Environment("production", "123456789012", ("eu-west-1", "us-east-1"))


def test_everything() -> None:
    checks = [{"function": "shop", "event": "events/one.json"}, {"url": "https://shop.example/health", "status": 204}]
    assert parsed(
        profile="shop",
        role="arn:aws:iam::123456789012:role/path/layers",
        buckets={"us-east-1": "zips-there"},
        functions=["shop-*"],
        aliases=["live"],
        checks=checks,
        history="s3://team/history/layers",
        protected=True,
        licence="MIT",
        ssm_prefix="/layers/production",
        arns_file="reports/layers.json",
    ) == Environment(
        name="production",
        account="123456789012",
        regions=("eu-west-1", "us-east-1"),
        profile="shop",
        role="arn:aws:iam::123456789012:role/path/layers",
        buckets={"us-east-1": "zips-there"},
        functions=("shop-*",),
        aliases=("live",),
        checks=(Check("shop", "events/one.json"), Check(url="https://shop.example/health", status=204)),
        history="s3://team/history/layers",
        protected=True,
        licence="MIT",
        ssm_prefix="/layers/production",
        arns_file="reports/layers.json",
    )


def test_an_account_without_quotes_is_a_number_in_yaml() -> None:
    assert parsed(account=yaml.safe_load("123456789012")).account == "123456789012"
    # One that begins with 0 is octal there, so other digits arrive.
    assert "layerkit.environments.production.account" in mistake(account=yaml.safe_load("012345670123"))


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"regoins": []}, "production.regoins is not known"),
        ({"account": None}, "production.account: None is not the number of an account"),
        ({"account": "12345678901"}, "production.account: '12345678901' is not"),
        ({"account": True}, "production.account: True is not"),
        ({"regions": []}, "production.regions is missing"),
        ({"regions": "eu-west-1"}, "production.regions must be a list, not 'eu-west-1'"),
        ({"regions": ["Ireland"]}, "production.regions[0]: 'Ireland' is not a region"),
        ({"regions": ["eu-west-1", "eu-west-1"]}, "production.regions has 'eu-west-1' twice"),
        ({"profile": ""}, "production.profile: '' is not the name of a profile"),
        ({"role": "layers"}, "production.role: 'layers' is not the ARN of a role"),
        ({"role": "arn:aws:iam::999999999999:role/x"}, "production.role is a role of the account 999999999999"),
        ({"buckets": ["zips"]}, "production.buckets must be buckets by region"),
        ({"buckets": {"eu-west-1": "Zips"}}, "production.buckets.eu-west-1: 'Zips' is not the name of a bucket"),
        ({"buckets": {"eu-west-2": "zips"}}, "production.buckets: eu-west-2 is not one of its regions"),
        ({"functions": ["shop *"]}, "production.functions[0]: 'shop *' is not"),
        ({"aliases": ["12"]}, "production.aliases[0]: '12' is not the name of an alias"),
        ({"checks": [{"function": "shop"}]}, "production.checks[0] must have function and event, or url"),
        ({"checks": [{"url": "https://a.example", "event": "x"}]}, "production.checks[0] must have function and event"),
        ({"checks": [{"url": "https://a.example", "status": 99}]}, "production.checks[0].status: 99 is not a status"),
        ({"checks": [{"url": "http://a.example"}]}, "production.checks[0].url is not an address of https"),
        ({"checks": [{"function": "f", "event": "../e"}]}, "production.checks[0].event: '../e' is not the path"),
        ({"checks": ["https://a.example"]}, "production.checks[0] must be keys with values"),
        ({"history": "s3:bucket"}, "production.history: 's3:bucket' is not a place for the history"),
        ({"protected": "yes"}, "production.protected: 'yes' is neither true nor false"),
        ({"licence": "x" * 513}, "production.licence: a licence is a text of at most 512 characters"),
        ({"ssm_prefix": "/aws/layers"}, "production.ssm_prefix: '/aws/layers' is not a prefix"),
        ({"ssm_prefix": "layers"}, "production.ssm_prefix: 'layers' is not a prefix"),
        ({"arns_file": "/etc/layers.json"}, "production.arns_file: '/etc/layers.json' is not the path"),
        ({"arns_file": "../layers.json"}, "production.arns_file: '../layers.json' is not the path"),
    ],
)
def test_mistakes(values: dict[str, Any], what: str) -> None:
    assert f"layerkit.environments.{what}" in mistake(**values)


def test_what_an_environment_needs() -> None:
    for key in LEAST:
        with pytest.raises(ConfigurationError, match=f"production.{key} is missing"):
            parse_environments({"production": {name: value for name, value in LEAST.items() if name != key}})


def test_an_address_with_a_login_is_not_shown() -> None:
    assert "hunter2" not in mistake(checks=[{"url": "https://me:hunter2@shop.example"}])


def test_names_of_environments() -> None:
    with pytest.raises(ConfigurationError, match="can't be the name of an environment"):
        parse_environments({"../up": LEAST})
    with pytest.raises(ConfigurationError, match="must be keys with values"):
        parse_environments({"production": "eu-west-1"})


def test_choosing_one() -> None:
    known = parse_environments({"production": LEAST, "trial": LEAST})
    assert chosen_environment(known, "trial").name == "trial"
    with pytest.raises(ConfigurationError, match="no environment called 'prod'") as caught:
        chosen_environment(known, "prod")
    assert caught.value.hint == "Known: production, trial."
    with pytest.raises(ConfigurationError, match="--environment is missing"):
        chosen_environment(known, None)
    with pytest.raises(ConfigurationError) as caught:
        chosen_environment({}, "prod")
    assert "docs/environments.md" in caught.value.hint


def test_choosing_regions() -> None:
    assert parsed().selected(()) == ("eu-west-1", "us-east-1")
    assert parsed().selected(["us-east-1", "us-east-1"]) == ("us-east-1",)
    with pytest.raises(ConfigurationError, match="'eu-north-1' is not a region of the environment production"):
        parsed().selected(["eu-north-1"])


def test_the_documentation_has_every_key_and_a_true_example() -> None:
    text = (ROOT / "docs" / "environments.md").read_text()
    (example,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (known,) = parse_environments(yaml.safe_load(example)["layerkit"]["environments"]).values()
    assert known.protected
    table = text.split("| key | means | default |")[1].split("\n\n")[0]
    with pytest.raises(ConfigurationError) as caught:
        parsed(other=1)
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == set(re.findall(r"\w+", caught.value.hint)) - {
        "Known"
    }


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)
KEYS = ["profile", "role", "buckets", "functions", "aliases", "checks", "history", "protected", "licence"]
KEYS += ["account", "regions", "ssm_prefix", "arns_file"]


@given(st.dictionaries(st.sampled_from(KEYS), JSON, max_size=4))
def test_whatever_is_written_gives_an_environment_or_names_its_key(values: dict[str, Any]) -> None:
    try:
        environment = parsed(**values)
    except ConfigurationError as error:
        assert "layerkit.environments.production" in error.message
    else:
        assert re.fullmatch(r"\d{12}", environment.account)
        assert ".." not in environment.arns_file.split("/")
