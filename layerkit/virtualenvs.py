"""Environments for programs that the tasks run and never import: made when first needed, kept in the user's cache.

Each is made by uv from hashed requirements, in a folder whose name says which ones and for which Python, so another
version is another folder. It is made beside its place and renamed, under a lock: whoever finds it finds all of it.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

from layerkit.errors import ExternalError
from layerkit.files import cache_folder, checkout_lock
from layerkit.processes import run, without_secrets

# What a program needs of its user to get through to a service: proxies, and whose certificates to trust.
_NETWORK = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
_CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


def requirements_of(name: str) -> Path:
    """The hashed requirements of the environment ``name``: in a checkout, or as the wheel carries them."""
    own = Path(__file__).parent
    carried = own / "data" / f"{name}.txt"
    return carried if carried.exists() else own.parent / "requirements" / f"{name}.txt"


def environment(name: str, requirements: Path, root: Path, progress: Callable[[str], None]) -> Path:
    """The interpreter of the environment ``name``, which has what ``requirements`` pin; made where it is not there.

    uv runs in ``root``, so the checkout's own uv configuration applies. ``progress`` is told, in one line each, what
    takes time: the making, and waiting for another process that makes the same.

    Raises ExternalError when it can't be made (no network, most often).
    """
    pins = requirements.read_bytes()
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    made_from = (sys.version, sys.base_prefix, platform.machine())
    digest = sha256(pins + repr(made_from).encode()).hexdigest()[:16]
    folder = cache_folder() / "environments" / f"{name}-{version}-{digest}"
    python = folder / "environment" / "bin" / "python"
    if python.exists():
        return python
    waiting = f"waiting for another process that makes the environment of {name}"
    with checkout_lock(folder, f"making the environment of {name}", lambda holder: progress(f"{waiting}: {holder}")):
        if python.exists():
            return python
        progress(f"making the environment of {name} (only when its requirements have changed) ...")
        for leftover in (*folder.glob("making-*"), folder / "environment"):  # of one that was killed, or has no Python
            shutil.rmtree(leftover, ignore_errors=True)
        making = Path(tempfile.mkdtemp(prefix="making-", dir=folder))
        try:
            _make(name, making / "environment", requirements, root)
            os.rename(making / "environment", folder / "environment")
        finally:
            shutil.rmtree(making, ignore_errors=True)
    return python


def _make(name: str, folder: Path, requirements: Path, root: Path) -> None:
    from uv import find_uv_bin

    uv = find_uv_bin()
    # Nothing is written to it later, not even bytecode: several processes run from it at once.
    sync = ["pip", "sync", "--quiet", "--require-hashes", "--only-binary=:all:", "--compile-bytecode"]
    sync += ["--python", str(folder / "bin" / "python"), str(requirements)]
    venv = ["venv", "--quiet", "--no-project", "--relocatable", "--no-python-downloads", "--python", sys.executable]
    made = run([uv, *venv, folder], cwd=root)
    if made.code == 0:
        made = run([uv, *sync, "--offline"], cwd=root)
        # Below 0 a signal ended it: Ctrl-C reaches uv as well, and nothing is to be begun anew then.
        if made.code > 0:
            made = run([uv, *sync], cwd=root)
    if made.code != 0:
        raise ExternalError(
            f"the environment of {name} can't be made:\n{without_secrets(made.stderr).strip()}",
            "It is made once, from the package index: check the network, and uv's index settings and credentials "
            "(UV_INDEX_... in the environment), and run it again.",
        )


# ---- running what is in there ----


def module_command(python: Path, module: str) -> list[str | Path]:
    """How to run a module of an environment: with nothing of the user's or the folder it runs in on its path."""
    return [python, "-I", "-B", "-X", "utf8", "-m", module]


def tool_environment(scratch: Path) -> dict[str, str]:
    """The variables for a program of an environment: a home of its own in ``scratch``, and the way to the network.

    The user's settings, logins and caches of the same program (PIP_..., a .netrc, a cached answer) are not in there.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    kept = [*_NETWORK, *(name.lower() for name in _NETWORK), *_CERTIFICATES]
    found = {name: os.environ[name] for name in kept if os.environ.get(name)}
    # A proxy is no way to a server on this machine.
    without_proxy = [found.get("no_proxy"), found.get("NO_PROXY"), "127.0.0.1,localhost"]
    direct = ",".join(dict.fromkeys(filter(None, without_proxy)))
    return {
        **found,
        "NO_PROXY": direct,
        "no_proxy": direct,
        "HOME": str(scratch),
        "TMPDIR": str(scratch),
        "XDG_CACHE_HOME": str(scratch / "cache"),
        "PATH": os.defpath,
        "LANG": "C.UTF-8",
        "PYTHONNOUSERSITE": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUTF8": "1",
    }
