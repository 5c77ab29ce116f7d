"""Programs that are ended along with this one, and text that is freed of credentials."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from layerkit.errors import ExternalError
from layerkit.installer import Uv
from layerkit.model import Package, Target
from layerkit.processes import run, without_secrets

ROOT = Path(__file__).parents[2]

REFUSED = """
from pathlib import Path
from layerkit.errors import ExternalError
from layerkit.processes import refuse_new, run
assert run(["true"], cwd=Path()).code == 0
refuse_new()
try:
    run(["sleep", "60"], cwd=Path())
except ExternalError as error:
    print(error)
"""


def test_a_program_started_after_the_end_has_begun_is_ended_at_once() -> None:
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", REFUSED], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "sleep was ended together with this program.\n"
    assert time.monotonic() - started < 30


@pytest.mark.parametrize(("ending", "tries"), [("kill -INT $$", 1), ("exit 2", 2)])
def test_an_install_that_was_interrupted_is_not_tried_again(tmp_path: Path, ending: str, tries: int) -> None:
    """Ctrl-C reaches uv too, and may do so before this process hears of it."""
    uv = tmp_path / "uv"
    uv.write_text(f"#!/bin/sh\necho called >> calls\n{ending}\n")
    uv.chmod(0o755)
    package = Package("six", "1.17.0", ("0" * 64,))
    with pytest.raises(ExternalError):
        Uv(tmp_path, str(uv)).install([package], Target("python3.13", "x86_64"), tmp_path / "into", tmp_path)
    assert (tmp_path / "calls").read_text() == "called\n" * tries


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ExternalError, match="can't be started"):
        run([tmp_path / "nothing"], cwd=tmp_path)


def test_credentials_are_taken_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_INDEX_OURS_PASSWORD", "hunter22")
    assert without_secrets("http://me:x@h/a and https://y@h/b: hunter22!") == "http://***@h/a and https://***@h/b: ***!"
    assert without_secrets(f"nothing of {os.sep} here") == f"nothing of {os.sep} here"
