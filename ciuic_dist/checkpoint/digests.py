"""Checksums of pages and digests of files."""

from __future__ import annotations

from ciuic_dist.checkpoint.disk import Buffer


def checksum(*parts: Buffer) -> str:
    """XXH3 of 64 bits of ``parts`` end to end, in hexadecimal: tells damage, not malice."""
    from xxhash import xxh3_64  # here: `import ciuic_dist` does without it

    state = xxh3_64()
    for part in parts:
        state.update(part)  # unlike the one-shot function of xxhash 3, it releases the GIL
    return state.hexdigest()


def digest(content: bytes | memoryview) -> str:
    """XXH3 of 128 bits, in hexadecimal."""
    from xxhash import xxh3_128

    state = xxh3_128()
    state.update(content)
    return state.hexdigest()
