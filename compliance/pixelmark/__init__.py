"""An imperceptible mark: a 48-bit id in the pixels, which outlives the loss of the metadata.

Keyed spread spectrum in a tile of 256x256 pixels that repeats over the picture, with an error-correcting code and a
blind detector. It needs no weights and no original. The parts, each on its own:

    code.py       id ↔ code bits: CRC, convolutional code, soft decision
    tile.py       a key's patterns: which frequencies say what
    bands.py      channels of the half-size copy that both sides look at
    detect.py     finds a mark in what became of a picture
    embed.py      lays a mark over a picture, as strong as the detector needs it
    mark.py       `PixelMark`, with which the rest of the program deals

A mark is a pointer to a manifest and proves nothing alone: who has many marked pictures can copy it onto others.
"""

from compliance.pixelmark.detect import SIZES, Found
from compliance.pixelmark.mark import ALGORITHM, PixelMark

__all__ = ["ALGORITHM", "SIZES", "Found", "PixelMark"]
