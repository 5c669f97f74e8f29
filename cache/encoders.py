"""Which encoder a name stands for."""

from __future__ import annotations

from pathlib import Path

from cache.encoder import Encoder
from cache.errors import EncoderUnavailable
from cache.sentence import SentenceEncoder


def open_encoder(name: str, folder: Path) -> Encoder:
    """ "minilm", or a model of sentence-transformers by name or folder, which is never fetched. Some seconds of CPU.

    ``folder`` is where an encoder keeps what it makes once. Raises `EncoderUnavailable`.
    """
    if name != "minilm":
        return SentenceEncoder.open(name)
    try:
        # onnxruntime and the tokenizers, for those alone who use them.
        from cache.minilm import MiniLM
    except ImportError as exc:
        raise EncoderUnavailable(f"MiniLM wants the packages of imgen[gateway]: {exc}.") from exc
    return MiniLM.open(folder)
