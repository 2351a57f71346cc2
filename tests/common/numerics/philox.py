"""Philox-4x64-10 in plain Python integers (Salmon et al. 2011), the second opinion on every random bit."""

from __future__ import annotations

_MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
_WEYL = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
_MASK = (1 << 64) - 1


def philox_block(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return the four words of one counter value."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        product0, product1 = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (product1 >> 64) ^ c1 ^ k0, product1 & _MASK, (product0 >> 64) ^ c3 ^ k1, product0 & _MASK
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def stream_word(key: tuple[int, int], group: int, index: int) -> int:
    """Return word `index` of a group's stream; numpy counts up before it makes the first block, so that block has counter 1."""
    return philox_block((index // 4 + 1, group, 0, 0), key)[index % 4]


def rademacher_sign(key: tuple[int, int], group: int, weight: int) -> float:
    """Return u_i of a Rademacher direction: -1 where bit (i mod 64) of word i // 64 is set."""
    return -1.0 if stream_word(key, group, weight // 64) >> (weight % 64) & 1 else 1.0
