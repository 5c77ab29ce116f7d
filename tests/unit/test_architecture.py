"""The directions of docs/design.md, read from the imports."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# What each module of layerkit may import of layerkit, from the bottom up. A new module goes here with a thought.
LAYERS = [
    {"errors", "elf", "sensitive"},
    {"model", "processes", "files", "contents"},
    {"runtimes", "manifests", "results", "interpreters", "archiving", "stripping", "template", "environments"},
    {"project", "installer", "probing", "trees", "virtualenvs", "advisories", "sarif", "aws", "imports"},
    {"locking", "metadata", "builds", "cleaning", "creating"}
    | {"advisorydb", "auditing", "safety", "licences", "layerversions"},
    {"validating", "oracle", "rules", "comparing", "sharing", "suspects", "sbom", "osv", "usage"},
    {"bytecode", "functions", "judging", "sources", "verifying"},
    {"deciding"},
    {"optimizing"},
    {"building"},
    {"standing", "scanning", "drafts"},
    {"diagnosing", "updating", "releasing"},
    {"publishing"},
]
HEAVY = {
    *("boto3", "botocore", "rich", "jinja2", "humanize", "deflate", "uv", "pip_audit", "elftools", "cyclonedx", "cvss"),
    *("license_expression", "packageurl", "layerkit.building", "layerkit.scanning"),
}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


def modules() -> dict[str, set[str]]:
    return {path.stem: imports(path) for path in (ROOT / "layerkit").glob("*.py") if path.stem != "__init__"}


def test_every_module_has_its_place() -> None:
    assert sorted(modules()) == sorted(name for layer in LAYERS for name in layer)


@pytest.mark.parametrize("name", sorted(modules()))
def test_imports_point_downwards(name: str) -> None:
    level = next(number for number, layer in enumerate(LAYERS) if name in layer)
    below = {module for layer in LAYERS[:level] for module in layer}
    used = {module.split(".")[1] for module in modules()[name] if module.startswith("layerkit.")}
    assert used & {module for layer in LAYERS for module in layer} <= below


def test_layerkit_knows_nothing_of_the_surface() -> None:
    for name, found in modules().items():
        tops = {module.split(".")[0] for module in found}
        assert not tops & {"invoke", "rich", "tasks", "humanize"}, name


def test_the_model_is_standard_library_and_no_input_or_output() -> None:
    tops = {module.split(".")[0] for module in modules()["model"]}
    assert tops <= {"__future__", "re", "collections", "dataclasses", "datetime", "enum", "layerkit"}


def test_only_processes_starts_programs() -> None:
    for name, found in modules().items():
        if name != "processes":
            assert "subprocess" not in found, name


def test_listing_and_help_import_nothing_heavy() -> None:
    question = (
        "import sys; sys.argv = ['inv', *{words}]\n"
        "from tasks.program import main\n"
        "code = main()\n"
        "print(code, *sorted(sys.modules), file=sys.stderr)\n"
    )
    for words in (["--list"], ["--help", "build"]):
        done = subprocess.run(
            [sys.executable, "-c", question.format(words=words)], cwd=ROOT, capture_output=True, text=True, check=True
        )
        code, *loaded = done.stderr.split()
        assert code == "0"
        assert set(loaded) & HEAVY == set()
