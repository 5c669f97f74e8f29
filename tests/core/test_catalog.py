"""The catalogue that an operator edits: what it means, and that a bad file says where and how to mend it."""

import pytest

from gateway.core import catalog
from gateway.core.images import Lora
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
    assert shipped.loras_of("eros") == {"characters.aya": "aya", "characters.bella": "bella"}


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


def test_characters_and_styles_may_name_a_lora(read):
    loaded = read(
        GOOD.replace('label = "Aya"', 'label = "Aya"\nlora = "fox"').replace(
            'label = "Plain"', 'label = "Plain"\nlora = "ink"\nstrength = 0.5'
        )
    )
    assert loaded.loras_of("first") == {"characters.aya": "fox", "models.first.styles.plain": "ink"}
    assert loaded.loras_of("second") == {}
    assert catalog.worn(loaded.characters["aya"], loaded.models["first"].styles["plain"], None) == (
        Lora(name="fox", strength=1.0),
        Lora(name="ink", strength=0.5),
    )


def test_a_lora_that_is_named_twice_is_worn_once_at_the_larger_strength():
    weak = catalog.Character(label="x", lora="fox", strength=0.5)
    strong = catalog.Style(label="y", lora="fox", strength=1.5)
    assert catalog.worn(weak, strong) == catalog.worn(strong, weak) == (Lora(name="fox", strength=1.5),)
    assert catalog.worn(catalog.Style(label="plain")) == ()


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        pytest.param(GOOD.replace("version = 1", "version = 2"), "version", id="version"),
        pytest.param(GOOD + "\ncolour = 1\n", "models.second.colour", id="unknown-key"),
        pytest.param(GOOD.replace('"plain"', '"plane"'), "catalog.toml:10: ", id="default-style-with-line"),
        pytest.param(GOOD.replace("characters = []", 'characters = ["bob"]'), "'bob'", id="unknown-character"),
        pytest.param(GOOD.replace("[models.first]", "[models.First]"), "models", id="upper-case"),
        pytest.param(
            GOOD.replace('label = "Aya"', 'label = "Aya"\nlora = "aya"\nstrength = 2.5'),
            "catalog.toml:7: characters.aya.strength: ",
            id="strength-above-2-with-line",
        ),
        pytest.param(
            GOOD.replace('label = "Plain"', 'label = "Plain"\nstrength = 1.0'),
            "catalog.toml:12: models.first.styles.plain: has a strength but no lora; name one",
            id="strength-of-nothing",
        ),
        pytest.param(GOOD.replace('label = "Aya"', 'label = "Aya"\nlora = "../aya"'), "aya.lora", id="lora-is-a-name"),
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
