"""The program as a process: exit codes, messages, pipes, and JSON that is alone on stdout."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.checkouts import REPOSITORY, TARGET, Checkout


@pytest.fixture
def web(checkout: Checkout) -> Checkout:
    checkout.layer("web", "six-like\n")
    return checkout


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["build", "--layer"], "Flag --layer needed value"),
        (["build", "--layer", "--json"], "Flag --layer needed value"),
        (["build", "--layer", "web", "--layer"], "--layer needs a value each time it is given"),
        (["lock", "--package"], "Flag --package needed value"),
        (["build", "--layer="], "there is no layer called ''"),
        (["build", "--layer", "wbe"], "there is no layer called 'wbe'"),
        (["build", "--layer", "../web"], "there is no layer called '../web'"),
        (["build", "--runtime"], "Flag --runtime needed value"),
        (["build", "--runtime", "python2"], "--runtime: 'python2' is not a Python runtime"),
        (["build", "--architecture", "amd64"], "--architecture: 'amd64' is not an architecture"),
        (["build", "--jobs", "many"], "--jobs needs a whole number, not 'many'"),
        (["build", "--jobs", "-2"], "--jobs must be 1 or more"),
        (["build", "--nonsense"], "No idea what '--nonsense' is!"),
        (["build", "--locked", "--nonsense"], "No idea what '--nonsense' is!"),
        (["security-scan", "--skip-safety", "--bogus"], "No idea what '--bogus' is!"),
        (["update", "--skip-safety"], "--skip-safety is for a scan, and without --security there is none"),
        (["update", "--source", "auto"], "--source is for a scan, and without --security there is none"),
        (["bild"], "No idea what 'bild' is!"),
        (["--help", "bild"], "No idea what 'bild' is!"),
        (["--list", "bild"], "Sub-collection 'bild' not found!"),
        (["--config", "nowhere.yaml", "build"], "nowhere.yaml does not exist"),
        (["lock", "--check", "--upgrade"], "--check changes nothing"),
        (["new"], "--layer is missing"),
        (["new", "--layer", "a", "--layer", "b"], "--layer is given twice, and takes one value"),
        (["new", "--layer=a", "--layer=b"], "--layer is given twice, and takes one value"),
        (["new", "--layer", "a", "--layer", "build"], "--layer needs a value each time it is given"),
        (["new", "--layer", "a", "--layer", "--json"], "--layer needs a value each time it is given"),
        (["build", "--jobs", "2", "--jobs", "--locked"], "--jobs needs a value each time it is given"),
        (["build", "--layer", "https://me:secret@example.test/"], "no layer called 'https://***@example.test/'"),
        (["build", "https://me:secret@example.test/"], "No idea what 'https://***@example.test/' is!"),
        (["bench", "nonsense"], "there is no bench called 'nonsense'"),
    ],
)
def test_wrong_input_is_one_message_and_exit_code_2(web: Checkout, words: list[str], what: str) -> None:
    before = web.snapshot()
    done = web.inv(*words)
    assert done.returncode == 2
    assert what in done.stderr
    assert done.stderr.startswith("layerkit: ")
    assert len(done.stderr.splitlines()) <= 2
    assert done.stdout == ""
    assert web.snapshot() == before


@pytest.mark.parametrize(
    ("yaml", "what"),
    [
        ("layerkit: [", "the configuration can't be read"),
        ("layerkit: 3", "the configuration can't be read"),
        ("layerkit: {runtimes: x}", "layerkit.runtimes is not a setting"),
        ("layerkit: {jobs: x}", "layerkit.jobs must be a whole number"),
        ("layerkit: {runtime: python2}", "layerkit.runtime: 'python2'"),
        ("layerkit: {safety: off}", 'write safety: "off"'),
        (
            "layerkit:\n  exceptions:\n  - {id: x, reason: y, expires: 2030-13-01}",
            "layerkit: invoke.yaml:3: there is no day 2030-13-01 (month must be in 1..12).\n",
        ),
        ("layerkit: {exceptions: {id: x}}", "invoke.yaml: layerkit.exceptions must be a list, not {'id': 'x'}."),
        ("layerkit: {licences_known: [x]}", "invoke.yaml: layerkit.licences_known must be names with values, not"),
    ],
)
def test_a_wrong_invoke_yaml(web: Checkout, yaml: str, what: str) -> None:
    (web.root / "invoke.yaml").write_text(yaml + "\n")
    done = web.inv("build")
    assert done.returncode == 2
    assert what in done.stderr
    assert "Traceback" not in done.stderr


def test_a_file_of_settings_that_is_named(web: Checkout, tmp_path: Path) -> None:
    named = tmp_path / "other.yaml"
    named.write_text("layerkit: {exceptions: {id: x}}\n")
    done = web.inv("--config", str(named), "build")
    assert (done.returncode, f"{named}: layerkit.exceptions must be a list" in done.stderr) == (2, True), done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_stdout_that_has_not_every_letter(web: Checkout, encoding: str) -> None:
    cache = web.root / "cache\u2026"
    done = web.inv("doctor", env={"PYTHONIOENCODING": encoding, "LAYERKIT_CACHE_DIR": str(cache)})
    assert "Traceback" not in done.stderr
    assert "\\u2026" in done.stdout


def test_a_wrong_setting_in_the_environment(web: Checkout) -> None:
    done = web.inv("build", env={"INVOKE_LAYERKIT_JOBS": "x"})
    assert (done.returncode, "INVOKE_LAYERKIT_..." in done.stderr) == (2, True)


def test_settings_come_from_invoke_yaml_and_the_environment(web: Checkout) -> None:
    (web.root / "invoke.yaml").write_text("layerkit: {runtime: python3.12}\n")
    assert "(python3.12-x86_64)" in web.inv("lock", "--check").stdout
    done = web.inv("lock", "--check", env={"INVOKE_LAYERKIT_ARCHITECTURE": "arm64"})
    assert "(python3.12-arm64)" in done.stdout
    assert "(python3.11-x86_64)" in web.inv("lock", "--check", "--runtime", "python3.11").stdout


def test_an_error_under_json_is_a_document_too(web: Checkout) -> None:
    done = web.inv("build", "--layer", "nope", "--json")
    assert done.returncode == 2
    document = json.loads(done.stdout)
    assert document["error"]["exit_code"] == 2
    assert "no layer called 'nope'" in document["error"]["message"]


def test_the_same_flag_for_each_of_two_tasks(checkout: Checkout) -> None:
    done = checkout.inv("new", "--layer", "web", "lock", "--layer", "web")
    assert done.returncode == 0, done.stderr
    assert checkout.project.lock_path("web", TARGET).exists()


def test_a_file_that_cannot_be_written_is_one_line_and_exit_code_4(web: Checkout) -> None:
    (web.root / ".layerkit").write_text("")
    done = web.inv("lock")
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr == f"layerkit: {web.root / '.layerkit'}: File exists.\n"
    as_json = web.inv("lock", "--json")
    assert as_json.returncode == 4
    assert json.loads(as_json.stdout)["error"] == {
        "message": f"{web.root / '.layerkit'}: File exists.",
        "hint": "",
        "exit_code": 4,
    }


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="not run: this system has no /dev/full")
def test_a_full_disk_behind_stdout(web: Checkout) -> None:
    for words in (["--list"], ["lock", "--check"], ["lock", "--check", "--json"]):
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                web.command(*words),
                env={**os.environ, **web.environment},
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
            )
        assert (done.returncode, done.stderr) == (4, "layerkit: No space left on device.\n")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_second_ctrl_c_disturbs_nothing(
    web: Checkout, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, code: int
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # an index that takes calls and never answers
        monkeypatch.setenv("UV_DEFAULT_INDEX", f"http://127.0.0.1:{silent.getsockname()[1]}/simple/")
        environment = {**os.environ, **web.environment}
        with subprocess.Popen(web.command("lock"), env=environment, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            assert "resolving web together" in process.stderr.readline()
            with silent.accept()[0]:
                while process.poll() is None:
                    process.send_signal(number)
            rest = process.stderr.read()
    assert process.returncode == code
    assert rest == "layerkit: interrupted; nothing half-made is in place.\n"


def test_a_closed_pipe_is_silent(web: Checkout) -> None:
    environment = {**os.environ, **web.environment}
    command = web.command("--help")
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_a_table_into_a_closed_pipe_is_a_broken_pipe_as_well() -> None:
    code = (
        "import sys\n"
        "from tasks.output import table\n"
        "sys.stdin.readline()\n"
        "try:\n"
        "    table('A table', ['One'], [['1']])\n"
        "    sys.stdout.flush()\n"
        "except BrokenPipeError:\n"
        "    sys.stderr.write('broken')\n"
        "    sys.stderr.flush()\n"
        "    __import__('os')._exit(0)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        process.stdout = None
        _, said = process.communicate("go\n", timeout=60)
    assert said == "broken"


def test_the_list_has_every_task_with_one_line(web: Checkout) -> None:
    listed = web.inv("--list").stdout
    for name in ("build", "lock", "new", "test", "lint", "bench"):
        assert f"  {name} " in listed


def test_a_plain_inv_works_too(web: Checkout) -> None:
    command = [sys.executable, "-m", "invoke", "--search-root", str(REPOSITORY), "build", "--layer", "nope"]
    done = subprocess.run(
        command, env={**os.environ, **web.environment}, cwd=web.root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "there is no layer called 'nope'" in done.stderr


# ---- new ----


def test_new_makes_a_layer_that_can_be_built(checkout: Checkout) -> None:
    done = checkout.inv("new", "--layer", "web", "--requirement", "requests==2.32.4", "--requirement", "urllib3 < 3")
    assert done.returncode == 0
    assert "Next: inv build --layer web" in done.stdout
    requirements = checkout.project.layers["web"].requirements
    assert [item.text for item in requirements] == ["requests==2.32.4", "urllib3<3"]
    assert "LayerName: web" in (checkout.root / "template.yaml").read_text()
    assert "ContentUri: dist/web-python3.13-x86_64.zip" in (checkout.root / "template.yaml").read_text()


def test_new_in_an_empty_repository(tmp_path: Path, checkout: Checkout) -> None:
    (checkout.root / "layers").rmdir()
    assert checkout.inv("new", "--layer", "first").returncode == 0
    assert list(checkout.project.layers) == ["first"]


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--layer", "../evil"], "can't be the name of a layer"),
        (["--layer", "a b"], "can't be the name of a layer"),
        (["--layer", ""], "an empty name can't be the name"),
        (["--layer", "web"], "layers/web exists already"),
        (["--layer", "x", "--requirement", "six y"], "--requirement: 'six y' is not a requirement"),
        (["--layer", "x", "--requirement", ""], "--requirement: '' is not a requirement"),
        (["--layer", "x", "--requirement", " "], "--requirement: ' ' is not a requirement"),
        (["--layer", "x", "--requirement", "six\nsix-like"], "is not a requirement"),
        (["--layer", "x", "--requirement", "https://u:secret@example.test/"], "a line with an address is not"),
        (["--layer", "x", "--requirement", "--index-url=http://u:p@example.test"], "the option --index-url"),
        (["--layer", "x", "--requirement", "six==1", "--requirement", "six==2"], "pins six a second time"),
    ],
)
def test_new_changes_nothing_on_wrong_input(checkout: Checkout, words: list[str], what: str) -> None:
    checkout.inv("new", "--layer", "web")
    before = checkout.snapshot()
    done = checkout.inv("new", *words)
    assert done.returncode == 2
    assert what in done.stderr
    assert checkout.snapshot() == before
    assert sorted(path.name for path in (checkout.root / "layers").iterdir()) == ["web"]


def test_new_gives_a_folder_made_by_hand_its_resource(web: Checkout) -> None:
    done = web.inv("new", "--layer", "web")
    assert done.returncode == 0
    assert "was there already; its resource is in template.yaml now" in done.stdout
    assert (web.root / "layers" / "web" / "requirements.txt").read_text() == "six-like\n"


def test_new_leaves_a_broken_template_alone(checkout: Checkout) -> None:
    (checkout.root / "template.yaml").write_text("Resources: {A: {Type: X}}\n")
    before = checkout.snapshot()
    done = checkout.inv("new", "--layer", "web")
    assert (done.returncode, "with braces" in done.stderr) == (2, True)
    assert checkout.snapshot() == before
    assert not (checkout.root / "layers" / "web").exists()
