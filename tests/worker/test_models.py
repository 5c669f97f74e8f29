"""models.toml: what is read, and what a wrong file says."""

from __future__ import annotations

from pathlib import Path

import pytest

from handler.models import Model, ModelsError, read_models


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "art").mkdir()
    (tmp_path / "art" / "model_index.json").write_text("{}", encoding="utf-8")
    (tmp_path / "art" / "palettes.json").write_text("[]", encoding="utf-8")
    return tmp_path


def write(folder: Path, text: str) -> Path:
    path = folder / "models.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_every_key_is_read_and_sources_are_relative_to_the_file(folder: Path) -> None:
    path = write(
        folder,
        """
        warm = ["xl", "art"]
        keep_loaded = 3

        [models.art]
        source = "art"
        family = "sd15"
        dtype = "float32"
        sampler = "EulerDiscreteScheduler"
        steps = 14
        max_steps = 50
        guidance = 4
        negative = false
        size_multiple = 16
        scale = 4
        palette = "palettes.json"
        cell = 2

        [models.xl]
        source = "hub:someone/xl"
        revision = "abc"
        variant = "fp16"
        """,
    )
    models = read_models(path)
    assert models.warm == ("xl", "art")
    assert models.keep_loaded == 3
    assert models.by_name["art"] == Model(
        name="art",
        source=str((folder / "art").resolve()),
        family="sd15",
        dtype="float32",
        sampler="EulerDiscreteScheduler",
        steps=14,
        max_steps=50,
        guidance=4.0,
        negative=False,
        size_multiple=16,
        scale=4,
        palette=(folder / "art" / "palettes.json").resolve(),
        cell=2,
    )
    assert models.by_name["art"].grid == 64
    assert models.by_name["xl"] == Model(name="xl", source="someone/xl", hub=True, revision="abc", variant="fp16")


def test_the_first_model_is_warm_unless_the_file_says_otherwise(folder: Path) -> None:
    models = read_models(write(folder, '[models.b]\nsource = "art"\n[models.a]\nsource = "art"\n'))
    assert (models.warm, models.keep_loaded) == (("b",), 1)


def test_an_absolute_source_is_taken_as_it_is(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = write(tmp_path_factory.mktemp("elsewhere"), f"[models.a]\nsource = '{folder / 'art'}'\n")
    assert read_models(path).by_name["a"].source == str((folder / "art").resolve())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", r"it has no model; add a table \[models\.NAME\]"),
        ("models = 3", "models: it must be dict, not int"),
        ("[models]\na = 3", r"models\.a must be a table"),
        ("[models.a", "Expected ']'"),
        ("[models.a]", r"models\.a\.source: it is missing"),
        ('[models.a]\nsource = "nowhere"', r"models\.a\.source: .*no diffusers folder.* hub:owner/name"),
        ('[models.a]\nsource = "art"\nstep = 3', r"models\.a\.step: unknown key; did you mean 'steps'\?"),
        ('[models.a]\nsource = "art"\nzzz = 3', r"models\.a\.zzz: unknown key; remove it"),
        ('warn = ["a"]\n[models.a]\nsource = "art"', "warn: unknown key; did you mean 'warm'"),
        ('warm = ["b"]\n[models.a]\nsource = "art"', "warm names 'b', which is no model; write one of a"),
        ('keep_loaded = 0\n[models.a]\nsource = "art"', "keep_loaded is 0, too few; write at least 1"),
        ('[models.a]\nsource = "art"\nsteps = "4"', r"models\.a\.steps: it must be int, not str"),
        ('[models.a]\nsource = "art"\nsteps = true', r"models\.a\.steps: it must be int, not bool"),
        ('[models.a]\nsource = "art"\nsteps = 0', r"models\.a\.steps: 0 is too small; write 1 or more"),
        ('[models.a]\nsource = "art"\nsteps = 9\nmax_steps = 8', r"models\.a\.steps: 9 is more than max_steps"),
        ('[models.a]\nsource = "art"\nguidance = -1', r"models\.a\.guidance: it must be 0 or more"),
        ('[models.a]\nsource = "art"\nguidance = nan', r"models\.a\.guidance: it must be 0 or more"),
        ('[models.a]\nsource = "art"\nnegative = 1', r"models\.a\.negative: it must be bool, not int"),
        ('[models.a]\nsource = "art"\ndtype = "half"', r"models\.a\.dtype: 'half' is unknown; write one of auto"),
        ('[models.a]\nsource = "art"\npalette = "no"', r"models\.a\.palette: 'no' is no file in the source folder"),
        ('[models.a]\nsource = "art"\ncell = 3', r"models\.a\.cell: 3 does not divide size_multiple, 8"),
        ('[models.a]\nsource = "art"\nscale = 0', r"models\.a\.scale: 0 is too small; write 1 or more"),
    ],
)
def test_a_bad_file_names_the_file_the_key_and_the_fix(folder: Path, text: str, says: str) -> None:
    with pytest.raises(ModelsError, match=says) as caught:
        read_models(write(folder, text))
    assert str(caught.value).startswith(str(folder / "models.toml"))


def test_a_file_that_is_not_there_says_which_setting_points_at_it(tmp_path: Path) -> None:
    with pytest.raises(ModelsError, match="no such file; point IMGEN_MODELS at"):
        read_models(tmp_path / "models.toml")
