"""An imperceptible mark: a 48-bit id in the pixels, which outlives the loss of the metadata.

Keyed spread spectrum in a tile of 256x256 pixels that repeats over the picture, with an error-correcting code and a
blind detector. It needs no weights and no original. The parts, each on its own:

    code.py       id ↔ code bits: CRC, convolutional code, soft decision
    tile.py       a key's patterns: which frequencies say what
    mark.py       `PixelMark`, with which the rest of the program deals: embed and detect

A mark is a pointer to a manifest and proves nothing alone: who has many marked pictures can copy it onto others.
"""

from compliance.pixelmark.mark import ALGORITHM, Found, PixelMark

__all__ = ["ALGORITHM", "Found", "PixelMark"]
