"""models.toml: what is read, and what a wrong file says."""

from __future__ import annotations

from pathlib import Path

import pytest

from handler.families import FAMILIES
from handler.models import LoraSource, Model, ModelsError, read_models


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "art").mkdir()
    (tmp_path / "art" / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}', encoding="utf-8")
    for name in ("adapter.safetensors", "aya.safetensors"):
        (tmp_path / name).write_bytes(b"")
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
        batch = 8
        ip_adapter = "adapter.safetensors"
        compile = true
        attention = "flash"
        float8 = true
        step_cache = 0.1
        offload = "never"

        [models.xl]
        source = "hub:someone/xl"
        family = "sdxl"
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
        family=FAMILIES["sd15"],
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
        batch=8,
        ip_adapter=(folder / "adapter.safetensors").resolve(),
        compile=True,
        attention="flash",
        float8=True,
        step_cache=0.1,
        offload="never",
    )
    assert models.by_name["art"].grid == 64
    assert models.by_name["xl"] == Model(
        name="xl",
        source="someone/xl",
        hub=True,
        revision="abc",
        variant="fp16",
        family=FAMILIES["sdxl"],
        steps=FAMILIES["sdxl"].steps,
        guidance=FAMILIES["sdxl"].guidance,
    )


def test_a_folder_tells_its_family_and_the_family_the_defaults(folder: Path) -> None:
    (folder / "art" / "model_index.json").write_text('{"_class_name": "FluxPipeline"}', encoding="utf-8")
    flux = FAMILIES["flux"]
    model = read_models(write(folder, '[models.a]\nsource = "art"')).by_name["a"]
    assert (model.family, model.steps, model.guidance, model.negative) == (flux, flux.steps, flux.guidance, False)
    (folder / "art" / "model_index.json").write_text('{"_class_name": "NextYearsPipeline"}', encoding="utf-8")
    assert read_models(write(folder, '[models.a]\nsource = "art"')).by_name["a"].family is FAMILIES["other"]


CURVED = '[models.a]\nsource = "art"\n[loras.b]\nsource = "aya.safetensors"\nfamily = "sd15"\n'


def test_a_curve_says_at_which_weight_a_strength_is_worn(folder: Path) -> None:
    lora = read_models(write(folder, CURVED + "curve = [[0.5, 0.7], [1, 1]]")).loras["b"]
    asked = (0.0, 0.25, 0.5, 0.75, 1.0, 2.0, -0.5)
    assert [lora.worn(each) for each in asked] == pytest.approx([0.0, 0.35, 0.7, 0.85, 1.0, 2.0, -0.7])
    plain = read_models(write(folder, CURVED)).loras["b"]
    assert [plain.worn(each) for each in asked] == list(asked)


def test_loras_are_read_with_what_they_are_checked_against(folder: Path) -> None:
    models = read_models(
        write(
            folder,
            f"""
            warm_loras = ["aya"]
            lora_memory_mb = 3
            [models.a]
            source = "art"
            [loras.aya]
            source = "aya.safetensors"
            family = "sd15"
            sha256 = "{"0" * 64}"
            [loras.far]
            source = "hub:someone/style/weights/far.safetensors"
            revision = "abc"
            family = "flux"
            """,
        )
    )
    assert (models.warm_loras, models.lora_memory) == (("aya",), 3 * 2**20)
    assert models.loras == {
        "aya": LoraSource(
            name="aya",
            source=str((folder / "aya.safetensors").resolve()),
            family=FAMILIES["sd15"],
            sha256="0" * 64,
        ),
        "far": LoraSource(
            name="far",
            source="someone/style/weights/far.safetensors",
            family=FAMILIES["flux"],
            hub=True,
            revision="abc",
        ),
    }


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
        ('warm = ["b"]\n[models.a]\nsource = "art"', "warm: 'b' has no table of its own; write one of a"),
        ('keep_loaded = 0\n[models.a]\nsource = "art"', "keep_loaded is 0, too few; write at least 1"),
        ('[models.a]\nsource = "art"\nsteps = "4"', r"models\.a\.steps: it must be int, not str"),
        ('[models.a]\nsource = "art"\nsteps = true', r"models\.a\.steps: it must be int, not bool"),
        ('[models.a]\nsource = "art"\nsteps = 0', r"models\.a\.steps: 0 is too small; write 1 or more"),
        ('[models.a]\nsource = "art"\nsteps = 9\nmax_steps = 8', r"models\.a\.steps: 9 is more than max_steps"),
        ('[models.a]\nsource = "art"\nguidance = -1', r"models\.a\.guidance: -1.0 is no number of 0 or more"),
        ('[models.a]\nsource = "art"\nguidance = nan', r"models\.a\.guidance: nan is no number of 0 or more"),
        ('[models.a]\nsource = "art"\nnegative = 1', r"models\.a\.negative: it must be bool, not int"),
        ('[models.a]\nsource = "art"\ndtype = "half"', r"models\.a\.dtype: 'half' is unknown; write one of auto"),
        ('[models.a]\nsource = "art"\npalette = "no"', r"models\.a\.palette: 'no' is no file in the source folder"),
        ('[models.a]\nsource = "art"\ncell = 3', r"models\.a\.cell: 3 does not divide size_multiple, 8"),
        ('[models.a]\nsource = "hub:a/b"', r"models\.a\.family: of a hub model it must be said; write one of sd15, "),
        ('[models.a]\nsource = "art"\nfamily = "sd14"', r"models\.a\.family: 'sd14' is unknown; write one of sd15, "),
        ('[models.a]\nsource = "art"\noffload = "no"', r"models\.a\.offload: 'no' is unknown; write one of auto"),
        ('[models.a]\nsource = "art"\nip_adapter = "no"', r"models\.a\.ip_adapter: 'no' is no file beside"),
        ('[models.a]\nsource = "art"\n[loras.b]\nsource = "b.pt"', r"loras\.b\.source: 'b.pt' is no .safetensors file"),
        ('[models.a]\nsource = "art"\n[loras.b]\nsource = "b.safetensors"', r"loras\.b\.source: .* imgen models pull"),
        ('[models.a]\nsource = "art"\n[loras.b]\nsource = "aya.safetensors"', r"loras\.b\.family: it is missing"),
        ('[models.a]\nsource = "art"\n[loras.b]\nsource = "hub:b.safetensors"', r"write hub:owner/name/file\.safe"),
        (
            '[models.a]\nsource = "art"\n[loras.b]\nsource = "aya.safetensors"\nfamily = "sd15"\nsha256 = "AB"',
            r"loras\.b\.sha256: it must be 64 lower-case",
        ),
        (CURVED + "curve = [[0.5]]", r"loras\.b\.curve: \[0\.5\] is no pair of numbers"),
        (CURVED + 'curve = [[1, "x"]]', r"loras\.b\.curve: .* is no pair of numbers"),
        (CURVED + "curve = [[0, 1]]", r"loras\.b\.curve: \[0, 1\] does not rise above \[0\.0, 0\.0\]"),
        (CURVED + "curve = [[0.5, 0.7], [1, 0.6]]", r"loras\.b\.curve: \[1, 0\.6\] does not rise above \[0\.5, 0\.7\]"),
        ('warm_loras = ["b"]\n[models.a]\nsource = "art"', r"warm_loras: 'b' has no table of its own"),
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
