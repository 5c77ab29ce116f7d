"""The surface: one namespace behind two doors, complete help, no accidental flags."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from invoke.config import Config
from invoke.context import Context

from layerkit.errors import ConfigurationError
from layerkit.model import Target
from tasks.namespace import ns
from tasks.settings import DEFAULTS, settings
from tasks.support import LayerTask

ROOT = Path(__file__).parents[2]
TASKS = dict(ns.tasks)


def test_both_doors_give_one_object() -> None:
    question = (
        "from invoke.loader import FilesystemLoader\n"
        "module, _ = FilesystemLoader(start='.').load('tasks')\n"
        "import tasks, tasks.namespace\n"
        "assert module.__file__.endswith('tasks.py'), module\n"
        "assert module.ns is tasks.ns is tasks.namespace.ns\n"
        "import layerkit\n"
    )
    subprocess.run([sys.executable, "-c", question], cwd=ROOT, check=True)


@pytest.mark.parametrize("name", sorted(TASKS))
def test_every_task_and_every_flag_has_help(name: str) -> None:
    task = TASKS[name]
    assert isinstance(task, LayerTask)
    first = (task.__doc__ or "").strip().splitlines()
    assert len(first) == 1
    assert first[0].endswith(".")
    for argument in task.get_arguments():
        assert argument.help, f"--{argument.name}"


@pytest.mark.parametrize("name", sorted(TASKS))
def test_no_flag_has_one_letter(name: str) -> None:
    for argument in TASKS[name].get_arguments():
        assert all(len(spelling) > 1 for spelling in argument.names)


@pytest.mark.parametrize("name", sorted(TASKS))
def test_help_survives_a_second_look(name: str) -> None:
    first = [argument.help for argument in TASKS[name].get_arguments()]
    assert [argument.help for argument in TASKS[name].get_arguments()] == first


def context(**layerkit: object) -> Context:
    return Context(Config(overrides={"layerkit": {**DEFAULTS, **layerkit}}))


def test_flags_go_before_settings() -> None:
    chosen = settings(context(runtime="python3.12", jobs=3), architecture="arm64")
    assert (chosen.default_target, chosen.target) == (Target("python3.12", "x86_64"), Target("python3.12", "arm64"))
    assert chosen.jobs == 3
    assert settings(context(jobs=3), jobs=5).jobs == 5


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"runtimes": "python3.12"}, "layerkit.runtimes is not a setting"),
        ({"runtime": 3.12}, "layerkit.runtime must be a text, not 3.12"),
        ({"runtime": "python3"}, "layerkit.runtime: 'python3' is not a Python runtime"),
        ({"architecture": "amd64"}, "layerkit.architecture: 'amd64' is not"),
        ({"jobs": "two"}, "layerkit.jobs must be a whole number, not 'two'"),
        ({"jobs": -1}, "must be 1 or more"),
    ],
)
def test_mistakes_in_settings(values: dict[str, object], what: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        settings(context(**values))
    assert what in caught.value.message
