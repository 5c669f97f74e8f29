"""What turns a text into a vector."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float32]


class Encoder(Protocol):
    """Texts to unit vectors. One object serves all threads; `encode` is CPU work, for threads."""

    @property
    def hash(self) -> str:
        """16 hex digits of the weights, the graph and its options: vectors of two hashes are never compared."""

    @property
    def dimensions(self) -> int: ...

    def encode(self, text: str) -> Vector:
        """A vector of shape (dimensions,) and length 1. Raises `cache.errors.EncoderUnavailable`."""
