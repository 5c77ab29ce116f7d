"""AWS's runtimes and their dates."""

from __future__ import annotations

from datetime import date, timedelta

import pytest

from layerkit.errors import ConfigurationError
from layerkit.model import Target
from layerkit.runtimes import check_architecture, check_dates, limits, runtime_named, runtimes, uv_platform


def test_the_data_is_whole() -> None:
    for runtime in runtimes().values():
        assert runtime.deprecated <= runtime.block_create <= runtime.block_update
        assert set(runtime.platforms) == {"x86_64", "arm64"}
    assert limits()["function_unzipped"] == 250 * 1024 * 1024


def test_amazon_linux_2_resolves_for_what_uv_knows() -> None:
    assert uv_platform(Target("python3.11", "x86_64")) == "x86_64-manylinux_2_17"
    assert uv_platform(Target("python3.13", "arm64")) == "aarch64-manylinux_2_34"


@pytest.mark.parametrize("name", list(runtimes()))
def test_dates_warn_then_refuse(name: str) -> None:
    runtime, target = runtimes()[name], Target(name, "x86_64")
    day = timedelta(days=1)
    assert check_dates(target, runtime.deprecated - day, allow_blocked=False) == ()
    assert "deprecated" in check_dates(target, runtime.deprecated, allow_blocked=False)[0]
    assert "deprecated" in check_dates(target, runtime.block_create - day, allow_blocked=False)[0]
    with pytest.raises(ConfigurationError, match="--allow-blocked-runtime"):
        check_dates(target, runtime.block_create, allow_blocked=False)
    assert "refused" in check_dates(target, runtime.block_create, allow_blocked=True)[0]


def test_today_matters_only_to_the_runtime_asked_for() -> None:
    assert check_dates(Target("python3.13", "x86_64"), date(2026, 11, 24), allow_blocked=False) == ()


def test_strangers() -> None:
    with pytest.raises(ConfigurationError, match="--runtime: 'python4' is not"):
        runtime_named("python4", "--runtime")
    with pytest.raises(ConfigurationError, match="--architecture: 'amd64' is not"):
        check_architecture("amd64", "--architecture")
