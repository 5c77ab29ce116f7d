"""Reading a checkout: every mistake is one clear error with file and line or key."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerkit.errors import ConfigurationError
from layerkit.model import Target
from layerkit.project import load_project, read_layer_toml, read_requirements

TARGET = Target("python3.13", "x86_64")


def layer(root: Path, name: str = "web", requirements: str | None = "", settings: str | None = None) -> Path:
    folder = root / "layers" / name
    folder.mkdir(parents=True)
    if requirements is not None:
        (folder / "requirements.txt").write_text(requirements)
    if settings is not None:
        (folder / "layer.toml").write_text(settings)
    return folder


def test_a_folder_with_requirements_or_own_code_is_a_layer(tmp_path: Path) -> None:
    layer(tmp_path, "one", "six\n")
    (layer(tmp_path, "two", None) / "src").mkdir()
    (layer(tmp_path, "three", None) / "requirements.in").write_text("six")
    layer(tmp_path, "not-one", None)
    (tmp_path / "layers" / ".hidden").mkdir()
    (tmp_path / "layers" / "README.md").write_text("")
    project = load_project(tmp_path, TARGET)
    assert sorted(project.layers) == ["one", "three", "two"]
    assert project.layers["two"].has_own_code


def test_requirements_in_is_read_where_present(tmp_path: Path) -> None:
    folder = layer(tmp_path, requirements="six==1.16.0  # compiled\n")
    (folder / "requirements.in").write_text("six\n")
    (requirement,) = load_project(tmp_path, TARGET).layers["web"].requirements
    assert (requirement.text, requirement.where) == ("six", "layers/web/requirements.in:1")


def test_requirements_as_people_write_them(tmp_path: Path) -> None:
    folder = layer(
        tmp_path,
        requirements="\ufeff# comment\n\nPandas >= 2 , <4   # why\nrequests[socks]==2.32.4; python_version > '3.8'\n"
        "numpy>=2,\\\n  <3\n-r more.txt\n-rmost.txt\n",
    )
    (folder / "more.txt").write_text("six\n")
    (folder / "most.txt").write_text("attrs\n")
    found = load_project(tmp_path, TARGET).layers["web"].requirements
    assert [(item.name, item.where) for item in found] == [
        ("pandas", "layers/web/requirements.txt:3"),
        ("requests", "layers/web/requirements.txt:4"),
        ("numpy", "layers/web/requirements.txt:5"),
        ("six", "layers/web/more.txt:1"),
        ("attrs", "layers/web/most.txt:1"),
    ]
    assert found[0].text == "pandas<4,>=2".replace("pandas", "Pandas")
    assert found[2].text == "numpy<3,>=2"


@pytest.mark.parametrize(
    ("requirements", "where", "what"),
    [
        ("six\nsix y\n", "layers/web/requirements.txt:2", "is not a requirement"),
        ("pandas==2.0.0\n# c\npandas==2.1.0\n", "layers/web/requirements.txt:3", "pins pandas a second time"),
        ("Pandas==2.0.0\npandas==2.0.0\n", "layers/web/requirements.txt:2", "a second time"),
        ("--index-url https://user:secret@example.test/simple\n", "layers/web/requirements.txt:1", "--index-url"),
        ("-e .\n", "layers/web/requirements.txt:1", "the option -e"),
        ("six==1.17.0 --hash=sha256:abc\n", "layers/web/requirements.txt:1", "hashes belong into the lock"),
        ("six @ https://u:secret@example.test/six.whl\n", "layers/web/requirements.txt:1", "asked for by address"),
        ("-r ../../../etc/passwd\n", "layers/web/requirements.txt:1", "outside of the project"),
        ("-r requirements.txt\n", "layers/web/requirements.txt:1", "includes itself"),
        ("-r nowhere.txt\n", "layers/web/requirements.txt:1", "does not exist"),
        ("https://u:secret@example.test/x.whl\n", "layers/web/requirements.txt:1", "is not a requirement"),
        ("https://u:se/secret@example.test/x.whl\n", "layers/web/requirements.txt:1", "is not a requirement"),
        ("-r https://u:secret@example.test/r.txt\n", "layers/web/requirements.txt:1", "included by address"),
        ("-rhttps://u:secret@example.test/r.txt\n", "layers/web/requirements.txt:1", "included by address"),
        ("-ihttps://u:secret@example.test/simple\n", "layers/web/requirements.txt:1", "the option -i is"),
        ("--index-url=https://u:secret@example.test/\n", "layers/web/requirements.txt:1", "the option --index-url is"),
        ("-\n", "layers/web/requirements.txt:1", "the option - is"),
    ],
)
def test_mistakes_in_requirements(tmp_path: Path, requirements: str, where: str, what: str) -> None:
    layer(tmp_path, requirements=requirements)
    with pytest.raises(ConfigurationError) as caught:
        load_project(tmp_path, TARGET)
    assert caught.value.message.startswith(f"{where}: ")
    assert what in caught.value.message
    assert "secret" not in str(caught.value)


def test_a_pin_for_each_of_two_markers_is_no_mistake(tmp_path: Path) -> None:
    layer(tmp_path, requirements="six==1.16.0; python_version<'3.12'\nsix==1.17.0; python_version>='3.12'\n")
    assert len(load_project(tmp_path, TARGET).layers["web"].requirements) == 2


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ("depends_on = [", "not valid TOML"),
        ("dependson = []", "unknown key 'dependson'"),
        ("depends_on = 'core'", "depends_on must be a list of texts"),
        ("depends_on = [1]", "depends_on must be a list of texts"),
        ("stack = ''", "stack must be a text that is not empty"),
        ("runtimes = ['python2.7']", "runtimes: 'python2.7' is not a Python runtime of Lambda"),
        ("architectures = ['mips']", "architectures: 'mips' is not an architecture"),
        ("max_size_mb = 120", "max_size_mb and limit_reason go together"),
        ("max_size_mb = true\nlimit_reason = 'x'", "max_size_mb must be a whole number"),
        ("max_size_mb = 0\nlimit_reason = 'x'", "max_size_mb must be a whole number above 0"),
        ("depends_on = ['web']", "closes a circle: web -> web"),
        ("depends_on = ['core']", "which is not a layer"),
    ],
)
def test_mistakes_in_layer_toml(tmp_path: Path, settings: str, what: str) -> None:
    layer(tmp_path, settings=settings)
    with pytest.raises(ConfigurationError) as caught:
        load_project(tmp_path, TARGET)
    assert caught.value.message.startswith("layers/web/layer.toml")
    assert what in caught.value.message


def test_toml_errors_give_the_line(tmp_path: Path) -> None:
    layer(tmp_path, settings='description = "x"\nstack = =\n')
    with pytest.raises(ConfigurationError, match="line 2"):
        load_project(tmp_path, TARGET)


def test_a_folder_whose_name_aws_refuses(tmp_path: Path) -> None:
    layer(tmp_path, "new layer", "six\n")
    with pytest.raises(ConfigurationError, match="'new layer' can't be the name"):
        load_project(tmp_path, TARGET)


def test_a_layer_that_is_a_link_out_of_layers(tmp_path: Path) -> None:
    outside = layer(tmp_path / "elsewhere")
    (tmp_path / "layers").mkdir()
    (tmp_path / "layers" / "web").symlink_to(outside)
    with pytest.raises(ConfigurationError, match="leads out of layers/"):
        load_project(tmp_path, TARGET)


def test_no_layers_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="does not exist"):
        load_project(tmp_path, TARGET)


@given(st.text(max_size=200))
def test_any_requirements_text_gives_requirements_or_our_error(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    root = tmp_path_factory.mktemp("any")
    path = root / "requirements.txt"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        found = read_requirements(path, root)
    except ConfigurationError as error:
        assert error.message.startswith("requirements.txt")
    else:
        assert all(item.name and item.where.startswith("requirements.txt:") for item in found)


@given(st.text(max_size=200))
def test_any_layer_toml_gives_settings_or_our_error(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.mktemp("any") / "layer.toml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        read_layer_toml(path, "layer.toml")
    except ConfigurationError as error:
        assert error.message.startswith("layer.toml")
