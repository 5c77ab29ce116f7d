"""The layer model: names, targets, and the graph."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerkit.errors import ConfigurationError
from layerkit.model import MIB, Layer, Layers, Target, check_layer_name, normalized

NAMES = [f"layer-{letter}" for letter in "abcdefgh"]


@st.composite
def acyclic(draw: st.DrawFn) -> list[Layer]:
    """Layers in any order, each depending only on ones whose number is lower."""
    layers = []
    for number, name in enumerate(NAMES):
        needed = draw(st.sets(st.sampled_from(NAMES[:number]))) if number else set()
        layers.append(Layer(name, depends_on=tuple(sorted(needed))))
    return draw(st.permutations(layers))


@given(acyclic())
def test_every_layer_comes_after_what_it_depends_on(layers: list[Layer]) -> None:
    graph = Layers(layers)
    order = list(graph)
    assert sorted(order) == NAMES
    for name in order:
        assert all(order.index(needed) < order.index(name) for needed in graph.dependencies(name))


@given(acyclic(), st.sets(st.sampled_from(NAMES)))
def test_with_dependencies_is_the_smallest_closed_set(layers: list[Layer], names: set[str]) -> None:
    graph = Layers(layers)
    closed = graph.with_dependencies(names)
    assert names <= set(closed)
    for name in closed:
        assert set(graph[name].depends_on) <= set(closed)
        assert name in names or any(name in graph.dependencies(other) for other in names)


@given(st.integers(min_value=1, max_value=8))
def test_a_circle_of_any_length_is_named_whole(length: int) -> None:
    circle = [Layer(NAMES[i], depends_on=(NAMES[(i + 1) % length],)) for i in range(length)]
    with pytest.raises(ConfigurationError, match="circle") as caught:
        Layers(circle)
    assert all(layer.name in caught.value.message for layer in circle)


def test_a_dependency_has_to_exist() -> None:
    with pytest.raises(ConfigurationError, match=r"layers/a/layer.toml: depends_on names 'b', which is not a layer"):
        Layers([Layer("a", depends_on=("b",))])


def test_a_dependency_has_to_be_of_the_same_stack() -> None:
    with pytest.raises(ConfigurationError, match="of the stack 'other'"):
        Layers([Layer("a", depends_on=("b",)), Layer("b", stack="other")])


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "a b", "ä", "a" * 141, "a\n", "-\x00"])
def test_names_that_aws_or_a_folder_can_not_carry(name: str) -> None:
    with pytest.raises(ConfigurationError, match="can't be the name of a layer"):
        check_layer_name(name, "--layer")


@given(st.from_regex(r"[A-Za-z0-9_-]{1,140}", fullmatch=True))
def test_names_that_aws_takes(name: str) -> None:
    assert check_layer_name(name, "--layer") == name


@pytest.mark.parametrize("spelling", ["Python_Dateutil", "python.dateutil", "PYTHON--dateutil", "python-dateutil"])
def test_a_distribution_has_one_spelling(spelling: str) -> None:
    assert normalized(spelling) == "python-dateutil"


def test_a_layer_says_why_it_is_not_for_a_target() -> None:
    layer = Layer("a", runtimes=("python3.12",), architectures=("arm64",))
    assert "python3.12" in layer.why_not(Target("python3.13", "arm64"))
    assert "arm64" in layer.why_not(Target("python3.12", "x86_64"))
    assert layer.why_not(Target("python3.12", "arm64")) == ""


def test_sizes_are_binary() -> None:
    assert Layer("a", max_size_mb=100).max_size == 100 * MIB == 104_857_600
