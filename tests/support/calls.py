"""Tasks called in this process: as the program would, but for the command line and the time that a process takes."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from invoke.config import Config
from invoke.context import Context
from invoke.exceptions import Exit

from tasks.namespace import ns
from tasks.settings import DEFAULTS
from tests.support.checkouts import VERSION


@dataclass(frozen=True)
class Said:
    """What came of a task: its exit code, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """All of stdout, which has to be one JSON object."""
        document = json.loads(self.out)
        assert isinstance(document, dict)
        return document


@dataclass(frozen=True)
class Caller:
    """Calls tasks on a checkout; their interpreter is this very Python."""

    root: Path
    capfd: pytest.CaptureFixture[str]
    monkeypatch: pytest.MonkeyPatch

    def __call__(self, name: str, *, settings: dict[str, Any] | None = None, **flags: Any) -> Said:
        self.monkeypatch.setenv("LAYERKIT_ROOT", str(self.root))
        values = {**DEFAULTS, "interpreters": {VERSION: sys.executable}, **(settings or {})}
        context = Context(Config(overrides={"layerkit": values}))
        self.capfd.readouterr()
        code, message = 0, ""
        try:
            dict(ns.tasks)[name](context, **flags)
        except Exit as stop:
            code, message = stop.code, stop.message or ""
        sys.stdout.flush()
        printed = self.capfd.readouterr()
        return Said(code, printed.out, printed.err + message)
