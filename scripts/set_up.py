"""Make or refresh ``.venv`` from ``requirements/run.txt``; ``scripts/inv`` calls it when that file has changed.

It runs before anything is installed, so it uses the standard library alone. The stamp (a copy of the requirements
file) is written last: a set-up that was interrupted or failed leaves none, and the next call starts again.
"""

import fcntl
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
REQUIREMENTS = ROOT / "requirements" / "run.txt"
STAMP = VENV / "layerkit-requirements.txt"


def fail(message: str) -> int:
    print(f"layerkit: {message}", file=sys.stderr)
    return 4


def set_up() -> int:
    wanted = REQUIREMENTS.read_bytes()
    if STAMP.exists() and STAMP.read_bytes() == wanted and (VENV / "bin" / "python").exists():
        return 0  # another process did it while this one waited for the lock
    print("layerkit: setting up .venv (only when requirements/run.txt has changed) ...", file=sys.stderr)
    STAMP.unlink(missing_ok=True)
    python = str(VENV / "bin" / "python")
    if (
        not Path(python).exists()
        or subprocess.run([python, "-m", "pip", "--version"], capture_output=True).returncode != 0
    ):
        shutil.rmtree(VENV, ignore_errors=True)
        try:
            venv.EnvBuilder(with_pip=True, symlinks=True).create(VENV)
        except (subprocess.CalledProcessError, OSError) as error:
            return fail(
                f"a virtual environment could not be made with {sys.executable}: {error}\n"
                "On Debian and Ubuntu, install the package python3-venv and run the command again."
            )
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--require-hashes"]
    # stdout belongs to the task (it may be --json), so pip's own output goes to stderr
    if subprocess.run([*command, "-r", str(REQUIREMENTS)], stdout=sys.stderr).returncode != 0:
        return fail("the tools in requirements/run.txt could not be installed (see above). Is PyPI reachable?")
    partial = STAMP.with_suffix(".partial")
    partial.write_bytes(wanted)
    os.replace(partial, STAMP)
    return 0


def main() -> int:
    # The lock lies beside .venv, which set_up may remove. The kernel drops it when the process ends, however it ends.
    with open(ROOT / ".venv.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return set_up()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
