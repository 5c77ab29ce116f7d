"""What AWS says about its runtimes and limits; the numbers are in ``data/``, each with its source."""

from __future__ import annotations

import tomllib
from datetime import date
from functools import cache
from importlib.resources import files
from typing import Any

from layerkit.errors import ConfigurationError
from layerkit.model import Runtime, System, Target


@cache
def runtimes() -> dict[str, Runtime]:
    """Every Python runtime in the data file, newest first, by name."""
    return {name: Runtime(name=name, **entry) for name, entry in _data("runtimes.toml").items()}


@cache
def limits() -> dict[str, int]:
    """AWS's limits by name, sizes in bytes (``data/limits.toml``)."""
    return _data("limits.toml")


@cache
def system_of(runtime_name: str) -> System:
    """What the operating system of a runtime in ``runtimes()`` has for compiled code (``data/libraries.toml``)."""
    os = runtimes()[runtime_name].os
    entry = _data("libraries.toml")[os]
    return System(os=os, symbols=entry["symbols"], libraries=frozenset(entry["libraries"]))


def _data(name: str) -> dict[str, Any]:
    return tomllib.loads((files("layerkit") / "data" / name).read_text(encoding="utf-8"))


def runtime_named(name: str, where: str) -> Runtime:
    """The runtime called ``name``; ConfigurationError, beginning with ``where``, when AWS has none of that name."""
    try:
        return runtimes()[name]
    except KeyError:
        raise ConfigurationError(
            f"{where}: {name!r} is not a Python runtime of Lambda.", f"Known: {', '.join(runtimes())}."
        ) from None


def check_architecture(name: str, where: str) -> str:
    """``name`` itself; ConfigurationError, beginning with ``where``, when Lambda has no such architecture."""
    known = next(iter(runtimes().values())).platforms
    if name not in known:
        raise ConfigurationError(f"{where}: {name!r} is not an architecture of Lambda.", f"Known: {', '.join(known)}.")
    return name


def uv_platform(target: Target) -> str:
    """What uv calls the platform that ``target`` runs on."""
    return runtimes()[target.runtime].platforms[target.architecture]


def check_dates(target: Target, today: date, *, allow_blocked: bool) -> tuple[str, ...]:
    """Warnings about a runtime past its dates; ConfigurationError where functions can no longer be created with it.

    With ``allow_blocked`` that too is a warning, since existing functions may still need their layers.
    """
    runtime = runtimes()[target.runtime]
    if today >= runtime.block_create:
        message = f"{runtime.name}: AWS has refused new functions with this runtime since {runtime.block_create}."
        if not allow_blocked:
            raise ConfigurationError(
                message,
                "Choose a newer one with --runtime, or pass --allow-blocked-runtime for functions that still use it.",
            )
        return (message,)
    if today >= runtime.deprecated:
        return (
            f"{runtime.name}: deprecated by AWS since {runtime.deprecated}; "
            f"new functions are refused from {runtime.block_create}.",
        )
    return ()
