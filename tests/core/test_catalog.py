"""The catalogue that an operator edits: what it means, and that a bad file says where and how to mend it."""

import pytest

from gateway.core import catalog
from gateway.errors import CatalogError

GOOD = """
version = 1

[characters.aya]
label = "Aya"

[models.first]
label = "First"
worker = "builtin"
default_style = "plain"

[models.first.styles.plain]
label = "Plain"

[models.second]
label = "Second"
worker = "builtin"
characters = []
"""


@pytest.fixture
def read(tmp_path):
    def read(text):
        path = tmp_path / "catalog.toml"
        path.write_text(text, encoding="utf-8")
        return catalog.load(path)

    return read


def test_the_shipped_catalogue_has_the_references_names():
    shipped = catalog.load()
    assert list(shipped.characters)[:2] == ["aya", "bella"]
    assert shipped.default_model == "eros"
    assert shipped.style("eros", "") == "professional"


def test_the_first_model_is_the_default_and_order_is_kept(read):
    loaded = read(GOOD)
    assert list(loaded.models) == ["first", "second"]
    assert loaded.default_model == "first"


def test_an_unknown_style_falls_back_to_the_models_default(read):
    loaded = read(GOOD)
    assert loaded.style("first", "nope") == "plain"
    assert loaded.style("second", "nope") == ""


def test_characters_belong_to_every_model_unless_it_names_them(read):
    loaded = read(GOOD)
    assert loaded.characters_of("first") == ("aya",)
    assert loaded.characters_of("second") == ()


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        pytest.param(GOOD.replace("version = 1", "version = 2"), "version", id="version"),
        pytest.param(GOOD + "\ncolour = 1\n", "models.second.colour", id="unknown-key"),
        pytest.param(GOOD.replace('"plain"', '"plane"'), "catalog.toml:10: ", id="default-style-with-line"),
        pytest.param(GOOD.replace("characters = []", 'characters = ["bob"]'), "'bob'", id="unknown-character"),
        pytest.param(GOOD.replace("[models.first]", "[models.First]"), "models", id="upper-case"),
        pytest.param("version = 1\n[models.x\n", "line 2", id="not-toml"),
        pytest.param("version = 1\n", "models", id="no-models"),
    ],
)
def test_a_bad_file_says_where_and_what(read, broken, says):
    with pytest.raises(CatalogError) as caught:
        read(broken)
    assert says in caught.value.message


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CatalogError, match=r"nowhere\.toml"):
        catalog.load(tmp_path / "nowhere.toml")
