"""From an id to code bits and back: 48 bits and a CRC-24, scrambled by the key, in a convolutional code.

The code has rate 1/4 and constraint length 9, with the generators that are best for it (Larsen 1973; octal 463, 535,
733, 745). Eight zero bits at the end bring the encoder back to its first state.
"""

import functools

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

ID_BITS = 48
_CRC_BITS = 24
WORD_BITS = ID_BITS + _CRC_BITS
_TAIL = 8
_STEPS = WORD_BITS + _TAIL
_GENERATORS = (0o463, 0o535, 0o733, 0o745)
CODE_BITS = _STEPS * len(_GENERATORS)
_STATES = 1 << _TAIL


def word(payload: int) -> npt.NDArray[np.uint8]:
    """The id and its checksum as `WORD_BITS` bits. ValueError for an id that does not fit."""
    if not 0 <= payload < 1 << ID_BITS:
        raise ValueError(f"an id has {ID_BITS} bits, not {payload!r}")
    whole = payload << _CRC_BITS | _crc24(payload.to_bytes(ID_BITS // 8, "big"))
    return np.unpackbits(np.frombuffer(whole.to_bytes(WORD_BITS // 8, "big"), np.uint8))


def payload_of(bits: npt.NDArray[np.uint8]) -> int | None:
    """The id, None when the checksum does not fit."""
    whole = int.from_bytes(np.packbits(bits).tobytes(), "big")
    payload, checksum = whole >> _CRC_BITS, whole & (1 << _CRC_BITS) - 1
    return payload if _crc24(payload.to_bytes(ID_BITS // 8, "big")) == checksum else None


def encode(bits: npt.NDArray[np.uint8]) -> Floats:
    """`CODE_BITS` values of +1 (a zero) or -1 (a one)."""
    outputs, _ = _trellis()
    state, code = 0, []
    for bit in [*bits.tolist(), *[0] * _TAIL]:
        code.append(outputs[state, bit])
        state = (state << 1 | bit) & _STATES - 1
    return np.concatenate(code)


def decode(likelihoods: Floats) -> npt.NDArray[np.uint8]:
    """The most likely words, shape (n, `WORD_BITS`), of values of shape (n, `CODE_BITS`): positive speaks for a zero.

    Viterbi's algorithm over all n at once.
    """
    outputs, previous = _trellis()
    count = len(likelihoods)
    steps = likelihoods.reshape(count, _STEPS, len(_GENERATORS))
    # Metrics of (n, state, bit) at each step: how well the branch that leaves the state fits.
    branches = np.einsum("nto,sbo->tnsb", steps, outputs)
    metric = np.full((count, _STATES), -np.inf, np.float32)
    metric[:, 0] = 0
    choices = np.empty((_STEPS, count, _STATES), np.uint8)
    bit = np.arange(_STATES) & 1
    for step in range(_STEPS):
        arriving = metric[:, previous] + branches[step][:, previous, bit[:, None]]
        choices[step] = arriving.argmax(-1)
        metric = arriving.max(-1)
    state = np.zeros(count, np.intp)
    bits = np.empty((count, _STEPS), np.uint8)
    rows = np.arange(count)
    for step in reversed(range(_STEPS)):
        bits[:, step] = state & 1
        state = previous[state, choices[step, rows, state]]
    return bits[:, :WORD_BITS]


@functools.cache
def _trellis() -> tuple[Floats, npt.NDArray[np.intp]]:
    """What leaves each state for each bit, shape (states, 2, 4), and the two states before each, shape (states, 2)."""
    registers = np.arange(_STATES)[:, None] << 1 | np.arange(2)
    parities = [np.bitwise_count(registers & generator) & 1 for generator in _GENERATORS]
    outputs = 1 - 2 * np.stack(parities, -1).astype(np.float32)
    previous = np.arange(_STATES)[:, None] >> 1 | np.array([0, _STATES >> 1])
    return outputs, previous


def _crc24(data: bytes) -> int:
    """The checksum of OpenPGP (RFC 4880, section 6.1)."""
    crc = 0xB704CE
    for byte in data:
        crc ^= byte << 16
        for _ in range(8):
            crc = crc << 1 ^ (0x1864CFB if crc & 0x800000 else 0)
    return crc & 0xFFFFFF
