"""Programs that are ended along with this one, and text that is freed of credentials."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from layerkit.errors import ExternalError
from layerkit.installer import Uv
from layerkit.model import Package, Target
from layerkit.processes import Contained, end_all, run, run_contained, without_secrets

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


@pytest.mark.parametrize(("ending", "tries"), [("kill -TERM $$", 1), ("exit 2", 2)])
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


# ---- programs that are not trusted to end well ----

PATH = os.defpath


def contained(script: str, folder: Path, *words: str, seconds: float = 60.0) -> Contained:
    """Run a shell script with a descriptor for its report as ``$1``, and ``words`` after that."""
    command = ["/bin/sh", "-c", script, "sh", "{report}", *words]
    return run_contained(command, cwd=folder, env={"PATH": PATH}, seconds=seconds)


def is_gone(process: int) -> bool:
    """Whether a process ends (soon, for one that was just killed); it may still wait for its parent to ask about it."""
    for _ in range(1000):
        done = subprocess.run(["ps", "-o", "stat=", "-p", str(process)], capture_output=True, text=True, check=False)
        if done.stdout.strip()[:1] in ("", "Z", "X"):
            return True
    return False


def test_what_it_reports_is_apart_from_what_it_prints(tmp_path: Path) -> None:
    done = contained("echo said; echo complained >&2; echo reported >>/dev/fd/$1; exit 3", tmp_path)
    assert (done.code, done.report, done.output) == (3, "reported\n", "said\ncomplained\n")
    assert 0 < done.seconds < 60


def test_a_report_that_was_never_written(tmp_path: Path) -> None:
    assert contained("exit 0", tmp_path).report == ""


def test_it_has_what_it_was_given_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not for everybody")
    env = {"ONLY": "this"}
    code = "import os, sys; print(sorted(os.environ), os.getcwd(), repr(sys.stdin.read()), os.getpgrp() == os.getpid())"
    done = run_contained([sys.executable, "-I", "-c", code], cwd=tmp_path, env=env, seconds=60)
    names = [name for name in ("LC_CTYPE", "ONLY") if name in done.output]  # Python sets the first where it is missing
    assert done.output == f"{names} {tmp_path.resolve()} '' True\n"


def test_its_time_is_up_for_all_of_it(tmp_path: Path) -> None:
    done = contained("echo begun; sleep 600 & echo $! >>/dev/fd/$1; wait", tmp_path, seconds=0.3)
    assert (done.code, done.output) == (None, "begun\n")
    assert 0.3 <= done.seconds < 60
    assert is_gone(int(done.report))


def test_one_that_will_not_be_asked_is_ended_as_well(tmp_path: Path) -> None:
    done = contained("trap '' TERM INT HUP; echo begun; while :; do sleep 600; done", tmp_path, seconds=0.3)
    assert (done.code, done.output) == (None, "begun\n")


def test_what_it_leaves_behind_goes_when_it_ends(tmp_path: Path) -> None:
    done = contained("sleep 600 & echo $! >>/dev/fd/$1; exit 0", tmp_path)
    assert done.code == 0
    assert is_gone(int(done.report))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_a_signal_is_told_from_an_exit_code(tmp_path: Path, number: signal.Signals) -> None:
    assert contained("kill -$2 $$", tmp_path, str(int(number))).code == -number
    assert contained("exit $2", tmp_path, str(128 + number)).code == 128 + number


def test_of_much_output_the_end_is_kept(tmp_path: Path) -> None:
    code = "import sys; sys.stdout.write('x' * 300_000 + 'ü' * 1_999 + '!'); sys.stdout.flush()"
    env = {"PYTHONUTF8": "1"}
    done = run_contained([sys.executable, "-S", "-c", code], cwd=tmp_path, env=env, seconds=60)
    assert done.output == "x" + "ü" * 1_999 + "!"


def test_output_that_is_no_text_is_no_failure(tmp_path: Path) -> None:
    assert contained("printf '\\377\\376 end'", tmp_path).output == "\ufffd\ufffd end"


def test_one_that_is_not_there_can_not_be_started(tmp_path: Path) -> None:
    with pytest.raises(ExternalError, match="nothing can't be started: No such file"):
        run_contained([tmp_path / "nothing"], cwd=tmp_path, env={}, seconds=60)


def test_it_is_ended_along_with_this_program(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "begun")
    with ThreadPoolExecutor(max_workers=1) as pool:
        future = pool.submit(contained, "echo $$ > begun; exec sleep 600", tmp_path)
        process = int((tmp_path / "begun").read_text())  # waits for it
        ended = threading.Event()
        future.add_done_callback(lambda _: ended.set())
        while not ended.wait(0.01):  # it may not be known as running in the moment that it begins
            end_all()
        with pytest.raises(ExternalError, match="/bin/sh was ended together with this program"):
            future.result()
    assert is_gone(process)


REFUSED_TOO = (
    REFUSED.replace("run(", "run_contained(")
    .replace("cwd=Path()", "cwd=Path(), env={}, seconds=60")
    .replace("import refuse_new, run", "import refuse_new, run_contained")
)


def test_one_that_is_started_after_the_end_has_begun_is_ended_at_once() -> None:
    done = subprocess.run([sys.executable, "-c", REFUSED_TOO], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "sleep was ended together with this program.\n"
