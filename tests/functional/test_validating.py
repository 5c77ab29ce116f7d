"""Validation on layers that are broken on purpose, each in its own way; the imports run in this very Python."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from layerkit.errors import CheckFailed
from layerkit.model import Checked, Report, Severity, Target
from layerkit.probing import Bounds
from tests.support.checkouts import FOREIGN, HERE, Checkout
from tests.support.elves import make_elf
from tests.support.index import Index
from tests.support.wheels import make_wheel

KEY = "-----BEGIN RSA PRIVATE KEY-----\n" + "MIIEowIBAAKCAQEAu1SU1LfVLPHCozMxH2Mo4lgOEePzNm0tRgeLezV6ffAt0gun\n" * 4
CERTIFICATE = KEY.replace("RSA PRIVATE KEY", "CERTIFICATE")


def built(
    checkout: Checkout,
    index: Index,
    files: Mapping[str, str | bytes],
    *,
    target: Target = HERE,
    settings: str = "",
    requires: tuple[str, ...] = (),
) -> Checkout:
    """One layer ``web`` with the one distribution ``thing``, built without validation."""
    make_wheel(index.folder, "thing", "1.0", files=files, requires=requires)
    checkout.layer("web", "thing\n", settings)
    checkout.lock(target)
    checkout.build(target=target)
    return checkout


def one(report: Report, check: str, subject: str = "web") -> Checked:
    (found,) = [checked for checked in report.checked if (checked.check, checked.subject) == (check, subject)]
    return found


def messages(report: Report, severity: Severity = Severity.ERROR) -> list[tuple[str, str]]:
    return [(finding.check, finding.message) for finding in report.findings if finding.severity is severity]


def test_a_sound_layer_passes_every_check(checkout: Checkout, index: Index) -> None:
    built(checkout, index, {"thing/__init__.py": "import json\n", "thing/cacert.pem": CERTIFICATE, "lone.py": ""})
    report = checkout.validate()
    assert messages(report) == []
    assert report.skipped == ()
    assert one(report, "imports").detail == "2 modules"
    assert {checked.check for checked in report.checked} >= {"build", "zip", "tree", "elf", "secrets", "metadata"}


def test_the_second_run_reads_and_imports_nothing_again(checkout: Checkout, index: Index) -> None:
    built(checkout, index, {"thing.py": "x = 1\n"})
    assert not one(checkout.validate(), "imports").recorded
    again = checkout.validate()
    assert {name: one(again, name).recorded for name in ("imports", "tree", "zip", "elf", "secrets")} == {
        "imports": True,
        "tree": True,
        "zip": True,
        "elf": True,
        "secrets": True,
    }
    assert messages(again) == []


def test_a_missing_dependency_that_nobody_has(checkout: Checkout, index: Index) -> None:
    built(checkout, index, {"thing.py": "import helper_module\n"})
    (finding,) = one(checkout.validate(), "imports").findings
    assert "No module named 'helper_module' (thing.py:1)" in finding.message
    assert finding.hint.startswith("No layer of the stack has it: add its distribution to layers/web/requirements.txt")


def test_a_missing_dependency_that_another_layer_has(checkout: Checkout, index: Index) -> None:
    make_wheel(index.folder, "helper", "1.0", files={"helper_module.py": ""})
    checkout.layer("base", "helper\n")
    make_wheel(index.folder, "thing", "1.0", files={"thing.py": "import helper_module\n"})
    checkout.layer("web", "thing\n")
    checkout.lock(HERE)
    checkout.build(target=HERE)
    (finding,) = one(checkout.validate("web"), "imports").findings
    assert finding.hint == 'helper is in the layer base: add depends_on = ["base"] to layers/web/layer.toml.'
    checkout.layer("web", "thing\n", 'depends_on = ["base"]\n')
    checkout.lock(HERE)
    checkout.build(target=HERE)
    assert messages(checkout.validate("web")) == []


def test_a_missing_part_of_a_namespace_is_from_another_distribution(checkout: Checkout, index: Index) -> None:
    make_wheel(index.folder, "space-two", "1.0", files={"space/two.py": ""})
    checkout.layer("base", "space-two\n")
    make_wheel(index.folder, "space-one", "1.0", files={"space/one.py": "import space.two\n"})
    checkout.layer("web", "space-one\n")
    checkout.lock(HERE)
    checkout.build(target=HERE)
    (finding,) = one(checkout.validate("web"), "imports").findings
    assert finding.hint == 'space-two is in the layer base: add depends_on = ["base"] to layers/web/layer.toml.'


def test_a_module_that_its_distribution_does_not_have(checkout: Checkout, index: Index) -> None:
    built(checkout, index, {"thing/__init__.py": "import thing.inner\n"})
    (finding,) = one(checkout.validate(), "imports").findings
    assert finding.hint == "thing in web has no thing.inner: another version of it may."


def test_a_module_that_has_gone_from_its_distribution(checkout: Checkout, index: Index) -> None:
    built(checkout, index, {"thing/__init__.py": "import thing.inner\n", "thing/inner.py": ""})
    (checkout.project.tree_path("web", HERE) / "thing" / "inner.py").unlink()
    (finding,) = one(checkout.validate(), "imports").findings
    assert finding.hint.startswith("thing in web is there, but not whole: Build it again")


def test_a_requirement_that_nobody_installed(checkout: Checkout, index: Index) -> None:
    """A transitive dependency that is declared and missing, as after a lock edited by hand."""
    make_wheel(index.folder, "helper", "1.0", files={"helper.py": ""})
    built(checkout, index, {"thing.py": "import helper\n"}, requires=("helper>=1",))
    lock = checkout.project.lock_path("web", HERE)
    text = lock.read_text()
    start = text.index("helper==1.0")
    lock.write_text(text[:start] + text[text.index("thing==1.0") :])
    checkout.build(target=HERE)
    report = checkout.validate("web")
    (finding,) = one(report, "imports").findings
    assert finding.hint.startswith("thing (in web) requires 'helper>=1', which no layer of the stack carries")
    (finding,) = one(report, "metadata").findings
    assert finding.message == "thing requires helper>=1; neither the layer nor one it depends on has it"


def test_a_marker_that_leaves_the_target_out(checkout: Checkout, index: Index) -> None:
    make_wheel(index.folder, "thing", "1.0")
    checkout.layer("web", "thing; sys_platform == 'win32'\n", 'imports = ["thing"]\n')
    checkout.lock(HERE)
    checkout.build(target=HERE)
    (finding,) = one(checkout.validate(), "imports").findings
    assert "layers/web/requirements.txt:1 asks for it as" in finding.hint
    assert f"leaves out {HERE}" in finding.hint


def test_two_versions_in_two_layers(checkout: Checkout, index: Index) -> None:
    for version in ("1.0", "2.0"):
        make_wheel(index.folder, "thing", version, files={"thing.py": f"VERSION = {version!r}\n"})
    checkout.layer("old", "thing==1.0\n")
    checkout.lock(HERE)
    checkout.build(target=HERE)
    checkout.layer("old", "thing==2.0\n")
    checkout.layer("new", "thing==2.0\n")
    checkout.lock(HERE)
    checkout.build(["new"], target=HERE)
    report = checkout.validate()
    assert ("versions", "thing is 2.0 here and 1.0 in old") in messages(report)
    assert ("files", "thing.py is another file in old") in messages(report)
    ((check, message),) = messages(report, Severity.WARNING)
    assert (check, "the build is not what its sources say now" in message) == ("build", True)


def test_a_file_of_own_code_that_two_layers_have_differently(checkout: Checkout) -> None:
    checkout.layer("one", "", code={"common/helper.py": "A = 1\n"})
    checkout.layer("two", "", code={"common/helper.py": "A = 2\n"})
    checkout.lock(HERE)
    checkout.build(target=HERE)
    assert ("files", "common/helper.py is another file in two") in messages(checkout.validate("one"))


@pytest.mark.parametrize(
    ("elf", "problem"),
    [
        (make_elf(HERE.architecture, versions={"libc.so.6": ["GLIBC_2.99"]}), "needs GLIBC_2.99 of libc.so.6"),
        (make_elf(HERE.architecture, needed=["libonlyhere.so.1"]), "needs libonlyhere.so.1, which is neither"),
        (make_elf(HERE.architecture, misaligned=True), "can't be mapped"),
        (b"\x7fELF and nothing more", "is a damaged ELF file"),
    ],
    ids=["newer glibc", "a library of the build machine", "misaligned", "damaged"],
)
def test_a_compiled_file_that_lambda_can_not_load(checkout: Checkout, index: Index, elf: bytes, problem: str) -> None:
    built(checkout, index, {"thing/__init__.py": "", "thing/_native.so": elf})
    (finding,) = one(checkout.validate(skip=frozenset({"imports"})), "elf").findings
    assert finding.message.startswith("thing/_native.so")
    assert problem in finding.message


def test_a_library_that_comes_along_is_found(checkout: Checkout, index: Index) -> None:
    files: dict[str, str | bytes] = {
        "thing/__init__.py": "",
        "thing/_native.so": make_elf(HERE.architecture, needed=["libown.so.1", "libc.so.6"]),
        "thing.libs/libown.so.1": make_elf(HERE.architecture, soname="libown.so.1"),
    }
    built(checkout, index, files)
    assert one(checkout.validate(), "elf").findings == ()


def test_a_file_of_another_architecture(checkout: Checkout, index: Index) -> None:
    built(checkout, index, {"thing/__init__.py": "", "thing/_x.so": make_elf(HERE.architecture)}, target=FOREIGN)
    report = checkout.validate(target=FOREIGN)
    (finding,) = one(report, "elf").findings
    assert finding.message == f"thing/_x.so is for {HERE.architecture}, and the layer for {FOREIGN.architecture}"
    (skipped,) = one(report, "imports").skipped  # and it can't be tried here
    assert f"nothing built for {FOREIGN.architecture} can be run" in skipped.reason


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("import sys; sys.exit(0)", "SystemExit: 0"),
        ("import os; os._exit(0)", "it ended its process with exit code 0"),
        ("import os; os.abort()", "it was ended by signal 6"),
        ("import sys; print('dying words', file=sys.stderr); import os; os._exit(7)", "it last said: dying words"),
        ("x = bytearray(1 << 40)", "MemoryError"),
        ("raise RuntimeError('two\\nlines')", "RuntimeError: two lines (thing.py:1)"),
    ],
)
def test_a_module_that_does_not_import(checkout: Checkout, index: Index, code: str, problem: str) -> None:
    built(checkout, index, {"thing.py": code + "\n"})
    (finding,) = one(checkout.validate(), "imports").findings
    assert finding.message.startswith("import thing: ")
    assert problem in finding.message


def test_a_module_that_hangs_is_ended_and_not_remembered(checkout: Checkout, index: Index) -> None:
    built(checkout, index, {"thing.py": "import threading; threading.Event().wait()\n"})
    for _ in range(2):
        checked = one(checkout.validate(bounds=Bounds(seconds=0.5)), "imports")
        assert [finding.message for finding in checked.findings] == ["import thing: it had not ended after 0.5 s"]
        assert not checked.recorded  # a busy machine is no property of the layer


def test_a_module_that_forks_prints_and_leaves_a_process(
    checkout: Checkout, index: Index, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    left = tmp_path / "left"
    code = (
        "import os, sys, time\n"
        "print('printed'); os.write(1, b'written'); sys.stderr.write('said')\n"
        "if os.fork() == 0:\n"
        f"    open({str(left)!r}, 'w').write(str(os.getpid()))\n"
        "    time.sleep(600)\n"
        f"while not os.path.exists({str(left)!r}) or not os.path.getsize({str(left)!r}): pass\n"
    )
    built(checkout, index, {"thing.py": code})
    assert one(checkout.validate(), "imports").findings == ()
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")
    assert ends(int(left.read_text()), seconds=10)  # it would sleep for ten minutes


def ends(process: int, seconds: float) -> bool:
    """Whether a process, nobody's child here, has ended by then."""
    try:
        descriptor = os.pidfd_open(process)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], seconds)[0])
    finally:
        os.close(descriptor)


def test_only_the_layer_and_the_standard_library_are_on_the_path(
    checkout: Checkout, index: Index, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "stranger.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "outside"))
    code = (
        "import importlib.util, os, sys\n"
        "assert not [name for name in ('stranger', 'layerkit', 'invoke', 'pytest') if importlib.util.find_spec(name)]\n"
        "assert sys.dont_write_bytecode and os.environ['OPENBLAS_NUM_THREADS'] == '1'\n"
        "assert not [name for name in os.environ if name.startswith(('PYTHON', 'UV_', 'LAYERKIT'))]\n"
    )
    built(checkout, index, {"thing.py": code})
    assert messages(checkout.validate()) == []
    assert not list(checkout.root.rglob("*.pyc"))


def test_pth_files_count_as_on_lambda(checkout: Checkout, index: Index) -> None:
    built(checkout, index, {"thing.py": "import below\n", "thing.pth": "inner\n", "inner/below.py": ""})
    assert messages(checkout.validate()) == []


def test_a_private_key_inside_an_innocent_name(checkout: Checkout, index: Index) -> None:
    built(checkout, index, {"thing/__init__.py": "", "thing/notes.txt": "Remember:\n" + KEY})
    (finding,) = one(checkout.validate(), "secrets").findings
    assert finding.message == "thing/notes.txt:2 has a private key"
    assert "MIIE" not in str(finding)


def test_a_zip_whose_bytes_have_changed(checkout: Checkout, index: Index) -> None:
    built(checkout, index, {"thing.py": "x = 1\n"})
    checkout.validate()  # what is known from before must not hide it
    archive = checkout.project.zip_path("web", HERE)
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 1
    archive.write_bytes(content)
    assert ("zip", f"{archive.name} is not the one that was built: its SHA-256 is another") in messages(
        checkout.validate()
    )


def test_a_zip_that_is_none(checkout: Checkout, index: Index) -> None:
    built(checkout, index, {"thing.py": ""})
    archive = checkout.project.zip_path("web", HERE)
    archive.write_bytes(b"rubbish")
    assert any("can't be read" in message for check, message in messages(checkout.validate()) if check == "zip")


def test_a_zip_that_lambda_does_not_take(checkout: Checkout, index: Index) -> None:
    built(checkout, index, {"thing.py": ""})
    archive = checkout.project.zip_path("web", HERE)
    with zipfile.ZipFile(archive, "a") as file:
        hidden = zipfile.ZipInfo("python/secret.py")
        hidden.external_attr = 0o600 << 16
        file.writestr(hidden, "")
        file.writestr("../outside.py", "")
        link = zipfile.ZipInfo("python/link")
        link.external_attr = 0o120777 << 16
        file.writestr(link, "../../etc/passwd")
    found = [message for check, message in messages(checkout.validate()) if check == "zip"]
    assert "python/secret.py can't be read by Lambda's user (mode 600)" in found
    assert "'../outside.py' is not a plain path below the layer's root" in found
    assert "python/link is a link that leaves the layer" in found


def test_a_tree_edited_by_hand(checkout: Checkout, index: Index) -> None:
    built(checkout, index, {"thing/__init__.py": "x = 1\n", "thing/gone.py": "", "thing/same.py": ""})
    assert messages(checkout.validate()) == []
    tree = checkout.project.tree_path("web", HERE)
    before = (tree / "thing" / "__init__.py").stat()
    (tree / "thing" / "__init__.py").write_text("x = 2\n")
    os.utime(tree / "thing" / "__init__.py", ns=(before.st_atime_ns, before.st_mtime_ns))  # as a careful hand would
    (tree / "thing" / "gone.py").unlink()
    (tree / "thing" / "new.txt").write_text("")
    (tree / "thing" / "__pycache__").mkdir()
    (tree / "thing" / "__pycache__" / "same.cpython-39.pyc").write_text("")  # whoever imports leaves that
    found = [message for check, message in messages(checkout.validate()) if check == "tree"]
    assert found == ["thing/__init__.py was changed", "thing/new.txt was added", "thing/gone.py is gone"]


def test_a_layer_without_a_build(checkout: Checkout, index: Index) -> None:
    built(checkout, index, {"thing.py": ""})
    checkout.layer("other", "thing\n", 'depends_on = ["web"]\n')
    checkout.lock(HERE)
    (finding,) = one(checkout.validate("other"), "build", "other").findings
    assert finding.message == f"there is no build for {HERE}, so nothing else of it could be checked"
    # Where that check is left out it is still no pass.
    (skipped,) = checkout.validate("other", only=frozenset({"imports"})).skipped
    assert skipped.reason == f"there is no build for {HERE}"


def test_metadata_that_is_not_whole(checkout: Checkout, index: Index) -> None:
    built(checkout, index, {"thing.py": ""})
    (checkout.project.tree_path("web", HERE) / "thing-1.0.dist-info" / "METADATA").unlink()
    assert ("metadata", "thing: its dist-info has no METADATA") in messages(checkout.validate())


def test_extras_are_required_where_they_are_asked_for(checkout: Checkout, index: Index) -> None:
    make_wheel(index.folder, "helper", "1.0", files={"helper.py": ""})
    make_wheel(index.folder, "thing", "1.0", requires=("helper; extra == 'more'", "nowhere; extra == 'other'"))
    checkout.layer("web", "thing[more]\n")
    checkout.lock(HERE)
    checkout.build(target=HERE)
    assert messages(checkout.validate()) == []
    lock = checkout.project.lock_path("web", HERE)
    text = lock.read_text()
    lock.write_text(text[: text.index("helper==1.0")] + text[text.index("thing==1.0") :])
    checkout.build(target=HERE)
    assert [check for check, _ in messages(checkout.validate())] == ["metadata"]


# ---- in a build ----


def test_a_build_that_does_not_import_is_not_let_in(checkout: Checkout, index: Index) -> None:
    built(checkout, index, {"thing.py": "x = 1\n"})
    before = checkout.snapshot()
    checkout.layer("web", "thing\n", code={"own.py": "import nothing_there\n"})
    own_code = {path: data for path, data in checkout.snapshot().items() if path not in before}
    with pytest.raises(CheckFailed) as caught:
        checkout.build(target=HERE, means=checkout.means())
    assert "web: imports: import own: ModuleNotFoundError: No module named 'nothing_there'" in str(caught.value)
    assert f".layerkit/failed/web-{HERE}" in caught.value.hint
    assert (checkout.root / ".layerkit" / "failed" / f"web-{HERE}" / "python" / "own.py").is_file()
    assert checkout.snapshot() == {**before, **own_code}


def test_a_foreign_build_is_let_in_and_not_called_verified(checkout: Checkout, index: Index) -> None:
    make_wheel(index.folder, "thing", "1.0")
    checkout.layer("web", "thing\n")
    words = ["build", "--architecture", FOREIGN.architecture]
    done = checkout.inv(*words)
    assert done.returncode == 0, done.stderr
    assert f"not verified: this machine is {HERE.architecture}" in done.stdout
    assert checkout.inv(*words, "--require-verified").returncode == 4
    assert checkout.inv("validate", "--architecture", FOREIGN.architecture).returncode == 4
    document = checkout.inv_json("status", "--architecture", FOREIGN.architecture)
    assert document["layers"][0]["state"] == "not verified"


def test_a_verdict_of_a_build_shows_in_the_status(checkout: Checkout, index: Index) -> None:
    built(checkout, index, {"thing.py": ""})
    words = ["status", "--runtime", HERE.runtime, "--architecture", HERE.architecture]
    assert checkout.inv_json(*words)["layers"][0]["state"] == "not validated"
    checkout.validate()
    assert checkout.inv_json(*words)["layers"][0]["state"] == "valid"
    checkout.build(target=HERE, force=True, means=checkout.means())
    assert checkout.inv_json(*words)["layers"][0]["state"] == "valid"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_validation_waits_for_no_import(
    checkout: Checkout, index: Index, tmp_path: Path, number: signal.Signals
) -> None:
    begun = tmp_path / "begun"
    code = f"open({str(begun)!r}, 'w').close()\nimport threading; threading.Event().wait()\n"
    built(checkout, index, {"thing.py": code})
    command = checkout.command("validate", "--runtime", HERE.runtime, "--architecture", HERE.architecture)
    environment = {**os.environ, **checkout.environment}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not begun.exists():
        assert process.poll() is None
    process.send_signal(number)
    _, said = process.communicate(timeout=30)  # the import itself may take a minute
    assert process.returncode == 128 + number
    assert "Traceback" not in said


def test_a_module_called_otherwise_than_its_missing_distribution(checkout: Checkout, index: Index) -> None:
    make_wheel(index.folder, "python-helper", "1.0", files={"helper.py": ""})
    built(checkout, index, {"thing.py": "import helper\n"}, requires=("python-helper>=1",))
    lock = checkout.project.lock_path("web", HERE)
    text = lock.read_text()
    lock.write_text(text[: text.index("python-helper==1.0")] + text[text.index("thing==1.0") :])
    checkout.build(target=HERE)
    (finding,) = one(checkout.validate("web"), "imports").findings
    assert "Not there either: python-helper>=1 (required by thing)" in finding.hint


# ---- what is kept, and what it is bound to ----


def test_a_damaged_tree_leaves_no_result_behind(checkout: Checkout, index: Index) -> None:
    """What a tree edited by hand imports is not what the build of that hash imports."""
    built(checkout, index, {"thing/__init__.py": "from thing import part\n", "thing/part.py": ""})
    part = checkout.project.tree_path("web", HERE) / "thing" / "part.py"
    part.unlink()
    report = checkout.validate()
    assert one(report, "imports").failed
    assert one(report, "tree").failed
    checkout.build(target=HERE, force=True, means=checkout.means())  # as the hint says, and it has to be let in
    assert messages(checkout.validate()) == []
    part.write_text("raise RuntimeError\n")
    again = one(checkout.validate(), "imports")
    assert (again.failed, again.recorded) == (True, False)


def test_a_zip_that_can_not_be_read_makes_nothing_else_pass(checkout: Checkout, index: Index) -> None:
    built(checkout, index, {"thing.py": "", "notes.txt": KEY, "thing.so": make_elf(FOREIGN.architecture)})
    checkout.project.zip_path("web", HERE).write_bytes(b"rubbish")
    report = checkout.validate(skip=frozenset({"zip", "imports"}))
    assert one(report, "secrets").failed
    assert one(report, "elf").failed
    (skipped,) = one(report, "tree").skipped
    assert skipped.reason == "its zip can't be read"


def test_added_bytecode_that_could_be_imported_is_a_change(checkout: Checkout, index: Index) -> None:
    built(checkout, index, {"thing.py": ""})
    (checkout.project.tree_path("web", HERE) / "evil.pyc").write_bytes(b"")
    assert ("tree", "evil.pyc was added") in messages(checkout.validate())


def test_a_missing_module_behind_a_packages_own_words(checkout: Checkout, index: Index) -> None:
    code = "try:\n    import helper\nexcept ImportError as error:\n    raise ImportError('needed: helper') from error\n"
    make_wheel(index.folder, "helper", "1.0")
    checkout.layer("base", "helper\n")
    built(checkout, index, {"thing.py": code})
    (finding,) = one(checkout.validate("web"), "imports").findings
    assert "ImportError: needed: helper" in finding.message
    assert 'add depends_on = ["base"]' in finding.hint


def test_a_verdict_ends_with_what_it_was_reached_with(checkout: Checkout, index: Index) -> None:
    make_wheel(index.folder, "helper", "1.0", files={"helper.py": "X = 1\n"})
    checkout.layer("base", "helper\n")
    built(checkout, index, {"thing.py": "import helper\n"}, settings='depends_on = ["base"]\n')
    checkout.validate()
    words = ["status", "--layer", "web", "--runtime", HERE.runtime, "--architecture", HERE.architecture]

    def state() -> str:
        return str(checkout.inv_json(*words)["layers"][0]["state"])

    assert state() == "valid"
    checkout.layer("base", "helper\n", code={"own.py": ""})
    checkout.build(["base"], target=HERE, means=checkout.means())
    assert state() == "not validated"
    checkout.validate()
    assert state() == "valid"
    checkout.layer("web", "thing\n", 'depends_on = ["base"]\nmax_size_mb = 1\nlimit_reason = "small"\n')
    assert state() in ("not validated", "outdated")


def test_leaving_out_a_check_is_said_and_not_called_valid(checkout: Checkout, index: Index) -> None:
    built(checkout, index, {"thing.py": ""})
    words = ["validate", "--runtime", HERE.runtime, "--architecture", HERE.architecture, "--skip", "imports"]
    document = checkout.inv_json(*words)
    assert (document["valid"], document["left_out"]) == (False, ["imports"])
    assert "What was checked is in order; left out: imports." in checkout.inv(*words).stdout
