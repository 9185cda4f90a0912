"""Smooth maps in few bytes, bit by bit the same when they are read again.

Float32 numbers are taken as whole numbers in the order of their values. What is kept is their
second difference along rows and columns, small where a map is nearly bilinear, byte by byte:
deflate finds the zeros of the high ones.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_SIGN = np.uint32(1 << 31)


def is_smooth(map_: NDArray[np.float32]) -> bool:
    """Whether `pack` pays: maps of equal pieces are small as they are."""
    bits = map_.view(np.uint32)
    return bool((bits[:, 1:] != bits[:, :-1]).mean() > 0.04)


def pack(map_: NDArray[np.float32]) -> NDArray[np.uint8]:
    """A map (H, W) as bytes (4, H, W), the highest ones first."""
    bits = np.ascontiguousarray(map_, dtype=np.float32).view(np.uint32)
    # negative numbers are ordered from the other end
    left = np.where(bits & _SIGN, ~bits, bits | _SIGN)
    for axis in (0, 0, 1, 1):
        left = np.diff(left, axis=axis, prepend=np.uint32(0))
    small = left.view(np.int32)
    unsigned = ((small << 1) ^ (small >> 31)).view(np.uint32)  # small of either sign: small
    return np.stack([(unsigned >> shift).astype(np.uint8) for shift in (24, 16, 8, 0)])


def unpack(planes: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The map that `pack` was given."""
    unsigned = np.zeros(planes.shape[1:], np.uint32)
    for plane in planes:
        unsigned = unsigned << np.uint32(8) | plane
    whole = (unsigned >> np.uint32(1)) ^ (np.uint32(0) - (unsigned & np.uint32(1)))
    for axis in (1, 1, 0, 0):
        whole = np.cumsum(whole, axis=axis, dtype=np.uint32)
    return np.where(whole & _SIGN, whole ^ _SIGN, ~whole).view(np.float32)
