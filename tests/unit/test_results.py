"""Results kept by what they were got from: read back as they were, and not believed when anything is wrong."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerkit.results import Results, digest_of

KEY = digest_of("a test")
RESULT = {"findings": [["import x: it failed", "x"]], "files": 3}
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return Results(tmp_path / "results")


def file_of(results: Results) -> Path:
    """The one file that is there."""
    (file,) = [path for path in results.folder.rglob("*") if path.is_file()]
    return file


@given(result=VALUES, kind=st.sampled_from(["imports", "contents"]), inputs=st.lists(VALUES, max_size=3))
def test_what_is_put_is_what_is_got(result: Any, kind: str, inputs: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Results(Path(folder)).put(kind, digest_of(*inputs), result)
        # Another process reads it.
        assert Results(Path(folder)).get(kind, digest_of(*inputs)) == result


def test_a_number_that_json_has_no_name_for(results: Results) -> None:
    results.put("imports", KEY, [math.inf])
    assert results.get("imports", KEY) == [math.inf]


def test_there_is_nothing_before(results: Results) -> None:
    assert results.get("imports", KEY) is None
    assert not results.folder.exists()


def test_the_newest_result_counts(results: Results) -> None:
    results.put("imports", KEY, "old")
    results.put("imports", KEY, "new")
    assert results.get("imports", KEY) == "new"
    assert file_of(results).name == f"{KEY}.json"


def test_kinds_and_keys_are_apart(results: Results) -> None:
    results.put("imports", KEY, "imports")
    results.put("events", KEY, "events")
    results.put("imports", digest_of("another"), "another")
    assert results.get("imports", KEY) == "imports"
    assert results.get("events", KEY) == "events"
    assert results.get("contents", KEY) is None


@given(one=st.lists(VALUES, max_size=3), other=st.lists(VALUES, max_size=3))
def test_other_inputs_have_another_key(one: list[Any], other: list[Any]) -> None:
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (digest_of(*one) == digest_of(*other)) is same


def test_a_key_does_not_depend_on_the_order_of_names() -> None:
    assert digest_of({"a": 1, "b": 2}) == digest_of({"b": 2, "a": 1})
    assert digest_of("a", "b") != digest_of("b", "a")
    assert digest_of("ab") != digest_of("a", "b")


@pytest.mark.parametrize("length", [0, 1, 20, -1])
def test_one_that_was_cut_short_is_none(results: Results, length: int) -> None:
    results.put("imports", KEY, RESULT)
    file_of(results).write_bytes(file_of(results).read_bytes()[:length])
    assert results.get("imports", KEY) is None


@given(place=st.floats(0, 1, exclude_max=True), byte=st.integers(1, 255))
def test_one_that_was_changed_is_none_or_the_same(place: float, byte: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        results = Results(Path(folder))
        results.put("imports", KEY, RESULT)
        content = bytearray(file_of(results).read_bytes())
        content[int(place * len(content))] ^= byte
        file_of(results).write_bytes(content)
        # A blank that became another blank is no change.
        assert results.get("imports", KEY) in (None, RESULT)


def test_an_error_that_somebody_took_out_is_not_believed(results: Results) -> None:
    results.put("imports", KEY, RESULT)
    document = json.loads(file_of(results).read_text())
    document["result"]["findings"] = []
    file_of(results).write_text(json.dumps(document))
    assert results.get("imports", KEY) is None


@pytest.mark.parametrize(("kind", "key"), [("events", KEY), ("imports", digest_of("another"))])
def test_one_of_another_kind_or_key_is_none(results: Results, kind: str, key: str) -> None:
    results.put("imports", KEY, RESULT)
    place = results.folder / kind / key[:2] / f"{key}.json"
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(file_of(results), place)
    assert results.get(kind, key) is None


@pytest.mark.parametrize(
    "content", [b"", b"null", b"[]", b'"text"', b"{}", b'{"result": 1}', b"\xff\xfe", b"[" * 99_999]
)
def test_any_other_content_is_none(results: Results, content: bytes) -> None:
    results.put("imports", KEY, RESULT)
    file_of(results).write_bytes(content)
    assert results.get("imports", KEY) is None


def test_a_folder_that_can_not_be_written_to_is_no_failure(tmp_path: Path) -> None:
    (tmp_path / "in the way").write_text("a file")
    results = Results(tmp_path / "in the way")
    results.put("imports", KEY, RESULT)
    assert results.get("imports", KEY) is None
    assert (tmp_path / "in the way").read_text() == "a file"


def test_a_folder_in_the_place_of_a_result_is_none(results: Results) -> None:
    results.put("imports", KEY, RESULT)
    file = file_of(results)
    file.unlink()
    file.mkdir()
    assert results.get("imports", KEY) is None
    results.put("imports", KEY, RESULT)
    assert [path.name for path in file.parent.iterdir()] == [file.name]  # and nothing half written is left
