"""Any model of sentence-transformers, on torch: for other languages, and what the smaller encoder is compared with."""

from __future__ import annotations

import hashlib
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from cache.encoder import Vector
from cache.errors import EncoderUnavailable


class SentenceEncoder:
    """A model by the name that it has on the Hub, or by its folder. Threads take turns."""

    def __init__(self, model: Any, *, hash: str) -> None:
        self._model = model
        self._hash = hash
        #: The tokenizers of transformers set themselves up anew with each call, and fail when two do so at once.
        self._turn = Lock()

    @classmethod
    def open(cls, name: str, *, local_files_only: bool = True) -> SentenceEncoder:
        """Seconds, most of them for importing torch. With ``local_files_only``, nothing is fetched from the Hub.

        Raises `EncoderUnavailable`.
        """
        try:
            # Half a gigabyte of memory, for those alone who name such a model.
            from huggingface_hub import snapshot_download
            from sentence_transformers import SentenceTransformer
        except ImportError as exc:
            raise EncoderUnavailable(f"The encoder {name} wants sentence-transformers: {exc}.") from exc
        try:
            model = SentenceTransformer(name, device="cpu", local_files_only=local_files_only)
            hash = _folder(Path(name)) if Path(name).is_dir() else _revision(name, snapshot_download)
        except Exception as exc:  # Every library below has its own.
            reason = str(exc).partition("\n")[0]
            raise EncoderUnavailable(f"sentence-transformers can't load the encoder {name}: {reason}") from exc
        return cls(model, hash=hash)

    @property
    def hash(self) -> str:
        return self._hash

    @property
    def dimensions(self) -> int:
        count: int = self._model.get_embedding_dimension()
        return count

    def encode(self, text: str) -> Vector:
        """The vector of a text, of as many of its tokens as the model takes. Lone surrogates are passed over."""
        readable = text.encode("utf-8", "ignore").decode()
        try:
            with self._turn:
                vector = self._model.encode(readable, normalize_embeddings=True, show_progress_bar=False)
        except Exception as exc:  # torch's, and those of the libraries between.
            raise EncoderUnavailable(f"sentence-transformers failed: {exc}") from exc
        return np.asarray(vector, np.float32)


def _folder(folder: Path) -> str:
    """All files but those that are for people, whatever the folder is called and wherever it lies."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if name.startswith(".") or path.suffix == ".md":
            continue
        with path.open("rb") as file:
            digest.update(f"{name}\n{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()[:16]


def _revision(name: str, snapshot_download: Any) -> str:
    """The commit of what was loaded: what else of it is fetched later changes nothing."""
    return hashlib.sha256(f"{name}\n{Path(snapshot_download(name, local_files_only=True)).name}".encode()).hexdigest()[
        :16
    ]
