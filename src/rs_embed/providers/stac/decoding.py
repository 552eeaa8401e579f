"""Decoding of the blocks of a COG, with bounded decompression: by async-tiff, or of samples packed bit by bit."""

from __future__ import annotations

import asyncio
import lzma
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from async_tiff import DecoderRegistry, ImageFileDirectory, Tile
from async_tiff.enums import Compression, PlanarConfiguration, Predictor, SampleFormat
from isal import isal_zlib

from rs_embed.arrays import AnyArray
from rs_embed.providers.gdal import BLOCK_LIMIT_BYTES

if TYPE_CHECKING:
    from typing_extensions import Buffer

_FILL_ORDER = 266  # tag; 2 is the last bit first
_DEFLATE = (Compression.Deflate, Compression.OldDeflate)
_COMPRESSIONS = (Compression.Uncompressed, *_DEFLATE, Compression.LZMA)
"""Compressions whose decoder stops where a block is full; async-tiff's own decoders do not, GDAL's do."""
_SAMPLES = {(bits, kind) for bits in (8, 16, 32, 64) for kind in (SampleFormat.Uint, SampleFormat.Int)}
_SAMPLES |= {(bits, SampleFormat.Float) for bits in (32, 64)}
_PACKED = {(bits, SampleFormat.Uint) for bits in range(9, 16)}  # older scenes of two large catalogs have 15


async def decode(tile: Tile, ifd: ImageFileDirectory) -> AnyArray:
    """Return the values of a block (bands, y, x); one that is damaged is an exception of any kind."""
    if ifd.bits_per_sample[0] % 8:
        return await asyncio.to_thread(_unpack, tile, ifd)
    values: AnyArray = np.asarray(await tile.decode(decoder_registry=_decoders(block_bytes(ifd))))
    return values if is_planar(ifd) else np.moveaxis(values, -1, 0)


def why_not_decodable(ifd: ImageFileDirectory) -> str | None:
    """Return the reason why a directory's blocks need GDAL; None for those that `decode` takes."""
    samples = set(zip(ifd.bits_per_sample, ifd.sample_format, strict=False))
    predicted = ifd.predictor not in (None, Predictor.Unknown)
    counts = ifd.tile_byte_counts or []
    columns, rows = ifd.tile_count or (0, 0)
    planes = ifd.samples_per_pixel if is_planar(ifd) else 1
    is_packed = samples <= _PACKED and not predicted and not is_planar(ifd) and (ifd.tile_width or 0) % 8 == 0
    reasons = {
        f"compression {ifd.compression}": ifd.compression not in _COMPRESSIONS,
        "bits in another order": ifd.other_tags.get(_FILL_ORDER, 1) != 1,
        f"samples of {sorted(samples)}": len(samples) != 1 or not (samples <= _SAMPLES or is_packed),
        "a predictor on separate planes": predicted and is_planar(ifd),  # async-tiff 0.7 decodes them wrong
        "blocks left out of separate planes": 0 in counts and is_planar(ifd),
        "another number of blocks than its size asks for": len(counts) != columns * rows * planes,
        f"blocks over {BLOCK_LIMIT_BYTES >> 20} MB": block_bytes(ifd) > BLOCK_LIMIT_BYTES,
    }
    return next((text for text, holds in reasons.items() if holds), None)


def block_bytes(ifd: ImageFileDirectory) -> int:
    """Return the size of a block when it is decompressed, of one band where bands are planes."""
    planes = ifd.samples_per_pixel if is_planar(ifd) else 1
    return (ifd.tile_width or 0) * (ifd.tile_height or 0) * sum(ifd.bits_per_sample) // (8 * max(1, planes))


def is_planar(ifd: ImageFileDirectory) -> bool:
    """Return True where each block holds a single band."""
    return bool(ifd.planar_configuration == PlanarConfiguration.Planar)


@lru_cache(maxsize=16)
def _decoders(limit_bytes: int) -> DecoderRegistry:
    """Return decoders that stop at the size of a block, so that no bytes of a file can fill the memory."""

    def inflate(buffer: Buffer) -> bytes:
        return _decompress(Compression.Deflate, limit_bytes, buffer)

    def unpack_lzma(buffer: Buffer) -> bytes:
        return _decompress(Compression.LZMA, limit_bytes, buffer)

    return DecoderRegistry({**dict.fromkeys(map(int, _DEFLATE), inflate), int(Compression.LZMA): unpack_lzma})


def _decompress(kind: int, limit_bytes: int, buffer: Buffer) -> bytes:
    """Decompress a block; isal is three times as fast as async-tiff's inflate, and does not hold the GIL."""
    decompressor: Any = lzma.LZMADecompressor() if kind == Compression.LZMA else isal_zlib.decompressobj()
    values: bytes = decompressor.decompress(buffer, limit_bytes + 1)
    if len(values) > limit_bytes:
        raise ValueError(f"it holds more than the {limit_bytes} bytes of a block")
    if not decompressor.eof:
        raise ValueError("it is cut short")
    return values


def _unpack(tile: Tile, ifd: ImageFileDirectory) -> AnyArray:
    """Return the values (bands, y, x) of a block whose samples follow one another bit by bit, the highest first."""
    buffer, size_bytes = tile.compressed_bytes, block_bytes(ifd)
    if isinstance(buffer, list):
        raise ValueError("its bands are planes")
    is_plain = ifd.compression == Compression.Uncompressed
    data = bytes(buffer) if is_plain else _decompress(ifd.compression, size_bytes, buffer)
    if len(data) != size_bytes:
        raise ValueError("it is cut short")
    values = unpack_bits(data, ifd.bits_per_sample[0])
    return np.moveaxis(values.reshape(ifd.tile_height or 0, ifd.tile_width or 0, ifd.samples_per_pixel), -1, 0)


def unpack_bits(data: bytes, bits: int) -> AnyArray:
    """Return the samples, uint16, of 9 to 15 bits each in `data`; eight of them fill `bits` bytes."""
    columns = np.ascontiguousarray(np.frombuffer(data, np.uint8).reshape(-1, bits).T)  # byte i of each eight samples
    out = np.empty((columns.shape[1], 8), np.uint16)
    for sample in range(8):
        first, skipped = divmod(sample * bits, 8)
        word = np.zeros(columns.shape[1], np.uint32)
        for byte in columns[first : first + 3]:  # 15 bits lie in three bytes at most
            word = (word << 8) | byte
        word <<= 8 * max(0, first + 3 - bits)
        out[:, sample] = (word >> (24 - skipped - bits)) & ((1 << bits) - 1)
    return out.ravel()
