"""Optimizing small layers with this very Python as the oracle: what goes, what stays, that nothing stops working."""

from __future__ import annotations

import base64
import csv
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from layerkit.building import Action, kinship
from layerkit.errors import CheckFailed, ConfigurationError
from layerkit.model import ANOTHER_FILE, RUNTIME_BOTO3, Optimized
from layerkit.results import Results
from tests.support.checkouts import FOREIGN, HERE, Checkout
from tests.support.index import Index
from tests.support.wheels import make_wheel

KEY = "-----BEGIN PRIVATE KEY-----\n" + "MIIEowIBAAKCAQEAu1SU1LfVLPHCozMxH2Mo4lgOEePzNm0tRgeLezV6ffAt0gun\n" * 4
TEST_FILES = {"thing/tests/__init__.py": "", "thing/tests/test_it.py": "import thing\n", "thing/tests/data.txt": "data"}


def optimized(
    checkout: Checkout, index: Index, files: Mapping[str, str | bytes], settings: str = "", target: str = ""
) -> Optimized:
    """One layer ``web`` with the one distribution ``thing``, built with optimization."""
    make_wheel(index.folder, "thing", "1.0", files=files)
    checkout.layer("web", "thing\n", settings)
    to = FOREIGN if target == "foreign" else HERE
    checkout.lock(to)
    built = checkout.build(target=to, optimizer=checkout.optimizer(to))
    result = built["web"].manifest.optimized
    assert result is not None
    return result


def tree(checkout: Checkout) -> Path:
    return checkout.project.tree_path("web", HERE)


def files_in(folder: Path) -> set[str]:
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return {path for path in found if ".dist-info/" not in path and "__pycache__" not in path}


def outcomes(result: Optimized) -> dict[str, str]:
    return {rule.rule: rule.outcome for rule in result.rules if rule.files or rule.restored}


def run(checkout: Checkout, code: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-I",
        "-S",
        "-B",
        "-c",
        f"import sys; sys.path.insert(0, {str(tree(checkout))!r})\n{code}",
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_what_nothing_needs_goes(checkout: Checkout, index: Index) -> None:
    files: dict[str, str | bytes] = {
        "thing/__init__.py": "from . import core\n",
        "thing/core.py": "X = 1\n",
        **TEST_FILES,
        "thing/README.rst": "Thing",
        "thing/docs/index.txt": "text",
        "thing/include/thing.h": "int x;",
        "thing/core.pyi": "X: int",
        "thing/py.typed": "",
        "thing/launcher.exe": "MZ",
        "thing/server.key": KEY,
        "thing/cacert.pem": KEY.replace("PRIVATE KEY", "CERTIFICATE"),
    }
    result = optimized(checkout, index, files)
    assert files_in(tree(checkout)) == {"thing/__init__.py", "thing/core.py", "thing/cacert.pem"}
    assert set(outcomes(result).values()) == {"verified"}
    assert (result.modules, result.unverified) == (2, "")
    assert {"METADATA", "RECORD", "WHEEL"} <= {path.name for path in (tree(checkout) / "thing-1.0.dist-info").iterdir()}


def test_record_says_what_is_there(checkout: Checkout, index: Index) -> None:
    optimized(checkout, index, {"thing/__init__.py": "X = 1\n", **TEST_FILES})
    with open(tree(checkout) / "thing-1.0.dist-info" / "RECORD", newline="") as file:
        rows = {row[0]: row[1] for row in csv.reader(file)}
    there = {path.relative_to(tree(checkout)).as_posix() for path in tree(checkout).rglob("*") if path.is_file()}
    assert set(rows) == there
    for path, digest in rows.items():
        if digest:
            content = (tree(checkout) / path).read_bytes()
            encoded = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            assert digest == f"sha256={encoded}", path


def test_a_rule_is_narrowed_to_what_breaks_nothing(checkout: Checkout, index: Index) -> None:
    files: dict[str, str | bytes] = {
        "thing/__init__.py": "",
        "thing/testing.py": "from thing.tests.helpers import help_me\n",
        "thing/tests/__init__.py": "",
        "thing/tests/helpers.py": "def help_me(): pass\n",
        "thing/tests/test_it.py": "",
        "thing/tests/more/__init__.py": "",
    }
    result = optimized(checkout, index, files)
    (rule,) = [rule for rule in result.rules if rule.rule == "tests"]
    assert rule.outcome == "narrowed"
    assert rule.restored == {
        "thing/tests/__init__.py": "thing.testing",
        "thing/tests/helpers.py": "thing.testing",
    }
    assert files_in(tree(checkout)) == {
        "thing/__init__.py",
        "thing/testing.py",
        "thing/tests/__init__.py",
        "thing/tests/helpers.py",
    }
    explained = checkout.inv(
        "optimize",
        "--explain",
        "thing/tests/helpers.py",
        "--runtime",
        HERE.runtime,
        "--architecture",
        HERE.architecture,
    )
    assert "it stays, though the rule tests proposes it: import thing.testing needs it" in explained.stdout


def test_a_rule_whose_every_file_is_needed_is_rejected(checkout: Checkout, index: Index) -> None:
    read = "import os\nX = open(os.path.join(os.path.dirname(__file__), 'core.pyi')).read()\n"
    files: dict[str, str | bytes] = {"thing/__init__.py": read, "thing/core.py": "", "thing/core.pyi": "X: int"}
    result = optimized(checkout, index, files)
    (rule,) = [rule for rule in result.rules if rule.rule == "type-stubs"]
    assert (rule.outcome, rule.files, rule.restored) == ("rejected", 0, {"thing/core.pyi": "thing"})


def test_keep_goes_before_every_rule(checkout: Checkout, index: Index) -> None:
    optimized(checkout, index, {"thing/__init__.py": "", **TEST_FILES}, 'keep = ["thing/tests/*.txt"]\n')
    assert files_in(tree(checkout)) == {"thing/__init__.py", "thing/tests/data.txt"}


def test_own_code_is_left_alone(checkout: Checkout, index: Index) -> None:
    checkout.layer("web", "thing\n", code={"ours/__init__.py": "", "ours/tests/__init__.py": "", "ours/README.md": ""})
    optimized(checkout, index, {"thing/__init__.py": "", **TEST_FILES})
    assert {"ours/tests/__init__.py", "ours/README.md"} <= files_in(tree(checkout))
    assert "thing/tests/__init__.py" not in files_in(tree(checkout))


def test_who_probes_for_a_removed_module_goes_on_working(checkout: Checkout, index: Index) -> None:
    files: dict[str, str | bytes] = {
        "thing/__init__.py": "try:\n    from thing import plots\nexcept ImportError:\n    plots = None\n",
        "thing/plots/__init__.py": "from thing.plots import lines\n",
        "thing/plots/lines.py": "",
    }
    optimized(checkout, index, files, '[remove]\nslim = ["thing.plots"]\n')
    assert files_in(tree(checkout)) == {"thing/__init__.py", "thing/plots/__init__.py"}
    assert run(checkout, "import thing; print(thing.plots)").stdout == "None\n"


def test_a_stub_stands_for_a_removed_package(checkout: Checkout, index: Index) -> None:
    files: dict[str, str | bytes] = {
        "thing/__init__.py": "",
        "thing/plots/__init__.py": "X = 1\n",
        "thing/plots/lines.py": "",
    }
    optimized(checkout, index, files, '[remove]\nslim = ["thing.plots"]\n')
    assert files_in(tree(checkout)) == {"thing/__init__.py", "thing/plots/__init__.py"}
    done = run(
        checkout, "import thing\ntry:\n    import thing.plots\nexcept ModuleNotFoundError as error: print(error)"
    )
    assert "the rule 'slim' left it out of the layer 'web'" in done.stdout
    assert 'keep = ["thing/plots"]' in done.stdout
    optimized(checkout, index, files, 'keep = ["thing/plots"]\n[remove]\nslim = ["thing.plots"]\n')
    assert "thing/plots/lines.py" in files_in(tree(checkout))


def test_service_data_by_an_allow_list(checkout: Checkout, index: Index) -> None:
    data = {f"botocore/data/{name}/2020/service-2.json": "{}" for name in ("s3", "lambda", "sts", "ec2")}
    files: dict[str, str | bytes] = {"botocore/__init__.py": "", "botocore/data/endpoints.json": "{}", **data}
    optimized(checkout, index, files, 'services = ["s3"]\n')
    assert files_in(tree(checkout)) == {
        "botocore/__init__.py",
        "botocore/data/endpoints.json",
        "botocore/data/s3/2020/service-2.json",
        "botocore/data/sts/2020/service-2.json",
    }


BAD = {
    "exits": "import sys; sys.exit()",
    "ends": "import os; os._exit(3)",
    "crashes": "import os; os.abort()",
    "forks": "import os\nif os.fork() == 0: os._exit(0)",
    "prints": "print('x' * 10000)",
    "reads": "input()",
    "raises": "class E(BaseException):\n    def __str__(self): raise SystemExit\nraise E",
}


def test_modules_that_misbehave_are_contained(
    checkout: Checkout, index: Index, capfd: pytest.CaptureFixture[str]
) -> None:
    files: dict[str, str | bytes] = {f"thing/{name}.py": f"{code}\n" for name, code in BAD.items()}
    files |= {"thing/__init__.py": "", "thing/fine.py": "", **TEST_FILES}
    result = optimized(checkout, index, files)
    assert result.modules == 4  # thing, fine, and those that fork and print
    assert capfd.readouterr().out == ""
    assert "thing/tests/data.txt" not in files_in(tree(checkout))


# ---- bytecode ----


def test_bytecode_is_valid_where_lambda_mounts_it(checkout: Checkout, index: Index) -> None:
    result = optimized(checkout, index, {"thing/__init__.py": "from thing import core\n", "thing/core.py": "X = 1\n"})
    assert result.bytecode_files == 2
    assert result.interpreter == " ".join(sys.version.split())
    compiled = Path(importlib.util.cache_from_source(str(tree(checkout) / "thing" / "core.py")))
    header = compiled.read_bytes()[:16]
    assert header[:4] == importlib.util.MAGIC_NUMBER
    assert header[4:8] == b"\x03\x00\x00\x00"  # PEP 552: by hash, and checked
    assert b"/opt/python/thing/core.py" in compiled.read_bytes()
    before = compiled.stat()
    assert run(checkout, "import thing.core; print(thing.core.__cached__)").stdout.strip() == str(compiled)
    assert compiled.stat() == before


def test_what_imports_load_comes_first_and_the_budget_is_kept(checkout: Checkout, index: Index) -> None:
    big = "".join(f"V{number} = {'x' * 50 + str(number)!r}\n" for number in range(9000))
    files: dict[str, str | bytes] = {
        "thing/__init__.py": "import thing.zz_used\n",
        "thing/aa_unused.py": big,
        "thing/zz_used.py": big.replace("V", "W"),
    }
    result = optimized(checkout, index, files, "bytecode_budget_mb = 1\n")
    compiled = {path.name.split(".")[0] for path in (tree(checkout) / "thing" / "__pycache__").iterdir()}
    assert compiled == {"__init__", "zz_used"}
    assert result.bytecode_size <= 1024 * 1024
    assert optimized(checkout, index, files, "bytecode_budget_mb = 20\n").bytecode_files == 3
    assert optimized(checkout, index, files, 'bytecode = "off"\n').bytecode_files == 0
    assert optimized(checkout, index, files, 'bytecode = "all"\n').bytecode_files == 3


def test_the_same_bytes_from_two_checkouts_with_nothing_cached(
    checkout: Checkout, make_checkout: Callable[[str], Checkout], index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    files: dict[str, str | bytes] = {"thing/__init__.py": "def f(a): return {'a': (1, 2, a)}\n", **TEST_FILES}
    digests = set()
    for number, one in enumerate((checkout, make_checkout("somewhere else/far away"))):
        monkeypatch.setenv("LAYERKIT_CACHE_DIR", str(one.root / "cache"))
        monkeypatch.setenv("PYTHONHASHSEED", str(number))
        optimized(one, index, files)
        digests.add(hashlib.sha256(one.project.zip_path("web", HERE).read_bytes()).hexdigest())
        with zipfile.ZipFile(one.project.zip_path("web", HERE)) as archive:
            assert [name for name in archive.namelist() if name.endswith(".pyc")]
    assert len(digests) == 1


# ---- what can't be proven ----


def test_for_a_foreign_architecture_only_what_needs_no_proof_is_done(
    checkout: Checkout, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAYERKIT_CACHE_DIR", str(checkout.root / "cache"))
    files: dict[str, str | bytes] = {"thing/__init__.py": "", "thing/x.h": "", "thing/x.exe": "MZ", **TEST_FILES}
    files |= {"thing/x.a": "", "thing/x.pxd": "", "thing/x.c": ""}
    result = optimized(checkout, index, files, target="foreign")
    folder = checkout.project.tree_path("web", FOREIGN)
    # A header or a source may be read when a module is called.
    assert files_in(folder) == {"thing/__init__.py", "thing/x.h", "thing/x.c", *TEST_FILES}
    assert result.unverified.startswith("this machine is")
    assert set(outcomes(result).values()) == {"unproven"}


# ---- the task ----


def test_a_dry_run_proves_and_changes_nothing(checkout: Checkout, index: Index) -> None:
    make_wheel(index.folder, "thing", "1.0", files={"thing/__init__.py": "", **TEST_FILES})
    checkout.layer("web", "thing\n")
    checkout.lock(HERE)
    before = checkout.snapshot()
    words = ["--runtime", HERE.runtime, "--architecture", HERE.architecture]
    done = checkout.inv("optimize", "--dry-run", *words, env={"INVOKE_LAYERKIT_RUNTIME": HERE.runtime})
    assert done.returncode == 0, done.stderr
    assert "Nothing was changed (dry run)." in done.stdout
    assert checkout.snapshot() == before
    document = json.loads(checkout.inv("optimize", "--json", *words).stdout)
    rules = {rule["rule"]: rule["files"] for rule in document["layers"][0]["optimized"]["rules"]}
    assert rules["tests"] == 3
    assert checkout.snapshot() != before


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--rule", "nonsense"], "there is no rule called 'nonsense'"),
        (["--skip-rule", "nonsense"], "there is no rule called 'nonsense'"),
        (["--layer", "nobody"], "there is no layer called 'nobody'"),
    ],
)
def test_wrong_words(checkout: Checkout, index: Index, words: list[str], what: str) -> None:
    make_wheel(index.folder, "thing", "1.0")
    checkout.layer("web", "thing\n")
    done = checkout.inv("optimize", *words)
    assert done.returncode == 2
    assert what in done.stderr


def test_the_rules_are_listed(checkout: Checkout) -> None:
    document = checkout.inv_json("optimize", "--list-rules")
    named = {rule["name"]: rule for rule in document["rules"]}
    assert {"tests", "debug-symbols", "services"} <= set(named)
    assert all(rule["because"] for rule in named.values())


def test_bytecode_never_takes_a_layer_over_its_limit(checkout: Checkout, index: Index) -> None:
    source = "".join(f"V{number} = {'x' * 80 + str(number)!r}\n" for number in range(8000))
    files: dict[str, str | bytes] = {f"thing/m{number}.py": source for number in range(3)}
    files["thing/__init__.py"] = ""
    settings = 'max_size_mb = 4\nlimit_reason = "small"\nbytecode = "all"\n'
    result = optimized(checkout, index, files, settings)
    (one,) = checkout.build(target=HERE, optimizer=checkout.optimizer()).values()
    assert 0 < result.bytecode_files < 4
    assert one.manifest.tree.size <= 4 * 1024 * 1024


# ---- selective modules ----


SELECTIVE: dict[str, str | bytes] = {
    "thing/__init__.py": "from thing import _base\n",
    "thing/_base.py": "",
    "thing/trees/__init__.py": "from thing.shared.maths import add\n",
    "thing/trees/_grow.py": "",
    "thing/shared/__init__.py": "",
    "thing/shared/maths.py": "def add(): pass\n",
    "thing/shared/table.csv": "1,2",
    "thing/shared/unused.py": "",
    "thing/sample/__init__.py": "",
    "thing/sample/data/iris.csv": "1,2",
}


def test_of_a_package_only_what_is_used_stays(checkout: Checkout, index: Index) -> None:
    result = optimized(checkout, index, SELECTIVE, 'only = ["thing.trees"]\n')
    assert files_in(tree(checkout)) == {
        "thing/__init__.py",
        "thing/_base.py",
        "thing/trees/__init__.py",
        "thing/trees/_grow.py",
        "thing/shared/__init__.py",
        "thing/shared/maths.py",
        "thing/shared/table.csv",  # of a package that stays: read when it is called, perhaps
        "thing/shared/unused.py",  # a stub
        "thing/sample/__init__.py",  # a stub
    }
    (rule,) = [rule for rule in result.rules if rule.rule == "only"]
    assert rule.outcome == "verified"
    assert rule.restored["thing/shared/maths.py"] == "thing.trees"
    assert 'keep = ["thing/sample"]' in run(checkout, "import thing.sample").stderr
    assert "the rule 'only' left it out" in run(checkout, "import thing.shared.unused").stderr
    assert run(checkout, "import thing.trees._grow").returncode == 0


def test_the_line_that_a_stub_names_brings_the_module_back(checkout: Checkout, index: Index) -> None:
    message = ""
    for settings in ("", 'keep = ["thing/shared/unused.*"]\n'):
        optimized(checkout, index, SELECTIVE, f'only = ["thing.trees"]\n{settings}')
        done = run(checkout, "import thing.shared.unused")
        message = message or done.stderr
    assert 'keep = ["thing/shared/unused.*"]' in message
    assert done.returncode == 0


def test_what_other_distributions_load_of_it_stays(checkout: Checkout, index: Index) -> None:
    make_wheel(index.folder, "other", "1.0", files={"other/__init__.py": "import thing.shared.unused\n"})
    make_wheel(index.folder, "thing", "1.0", files=SELECTIVE)
    checkout.layer("web", "thing\nother\n", 'only = ["thing.trees"]\n')
    checkout.lock(HERE)
    built = checkout.build(target=HERE, optimizer=checkout.optimizer())["web"].manifest.optimized
    assert built is not None
    assert run(checkout, "import other").returncode == 0
    (rule,) = [rule for rule in built.rules if rule.rule == "only"]
    assert rule.restored["thing/shared/unused.py"] == "other"


def test_a_module_that_only_names_and_nobody_has(checkout: Checkout, index: Index) -> None:
    make_wheel(index.folder, "thing", "1.0", files=SELECTIVE)
    checkout.layer("web", "thing\n", 'only = ["thing.leaves"]\n')
    checkout.lock(HERE)
    before = checkout.snapshot()
    with pytest.raises(ConfigurationError, match=r"only: the layer has no module 'thing\.leaves'"):
        checkout.build(target=HERE, optimizer=checkout.optimizer())
    assert checkout.snapshot() == before


# ---- the runtime's own boto3 ----


def sdk(index: Index, without: str = "") -> None:
    for name in RUNTIME_BOTO3:
        if name != without:
            make_wheel(index.folder, name, "1.0", files={f"{name}/__init__.py": ""})


def test_boto3_is_left_to_the_runtime_as_a_whole(checkout: Checkout, index: Index) -> None:
    sdk(index)
    make_wheel(index.folder, "thing", "1.0", files={"thing/__init__.py": ""})
    checkout.layer("web", "\n".join(["thing", *RUNTIME_BOTO3]), 'rules = ["runtime-boto3"]\n')
    checkout.lock(HERE)
    built = checkout.build(target=HERE, optimizer=checkout.optimizer())["web"].manifest
    assert built.optimized is not None
    assert built.optimized.left_out == dict.fromkeys(RUNTIME_BOTO3, "1.0")
    assert [found.name for found in built.distributions] == ["thing"]
    assert {path.name for path in tree(checkout).iterdir()} == {"thing", "thing-1.0.dist-info"}
    report = checkout.validate("web")
    assert [finding.message for finding in report.findings] == []


def test_a_layer_above_that_needs_boto3_is_not_verified_here(checkout: Checkout, index: Index) -> None:
    sdk(index)
    make_wheel(index.folder, "thing", "1.0", files={"thing/__init__.py": "import boto3\n"}, requires=["boto3"])
    checkout.layer("sdk", "\n".join(RUNTIME_BOTO3), 'rules = ["runtime-boto3"]\n')
    checkout.layer("web", "thing\n", 'depends_on = ["sdk"]\n')
    checkout.lock(HERE)
    checkout.build(target=HERE, optimizer=checkout.optimizer())
    report = checkout.validate()
    assert [finding.message for finding in report.findings] == []
    assert [(skipped.check, skipped.subject, skipped.reason) for skipped in report.skipped] == [
        ("imports", "web", "import thing needs boto3, which is left to the runtime and is not here")
    ]


def test_boto3_stays_as_a_whole_where_something_imports_it(checkout: Checkout, index: Index) -> None:
    sdk(index)
    make_wheel(index.folder, "thing", "1.0", files={"thing/__init__.py": "import boto3\n"})
    checkout.layer("web", "\n".join(["thing", *RUNTIME_BOTO3]), 'rules = ["runtime-boto3"]\n')
    checkout.lock(HERE)
    built = checkout.build(target=HERE, optimizer=checkout.optimizer())["web"].manifest
    assert built.optimized is not None
    (rule,) = [rule for rule in built.optimized.rules if rule.rule == "runtime-boto3"]
    assert (rule.outcome, rule.files, set(rule.restored.values())) == ("rejected", 0, {"thing"})
    assert len(built.distributions) == 6


def test_without_all_five_of_them_nothing_is_left_out(checkout: Checkout, index: Index) -> None:
    sdk(index, without="urllib3")
    names = [name for name in RUNTIME_BOTO3 if name != "urllib3"]
    checkout.layer("web", "\n".join(names), 'rules = ["runtime-boto3"]\n')
    checkout.lock(HERE)
    built = checkout.build(target=HERE, optimizer=checkout.optimizer())["web"].manifest
    assert built.optimized is not None
    (rule,) = [rule for rule in built.optimized.rules if rule.rule == "runtime-boto3"]
    assert (rule.files, rule.restored) == (0, {})
    assert "urllib3 is not in the layer" in rule.note


# ---- the team's own command ----


def with_check(checkout: Checkout, index: Index, check: str) -> None:
    files: dict[str, str | bytes] = {
        "thing/__init__.py": "",
        **TEST_FILES,
        "thing/README.md": "",
        "thing/docs/a.txt": "",
    }
    make_wheel(index.folder, "thing", "1.0", files=files)
    checkout.layer("web", "thing\n", 'verify = "python check.py"\n')
    (checkout.root / "layers" / "web" / "check.py").write_text(check)
    checkout.lock(HERE)


def test_what_the_teams_command_needs_stays(checkout: Checkout, index: Index) -> None:
    check = "import pathlib, thing\nassert (pathlib.Path(thing.__file__).parent / 'tests' / 'data.txt').read_text()\n"
    with_check(checkout, index, check)
    built = checkout.build(target=HERE, optimizer=checkout.optimizer())["web"].manifest.optimized
    assert built is not None
    rules = {rule.rule: rule for rule in built.rules}
    assert rules["tests"].outcome == "narrowed"
    assert rules["tests"].restored == {"thing/tests/data.txt": "(verify)"}
    assert rules["documentation"].outcome == "verified"
    assert files_in(tree(checkout)) == {"thing/__init__.py", "thing/tests/data.txt"}


def test_a_command_that_fails_before_proves_nothing_after(checkout: Checkout, index: Index) -> None:
    with_check(checkout, index, "raise SystemExit('no database here')")
    before = checkout.snapshot()
    with pytest.raises(CheckFailed, match=r"as its wheels made it: it ended with 1; it last said: no database here"):
        checkout.build(target=HERE, optimizer=checkout.optimizer())
    assert checkout.snapshot() == before


def test_another_check_is_another_input(checkout: Checkout, index: Index) -> None:
    with_check(checkout, index, "import thing")
    checkout.build(target=HERE, optimizer=checkout.optimizer())
    again = checkout.build(target=HERE, optimizer=checkout.optimizer())["web"]
    assert again.plan.action is Action.NOTHING
    (checkout.root / "layers" / "web" / "check.py").write_text("import thing.tests.test_it")
    changed = checkout.build(target=HERE, optimizer=checkout.optimizer())["web"]
    assert changed.plan.action is Action.BUILD
    assert "thing/tests/test_it.py" in files_in(tree(checkout))


@pytest.mark.parametrize("command", ["", "'unclosed", "nonsense-program --x", "../../elsewhere.sh"])
def test_a_command_that_is_none(checkout: Checkout, index: Index, command: str) -> None:
    make_wheel(index.folder, "thing", "1.0", files={"thing/__init__.py": "", **TEST_FILES})
    checkout.layer("web", "thing\n", f"verify = {json.dumps(command)}\n")
    done = checkout.inv("build", "--runtime", HERE.runtime, "--architecture", HERE.architecture)
    assert done.returncode == 2, done.stderr
    assert "verify" in done.stderr
    assert not (checkout.root / "dist").exists()


# ---- what ends in no result ----


def test_an_import_that_does_not_end_is_recorded(checkout: Checkout, index: Index) -> None:
    files: dict[str, str | bytes] = {
        "thing/__init__.py": "",
        "thing/waits.py": "import threading; threading.Event().wait()\n",
        **TEST_FILES,
    }
    make_wheel(index.folder, "thing", "1.0", files=files)
    checkout.layer("web", "thing\n")
    checkout.lock(HERE)
    optimizer = replace(checkout.optimizer(), seconds=0.3)
    built = checkout.build(target=HERE, optimizer=optimizer)["web"].manifest.optimized
    assert built is not None
    assert built.late == ("thing.waits",)
    assert built.modules == 1


def test_a_killed_process_settles_nothing(checkout: Checkout, index: Index, tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {
        "thing/__init__.py": "",
        "thing/big.py": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)\n",
        **TEST_FILES,
    }
    make_wheel(index.folder, "thing", "1.0", files=files)
    checkout.layer("web", "thing\n")
    checkout.lock(HERE)
    optimizer = replace(checkout.optimizer(), results=Results(tmp_path / "results"))
    checkout.build(target=HERE, optimizer=optimizer)
    assert not (tmp_path / "results" / "optimizations").exists()


# ---- what others have decided ----


def test_a_team_shares_what_was_decided(checkout: Checkout, index: Index, tmp_path: Path) -> None:
    make_wheel(index.folder, "thing", "1.0", files={"thing/__init__.py": "", **TEST_FILES})
    checkout.layer("web", "thing\n")
    checkout.lock(HERE)
    shared = tmp_path / "shared"
    checkout.build(target=HERE, optimizer=replace(checkout.optimizer(), results=Results(tmp_path / "mine", shared)))
    (decision,) = (shared / "optimizations").rglob("*.json")
    other = Results(tmp_path / "theirs", shared)
    said: list[str] = []
    checkout.build(
        target=HERE,
        force=True,
        optimizer=replace(checkout.optimizer(), results=other),
        tell=lambda progress: said.append(progress.phase),
    )
    assert "installing" in said
    assert "importing" not in said
    decision.write_text(decision.read_text().replace("thing", "think", 1).replace('"modules": 1', '"modules": 7'))
    said.clear()
    last = Results(tmp_path / "last", shared)
    checkout.build(
        target=HERE,
        force=True,
        optimizer=replace(checkout.optimizer(), results=last),
        tell=lambda progress: said.append(progress.phase),
    )
    assert "importing" in said


def test_what_was_decided_here_holds_on_the_other_architecture(
    checkout: Checkout, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAYERKIT_CACHE_DIR", str(checkout.root / "cache"))
    files: dict[str, str | bytes] = {
        "thing/__init__.py": "from thing.tests import test_it\n",
        "thing/docs/a.txt": "",
        **TEST_FILES,
    }
    optimized(checkout, index, files)
    other = optimized(checkout, index, files, target="foreign")
    folder = checkout.project.tree_path("web", FOREIGN)
    assert files_in(folder) == {"thing/__init__.py", "thing/tests/__init__.py", "thing/tests/test_it.py"}
    rules = {rule.rule: rule for rule in other.rules}
    assert rules["documentation"].outcome == "transferred"
    assert (rules["tests"].outcome, rules["tests"].note) == ("transferred", "2 of 3 stay")
    assert rules["tests"].restored == dict.fromkeys(["thing/tests/__init__.py", "thing/tests/test_it.py"], "thing")
    assert other.unverified.startswith("this machine is")


def test_a_file_that_is_another_there_stays(checkout: Checkout, index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAYERKIT_CACHE_DIR", str(checkout.root / "cache"))
    optimized(checkout, index, {"thing/__init__.py": "", **TEST_FILES})
    make_wheel(
        index.folder, "thing", "1.0", files={"thing/__init__.py": "", **TEST_FILES, "thing/tests/data.txt": "more"}
    )
    checkout.lock(FOREIGN)
    built = checkout.build(target=FOREIGN, optimizer=checkout.optimizer(FOREIGN))["web"].manifest.optimized
    assert built is not None
    (rule,) = [rule for rule in built.rules if rule.rule == "tests"]
    assert (rule.outcome, rule.files) == ("transferred", 2)
    assert (rule.note, rule.restored) == ("1 of 3 stay", {"thing/tests/data.txt": ANOTHER_FILE})


def test_before_and_after_are_shown(checkout: Checkout, index: Index) -> None:
    make_wheel(index.folder, "thing", "1.0", files={"thing/__init__.py": "", **TEST_FILES})
    checkout.layer("web", "thing\n")
    checkout.lock(HERE)
    document = checkout.inv_json("optimize", "--runtime", HERE.runtime, "--architecture", HERE.architecture)
    (layer,) = document["layers"]
    plain = checkout.build(target=HERE)["web"].manifest
    assert (layer["size_before"], layer["zip_size_before"]) == (plain.tree.size, layer["zip_size_before"])
    assert 0 < layer["zip_size_before"] < plain.zip.size  # which has the label too
    assert layer["import_seconds"] > 0
    assert layer["import_seconds_before"] > 0


# ---- wheels of PyPI ----


@pytest.mark.online
def test_numpy_testing_needs_one_of_numpys_test_modules(checkout: Checkout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UV_DEFAULT_INDEX")
    monkeypatch.delenv("UV_NO_CONFIG")
    checkout.layer("web", "numpy==2.2.5\n")
    checkout.lock(HERE)
    built = checkout.build(target=HERE, optimizer=checkout.optimizer())["web"].manifest.optimized
    assert built is not None
    rules = {rule.rule: rule for rule in built.rules}
    assert rules["tests"].outcome == "narrowed"
    assert "numpy/_core/tests/_natype.py" in rules["tests"].restored
    assert rules["tests"].files > 100
    assert run(checkout, "import numpy.testing").stderr == ""
    report = checkout.validate("web")
    assert report.findings == ()


# ---- what is recorded, and what is made of it ----

FLAGS = ["--runtime", HERE.runtime, "--architecture", HERE.architecture]
BY_DEFAULT = {"INVOKE_LAYERKIT_RUNTIME": HERE.runtime, "INVOKE_LAYERKIT_ARCHITECTURE": HERE.architecture}


def explained(checkout: Checkout, path: str) -> str:
    document = checkout.inv_json("optimize", "--explain", path, *FLAGS)
    (layer,) = document["layers"]
    return str(layer["explanation"])


def test_a_command_depends_on_the_layers_folder_and_not_on_what_is_built_there(
    checkout: Checkout, index: Index
) -> None:
    make_wheel(index.folder, "thing", "1.0", files={"thing/__init__.py": "", **TEST_FILES})
    folder = checkout.layer("web", "thing\n", 'verify = "python -m mycheck"\n')
    (folder / "mycheck.py").write_text("import helpers\n")
    (folder / "helpers.py").write_text("import thing\n")

    def action() -> str:
        done = checkout.inv("build", "--json", env=BY_DEFAULT)
        assert done.returncode == 0, done.stderr
        return str(json.loads(done.stdout)["layers"][0]["action"])

    assert [action(), action()] == ["build", "up to date"]
    # The word python names the interpreter here, and the folder of the tree as well.
    assert (folder / "python" / "thing").is_dir()
    (folder / "helpers.py").write_text("import thing.tests.test_it\n")
    assert [action(), action()] == ["build", "up to date"]
    assert (folder / "python" / "thing" / "tests" / "test_it.py").exists()


def test_a_folder_of_links_to_it_has_the_digest_of_a_layers_folder(
    checkout: Checkout, make_checkout: Callable[[str], Checkout]
) -> None:
    folder = checkout.layer("web", "thing\n", 'verify = "python check.py"\n')
    (folder / "checks" / "__pycache__").mkdir(parents=True)
    for path in ("check.py", "checks/one.py", "checks/__pycache__/one.pyc", "python"):
        (folder / path).write_text(path)
    draft = make_checkout("draft")
    (draft.root / "layers" / "web").mkdir(parents=True)
    for entry in folder.iterdir():
        (draft.root / "layers" / "web" / entry.name).symlink_to(entry)

    def digest(one: Checkout) -> str:
        return one.project.layers["web"].optimization.verify_sources

    before = digest(checkout)
    assert digest(draft) == before
    for path in ("checks/__pycache__/one.pyc", "python", "requirements.txt"):
        (folder / path).write_text("# another\n")
        assert digest(checkout) == before
    for path in ("check.py", "checks/one.py"):
        (folder / path).write_text("# another\n")
        assert digest(checkout) == digest(draft) != before
        before = digest(checkout)


def test_what_had_to_stay_here_stays_there_whatever_the_rule(
    checkout: Checkout, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAYERKIT_CACHE_DIR", str(checkout.root / "cache"))
    read = "import os\nX = open(os.path.join(os.path.dirname(__file__), 'x.pxd')).read()\n"
    files: dict[str, str | bytes] = {"thing/__init__.py": read, "thing/x.pxd": ""}
    optimized(checkout, index, files)
    other = optimized(checkout, index, files, target="foreign")
    assert "thing/x.pxd" in files_in(checkout.project.tree_path("web", FOREIGN))
    (rule,) = [rule for rule in other.rules if rule.rule == "build-files"]
    assert (rule.outcome, rule.restored) == ("transferred", {"thing/x.pxd": "thing"})


def test_what_another_recipe_decided_is_not_transferred(
    checkout: Checkout, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAYERKIT_CACHE_DIR", str(checkout.root / "cache"))
    make_wheel(index.folder, "thing", "1.0", files={"thing/__init__.py": "", "thing/tests/a.txt": ""})
    checkout.layer("web", "thing\n")
    checkout.lock(FOREIGN)
    optimizer = checkout.optimizer(FOREIGN)
    digest = hashlib.sha256(b"").hexdigest()
    record = {"gone": {"thing/tests/a.txt": digest}, "restored": {}, "loads": []}
    optimizer.results.put("transfers", kinship(checkout.project, "web", FOREIGN), record)
    built = checkout.build(target=FOREIGN, optimizer=optimizer)["web"].manifest.optimized
    assert built is not None
    assert "tests" not in {rule.rule for rule in built.rules}
    assert "thing/tests/a.txt" in files_in(checkout.project.tree_path("web", FOREIGN))


def test_a_fresh_proof_is_what_is_transferred(
    checkout: Checkout, index: Index, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LAYERKIT_CACHE_DIR", str(checkout.root / "cache"))
    results = Results(tmp_path / "results")
    make_wheel(index.folder, "thing", "1.0", files={"thing/__init__.py": "", **TEST_FILES})
    checkout.layer("web", "thing\n")
    checkout.lock(HERE)
    optimizer = replace(checkout.optimizer(), results=results)
    checkout.build(target=HERE, optimizer=optimizer)
    (kept,) = (results.folder / "transfers").rglob("*.json")
    proven = kept.read_text()
    results.put("transfers", kept.stem, {"gone": {}, "restored": {}, "loads": []})
    checkout.build(target=HERE, optimizer=optimizer, force=True)
    assert kept.read_text() != proven  # nothing was proven anew
    for decision in (results.folder / "optimizations").rglob("*.json"):
        decision.unlink()
    checkout.build(target=HERE, optimizer=optimizer, force=True)
    assert kept.read_text() == proven


@pytest.mark.parametrize("result", [{"foo": 1}, [1], 7, "text", [["a"]], {"a": {"b": []}}])
def test_a_kept_result_of_another_shape_is_as_if_it_were_not_there(
    checkout: Checkout, index: Index, monkeypatch: pytest.MonkeyPatch, result: object
) -> None:
    monkeypatch.setenv("LAYERKIT_CACHE_DIR", str(checkout.root / "cache"))
    files: dict[str, str | bytes] = {"thing/__init__.py": "from thing.tests import test_it\n", **TEST_FILES}
    first = optimized(checkout, index, files)
    validated = [(one.check, one.findings) for one in checkout.validate("web").checked]
    folder = checkout.means().results.folder
    kept = {path.parent.parent.name: path for path in folder.rglob("*.json")}
    assert {"optimizations", "loads", "transfers", "contents", "imports"} <= kept.keys()
    for kind, path in kept.items():
        Results(folder).put(kind, path.stem, result)
    again = checkout.build(target=HERE, optimizer=checkout.optimizer(), force=True)["web"].manifest.optimized
    assert again == first
    assert [(one.check, one.findings) for one in checkout.validate("web").checked] == validated
    for kind, path in kept.items():
        Results(folder).put(kind, path.stem, result)
    other = optimized(checkout, index, files, target="foreign")
    assert {rule.outcome for rule in other.rules} <= {"nothing", "unproven", "skipped"}


def test_a_stub_of_a_top_level_module_need_not_import(checkout: Checkout, index: Index) -> None:
    make_wheel(index.folder, "thing", "1.0", files={"thing/__init__.py": ""})
    make_wheel(index.folder, "extra", "1.0", files={"extra/__init__.py": "", "single.py": ""})
    checkout.layer("web", "thing\nextra\n", '[remove]\nslim = ["extra", "single"]\n')
    done = checkout.inv("optimize", "--json", *FLAGS)
    assert done.returncode == 0, done.stderr
    (layer,) = json.loads(done.stdout)["layers"]
    assert set(layer["optimized"]["stubs"]) == {"extra/__init__.py", "single.py"}
    assert layer["import_seconds"] > 0
    report = checkout.validate("web")
    assert [finding.message for finding in report.findings] == []
    assert [one.detail for one in report.checked if one.check == "imports"] == ["1 modules"]


def test_record_has_the_stubs_of_extension_modules_and_all_bytecode(checkout: Checkout, index: Index) -> None:
    files: dict[str, str | bytes] = {
        "thing/__init__.py": "",
        "thing/fast.abi3.so": b"no ELF",
        "thing/odd.name.py": "X = 1\n",  # no import can name it, and it compiles
    }
    make_wheel(index.folder, "other", "1.0", files={"other.py": ""})
    make_wheel(index.folder, "thing", "1.0", files=files)
    checkout.layer("web", "thing\nother\n", 'imports = ["thing"]\n[remove]\nslim = ["thing.fast"]\n')
    checkout.lock(HERE)
    checkout.build(target=HERE, optimizer=checkout.optimizer())
    with open(tree(checkout) / "thing-1.0.dist-info" / "RECORD", newline="") as file:
        rows = {row[0]: row[1:] for row in csv.reader(file)}
    there = {path.relative_to(tree(checkout)).as_posix() for path in tree(checkout).rglob("*") if path.is_file()}
    assert set(rows) == {path for path in there if path.startswith("thing")}
    assert {Path(path).name.split(".cpython")[0] for path in rows if "__pycache__" in path} == {
        *("__init__", "fast", "odd.name")
    }
    stub = (tree(checkout) / "thing" / "fast.py").read_bytes()
    encoded = base64.urlsafe_b64encode(hashlib.sha256(stub).digest()).rstrip(b"=").decode()
    assert rows["thing/fast.py"] == [f"sha256={encoded}", str(len(stub))]


def test_every_path_is_explained_from_the_record_of_the_build(checkout: Checkout, index: Index) -> None:
    files: dict[str, str | bytes] = {
        "thing/__init__.py": "from thing.tests import test_it\n",
        **TEST_FILES,
        "thing/server.key": KEY,
        "thing/README.md": "",
        "thing/core.txt": "",
        "thing/LICENSE.md": "",
        "thing/plots/__init__.py": "",
        "thing/plots/lines.py": "",
        "thing/fast.abi3.so": b"no ELF",
    }
    settings = 'keep = ["/opt/python/thing/README.md"]\n[remove]\nslim = ["thing.plots", "thing.fast"]\n'
    result = optimized(checkout, index, files, settings)
    rules = {rule.rule: rule for rule in result.rules}
    assert rules["tests"].removed == ("thing/tests/data.txt",)
    assert rules["slim"].removed == ("thing/fast.abi3.so", "thing/plots/__init__.py", "thing/plots/lines.py")
    # What a rule would take is not asked again: only what it took.
    checkout.layer("web", "thing\n", 'keep = ["thing/README.md"]\nskip_rules = ["private-keys"]\n')
    back = "To get it back, add to layer.toml: keep = "
    expected = {
        "thing/tests/data.txt": f'the rule tests took it. {back}["thing/tests/data.txt"]',
        "thing/server.key": f'the rule private-keys took it. {back}["thing/server.key"]',
        "thing/tests/test_it.py": "it stays, though the rule tests proposes it: import thing needs it",
        "thing/README.md": "it stays: a keep pattern in layer.toml covers it",
        "thing/LICENSE.md": "it stays: no rule may take it",
        "thing/core.txt": "it is there: no rule of the build proposes it",
        "thing/plots/lines.py": "the rule slim took it; a stub stands in its place, thing/plots/__init__.py. "
        f'{back}["thing/plots"]',
        "thing/fast.py": f"it is a stub: the rule 'slim' took the module. {back}[\"thing/fast.*\"]",
        "thing/tests": "a folder: 2 files are there, 1 went by the rule tests, 2 stay though a rule proposes them",
        "thing/docs/gone.txt": "it is not there, and never was: neither the build nor any of its rules knows it",
        "python/thing/core.txt": "it is there: no rule of the build proposes it",
        "/opt/python/thing/core.txt": "it is there: no rule of the build proposes it",
    }
    assert {path: explained(checkout, path) for path in expected} == expected


@pytest.mark.parametrize("path", ["", "python/", "/opt/python", "../../web/layer.toml"])
def test_what_is_no_path_in_a_layer_is_not_explained(checkout: Checkout, path: str) -> None:
    checkout.layer("web", "thing\n")
    done = checkout.inv("optimize", "--explain", path, *FLAGS)
    assert (done.returncode, "is no path in a layer" in done.stderr) == (2, True)


def test_without_a_strip_tool_it_is_said(checkout: Checkout, index: Index) -> None:
    make_wheel(index.folder, "thing", "1.0", files={"thing/__init__.py": ""})
    checkout.layer("web", "thing\n")
    checkout.lock(HERE)
    built = checkout.build(target=HERE, optimizer=replace(checkout.optimizer(), stripper=None))["web"].manifest
    assert built.optimized is not None
    (rule,) = [rule for rule in built.optimized.rules if rule.rule == "debug-symbols"]
    assert (rule.outcome, rule.note) == ("skipped", "there is no strip tool on this machine")
    assert {one.outcome for one in built.optimized.rules if one is not rule} == {"nothing"}
    checkout.layer("web", "thing\n", 'skip_rules = ["debug-symbols"]\n')
    left = checkout.build(target=HERE, optimizer=replace(checkout.optimizer(), stripper=None))["web"].manifest
    assert left.optimized is not None
    assert "debug-symbols" not in {one.rule for one in left.optimized.rules}


def test_where_nothing_can_be_loaded_nothing_is_stripped_and_it_is_said(checkout: Checkout, index: Index) -> None:
    result = optimized(checkout, index, {"thing/__init__.py": ""}, target="foreign")
    (rule,) = [rule for rule in result.rules if rule.rule == "debug-symbols"]
    assert (rule.outcome, rule.note) == ("skipped", "what is stripped can't be loaded here")


@pytest.mark.parametrize(
    ("settings", "words", "what"),
    [
        ("", ["--rule", "services"], 'services = ["s3"]'),
        ("", ["--rule", "only"], 'only = ["sklearn.ensemble"]'),
        ('rules = ["services"]\n', [], 'services = ["s3"]'),
        ("", ["--rule", "numpy", "--skip-rule", "numpy"], "the rule 'numpy' is both on and skipped"),
        ('rules = ["numpy"]\nskip_rules = ["numpy"]\n', [], "the rule 'numpy' is both on and skipped"),
        ('[remove]\nslim = ["thing.nothing"]\n', [], "remove.slim: the layer has no module 'thing.nothing'"),
        ('keep = ["python/"]\n', [], "'python/' is the whole layer"),
        ("", ["--rule", "nonsense"], "services, only"),
    ],
)
def test_what_would_do_nothing_is_refused(
    checkout: Checkout, index: Index, settings: str, words: list[str], what: str
) -> None:
    make_wheel(index.folder, "thing", "1.0", files={"thing/__init__.py": "", **TEST_FILES})
    checkout.layer("web", "thing\n", settings)
    done = checkout.inv("optimize", *words, *FLAGS)
    assert (done.returncode, what in done.stderr) == (2, True), done.stderr
    assert not (checkout.root / "dist").exists()


def test_a_flag_counts_for_the_layers_that_have_its_rule(checkout: Checkout, index: Index) -> None:
    make_wheel(index.folder, "thing", "1.0", files={"thing/__init__.py": "", "thing/plots.py": ""})
    make_wheel(index.folder, "other", "1.0", files={"other/__init__.py": ""})
    checkout.layer("web", "thing\n", 'rules = ["numpy"]\n[remove]\nslim = ["thing.plots"]\n')
    checkout.layer("api", "other\n")
    document = checkout.inv_json("optimize", "--skip-rule", "slim", "--skip-rule", "numpy", *FLAGS)
    names = {layer["layer"]: {rule["rule"] for rule in layer["optimized"]["rules"]} for layer in document["layers"]}
    assert not {"slim", "numpy"} & (names["web"] | names["api"])
    assert "tests" in names["web"] & names["api"]


def test_a_keep_pattern_that_covers_nothing_is_noted(checkout: Checkout, index: Index) -> None:
    files: dict[str, str | bytes] = {"thing/__init__.py": "", **TEST_FILES}
    result = optimized(checkout, index, files, 'keep = ["python/thing/tests/data.txt", "thing/nowhere"]\n')
    assert "thing/tests/data.txt" in files_in(tree(checkout))
    assert result.notes == ("keep: 'thing/nowhere' covers no path of the layer",)
    assert "note: keep: 'thing/nowhere' covers no path" in checkout.inv("optimize", *FLAGS).stdout


def test_the_list_has_what_teams_and_settings_make(checkout: Checkout) -> None:
    checkout.layer("web", "thing\n", '[remove]\nslim = ["thing.plots", "thing.maps"]\n')
    rules = checkout.inv_json("optimize", "--list-rules")["rules"]
    assert {"services", "only"} <= {rule["name"] for rule in rules}
    assert {
        "name": "slim",
        "default": "on",
        "removes": "thing.plots, thing.maps",
        "because": "layers/web/layer.toml says so",
    } in rules


def test_modules_that_never_imported_are_counted(checkout: Checkout, index: Index) -> None:
    files: dict[str, str | bytes] = {"thing/__init__.py": "", "thing/x.py": "import not_there\n", **TEST_FILES}
    result = optimized(checkout, index, files)
    assert (result.modules, result.failing) == (1, ("thing.x",))
    shown = checkout.inv("optimize", *FLAGS).stdout
    assert "1 modules do not import with everything in place either, and nothing is proven for them" in shown
    assert "import thing.x: nothing is proven for it" in checkout.inv("optimize", "--verbose", *FLAGS).stdout


def test_what_own_code_has_a_link_to_stays(checkout: Checkout, index: Index) -> None:
    files: dict[str, str | bytes] = {
        "thing/__init__.py": "",
        **TEST_FILES,
        "thing/docs/a.txt": "",
        "thing/docs/b.txt": "",
    }
    folder = checkout.layer("web", "thing\n", code={"mine/__init__.py": ""})
    os.symlink("../thing/tests/data.txt", folder / "src" / "mine" / "data.txt")
    os.symlink("../thing/docs", folder / "src" / "mine" / "docs")
    optimized(checkout, index, files)
    kept = {"thing/tests/data.txt", "thing/docs/a.txt", "thing/docs/b.txt"}
    assert kept == {path for path in files_in(tree(checkout)) if path in files} - {"thing/__init__.py"}
    assert (tree(checkout) / "mine" / "data.txt").read_text() == "data"
    assert explained(checkout, "thing/docs/a.txt") == "it stays: a link of the layer's own code leads to it"


@pytest.mark.parametrize(("ends", "kept"), [("os.kill(os.getpid(), 9)", False), ("raise ValueError", True)])
def test_what_a_killed_process_loaded_is_not_kept(
    checkout: Checkout, index: Index, tmp_path: Path, ends: str, kept: bool
) -> None:
    make_wheel(index.folder, "thing", "1.0", files={"thing/__init__.py": f"import os; {ends}\n", **TEST_FILES})
    checkout.layer("web", "thing\n")
    checkout.lock(HERE)
    results = Results(tmp_path / "results")
    checkout.build(target=HERE, optimizer=replace(checkout.optimizer(), results=results))
    assert (results.folder / "loads").exists() is kept
    assert (results.folder / "transfers").exists() is kept
