"""Every valid raster reads block by block, over HTTP and from disk, equal to rasterio; real damage is told."""

from __future__ import annotations

import asyncio
import logging
import struct
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.control import GroundControlPoint
from rasterio.shutil import copy as copy_raster

from archive_server import FileServer, serve_files
from rs_embed.errors import FetchError, UnusableImageryError
from rs_embed.providers.block_files import BlockFile, open_block_file
from rs_embed.providers.gdal import GdalFile
from rs_embed.providers.http import RangeReader, new_client
from rs_embed.providers.stac.cog import Cog

TRANSFORM = Affine(10, 0, 499_980, 0, -10, 5_300_040)
HEIGHT, WIDTH = 278, 328
TILED = {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate"}

FAST = {
    "deflate": TILED,
    "deflate, predictor 2": {**TILED, "predictor": 2},
    "float32, predictor 3": {**TILED, "predictor": 3, "dtype": "float32"},
    "float64, big endian": {**TILED, "dtype": "float64", "endianness": "BIG"},
    "LZMA": {**TILED, "compress": "lzma"},
    "no compression": {**TILED, "compress": "none"},
    "BigTIFF": {**TILED, "bigtiff": "YES"},
    "three bands, by pixel": {**TILED, "count": 3, "interleave": "pixel", "predictor": 2},
    "three bands, by plane": {**TILED, "count": 3, "interleave": "band"},
    "blocks left out": {**TILED, "sparse_ok": True},
    "15 bits": {**TILED, "nbits": 15},
    "15 bits, big endian, no compression": {**TILED, "nbits": 15, "compress": "none", "endianness": "BIG"},
    "12 bits, three bands": {**TILED, "nbits": 12, "count": 3, "interleave": "pixel"},
    "9 bits, LZMA": {**TILED, "nbits": 9, "compress": "lzma"},
    "a pixel is a point": {**TILED, "point": True},
    "nodata of 65535": {**TILED, "nodata": 65_535},
}
SLOW = {
    "int16, LZW": {**TILED, "compress": "lzw", "dtype": "int16"},
    "ZSTD": {**TILED, "compress": "zstd", "predictor": 2},
    "15 bits, LZW": {**TILED, "nbits": 15, "compress": "lzw"},
    "12 bits on planes": {**TILED, "nbits": 12, "count": 3, "interleave": "band"},
    "16-bit floats": {**TILED, "nbits": 16, "dtype": "float32"},
    "strips": {"compress": "deflate"},
    "strips, last rows short": {"compress": "lzw", "blockysize": 37},
    "predictor on planes": {**TILED, "count": 3, "interleave": "band", "predictor": 2},
    "planes with blocks left out": {**TILED, "count": 3, "interleave": "band", "sparse_ok": True},
    "PackBits": {**TILED, "compress": "packbits"},
    "LERC": {**TILED, "compress": "lerc"},
    "LERC of floats with ZSTD": {**TILED, "compress": "lerc_zstd", "dtype": "float32"},
    "JPEG": {**TILED, "compress": "jpeg", "dtype": "uint8"},
    "WebP": {**TILED, "compress": "webp", "webp_lossless": True, "count": 3, "interleave": "pixel", "dtype": "uint8"},
    "an internal mask": {**TILED, "mask": True},
    "an alpha band": {**TILED, "count": 2, "alpha": "YES"},
    "a rotated grid": {**TILED, "transform": Affine(9.7, 1.3, 499_980, 1.3, -9.7, 5_300_040)},
    "south up": {**TILED, "transform": Affine(10, 0, 499_980, 0, 10, 5_300_040)},
    "control points": {**TILED, "gcps": True},
    "a CRS of its own": {**TILED, "crs": "+proj=laea +lat_0=47 +lon_0=14 +datum=WGS84"},
    "JPEG 2000": {"driver": "JP2OpenJPEG", "quality": 100, "reversible": "YES", "blockxsize": 64, "blockysize": 64},
    "JPEG 2000, rows of tiles": {"driver": "JP2OpenJPEG", "quality": 100, "reversible": "YES", "blockysize": 64},
}


def write(folder: Path, *, point: bool = False, mask: bool = False, gcps: bool = False, **changes) -> Path:
    """A raster whose upper left is empty: noise, so that nothing is equal by chance."""
    profile = {"driver": "GTiff", "count": 1, "dtype": "uint16", "crs": "EPSG:32633", "transform": TRANSFORM} | changes
    shape = (profile["count"], HEIGHT, WIDTH)
    values = np.random.default_rng(0).integers(1, 200, shape).astype(profile["dtype"])
    values[:, :140, :200] = 0
    path = folder / ("a.jp2" if profile["driver"] == "JP2OpenJPEG" else "a.tif")
    if gcps:
        corners = [(0, 0), (HEIGHT, 0), (HEIGHT, WIDTH), (0, WIDTH)]
        points = [GroundControlPoint(r, c, *(profile["transform"] * (c, r))) for r, c in corners]
        profile |= {"gcps": points, "transform": None}
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(path, "w", height=HEIGHT, width=WIDTH, **profile) as file,
    ):
        file.write(values)
        if mask:
            file.write_mask(values[0] % 3 != 0)
        if path.suffix == ".tif":
            file.scales, file.offsets = ([base + i for i in range(profile["count"])] for base in (2.0, -1.0))
        if point:
            file.update_tags(AREA_OR_POINT="Point")
    return path


async def fetch_all(file: BlockFile) -> np.ndarray:
    """All blocks of a file, put together."""
    grid, out = file.grid, None
    for row in range(-(-grid.height // grid.block_height)):
        cols = range(-(-grid.width // grid.block_width))
        for col, block in zip(cols, await file.fetch_blocks(row, list(cols)), strict=True):
            if isinstance(block, FetchError):
                raise block
            if block is not None:
                if out is None:
                    out = np.zeros((file.count, grid.height, grid.width), block.dtype)
                window = out[:, row * grid.block_height :, col * grid.block_width :][
                    :, : grid.block_height, : grid.block_width
                ]
                window[...] = block[:, : window.shape[1], : window.shape[2]]
    return out


async def over_http(url: str) -> tuple[BlockFile, np.ndarray]:
    async with new_client() as client:
        file = await open_block_file(RangeReader(client, asyncio.Semaphore(4)), url)
        return file, await fetch_all(file)


async def from_disk(path: Path) -> tuple[BlockFile, np.ndarray]:
    file = await open_block_file(None, str(path))
    return file, await fetch_all(file)


def by_rasterio(path: Path) -> tuple[np.ndarray, Affine]:
    """All values, 0 where a mask or an alpha band says that there is nothing, and the transform."""
    with rasterio.open(path) as file:
        values = file.read()
        for band, flags in enumerate(file.mask_flag_enums):
            if rasterio.enums.MaskFlags.per_dataset in flags:
                values[band][file.read_masks(band + 1) == 0] = 0
        points, _ = file.gcps
        return values, rasterio.transform.from_gcps(points) if points else file.transform


@pytest.mark.parametrize("variant", [*FAST, *SLOW])
@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_a_raster_reads_as_rasterio_reads_it(tmp_path, variant):
    path = write(tmp_path, **(FAST | SLOW)[variant])
    expected, transform = by_rasterio(path)
    with serve_files(FileServer(tmp_path)) as server:
        file, values = asyncio.run(over_http(f"{server.url}/{path.name}"))
        assert len(server.queries) < 25
    assert isinstance(file, Cog if variant in FAST else GdalFile)
    for read, found in ((file, values), asyncio.run(from_disk(path))):
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
        assert read.grid.transform.almost_equals(transform, 1e-6)
        with rasterio.open(path) as dataset:
            tags = list(zip(dataset.scales, dataset.offsets, strict=True))
            assert [read.scale_and_offset(band) for band in range(read.count)] == tags
            assert read.nodata == dataset.nodata
    assert np.isin(expected, 0).mean() > 0.2


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_bits_in_another_order_are_turned_around(tmp_path):
    """No writer at hand makes such a file: a tag that says the obvious becomes the one that says so."""
    path = write(tmp_path, **TILED | {"compress": "none"})
    body = bytearray(path.read_bytes())
    plain, _ = by_rasterio(path)
    sample_format, fill_order = struct.pack("<HHIHH", 339, 3, 1, 1, 0), struct.pack("<HHIHH", 266, 3, 1, 2, 0)
    assert sample_format in body
    path.write_bytes(body.replace(sample_format, fill_order))
    expected, _ = by_rasterio(path)
    assert not np.array_equal(expected, plain)
    with serve_files(FileServer(tmp_path)) as server:
        file, found = asyncio.run(over_http(f"{server.url}/{path.name}"))
    assert isinstance(file, GdalFile)
    np.testing.assert_array_equal(found, expected)


@pytest.fixture
def served(tmp_path):
    """A file that GDAL must read, behind a server that misbehaves on demand."""
    path = write(tmp_path, **SLOW["15 bits, LZW"])
    with serve_files(FileServer(tmp_path)) as server:
        yield server, path


def test_the_name_of_a_file_does_not_decide_how_it_is_read(tmp_path):
    path = write(tmp_path, **SLOW["JPEG 2000"])
    expected, _ = by_rasterio(path)
    path = path.rename(tmp_path / "band.tif")
    with serve_files(FileServer(tmp_path)) as server:
        np.testing.assert_array_equal(asyncio.run(over_http(f"{server.url}/band.tif"))[1], expected)
    np.testing.assert_array_equal(asyncio.run(from_disk(path))[1], expected)


def test_gdal_is_served_with_the_same_retries(served):
    server, path = served
    server.error_share, server.reset_share, server.corrupt_share = 0.15, 0.1, 0.05
    server.status_of["a.tif"] = [429]
    for _ in range(5):
        _, values = asyncio.run(over_http(f"{server.url}/a.tif"))
        np.testing.assert_array_equal(values, by_rasterio(path)[0])


def test_a_file_that_vanishes_under_gdal_is_told_by_its_status(served):
    server, _ = served

    async def read() -> list[object]:
        async with new_client() as client:
            file = await open_block_file(RangeReader(client, asyncio.Semaphore(4)), f"{server.url}/a.tif")
            server.status_of["a.tif"] = [404] * 9
            return await file.fetch_blocks(4, [3, 4])

    for error in asyncio.run(read()):
        assert isinstance(error, FetchError)
        assert str(error) == "127.0.0.1/a.tif: 404 (1 attempt(s))"


def test_gdal_reads_signed_files_and_the_token_shows_nowhere(served, caplog):
    caplog.set_level(logging.DEBUG)
    server, path = served
    server.token = "sig=secret"

    class Tokens:
        async def sign(self, client, url, *, refused):
            return f"{url}?{server.token}", {}

    async def read():
        async with new_client() as client:
            reader = RangeReader(client, asyncio.Semaphore(4), Tokens())
            file = await open_block_file(reader, f"{server.url}/a.tif")
            assert "secret" not in repr(file)
            return await fetch_all(file)

    np.testing.assert_array_equal(asyncio.run(read()), by_rasterio(path)[0])
    assert set(server.queries) == {"sig=secret"}
    assert "secret" not in caplog.text


@pytest.mark.parametrize("variant", ["deflate", "15 bits", "LERC", "JPEG 2000"])
def test_real_damage_is_told_and_costs_its_own_block_alone(tmp_path, variant):
    path = write(tmp_path, **(FAST | SLOW)[variant])
    expected, _ = by_rasterio(path)
    with rasterio.open(path) as file:
        at = int(file.get_tag_item("BLOCK_OFFSET_5_4", "TIFF", bidx=1) or 0)
    body = bytearray(path.read_bytes())
    if at:
        body[at : at + 60] = bytes(60)
    else:
        del body[-200:]  # JPEG 2000 has no checksum: only a file cut short can be told
    path.write_bytes(body)

    async def read(server: FileServer) -> list[list[object]]:
        async with new_client() as client:
            reader = RangeReader(client, asyncio.Semaphore(4))
            files = [await open_block_file(reader, f"{server.url}/{path.name}"), await open_block_file(None, str(path))]
            return [await file.fetch_blocks(4, [3, 4, 5]) for file in files]

    with serve_files(FileServer(tmp_path)) as server:
        for blocks in asyncio.run(read(server)):
            assert isinstance(blocks[2], FetchError)
            assert f"{path.name}: block 4,5 is corrupt" in str(blocks[2])
            np.testing.assert_array_equal(blocks[1][:, :22], expected[:, 256:, 256:320])


def test_a_block_too_large_for_memory_is_refused_by_its_header(tmp_path):
    path = tmp_path / "a.tif"
    profile = {"driver": "GTiff", "height": 20_000, "width": 20_000, "count": 1, "dtype": "uint16", "sparse_ok": True}
    profile |= {"tiled": True, "blockxsize": 16_384, "blockysize": 16_384, "crs": "EPSG:32633", "transform": TRANSFORM}
    with rasterio.open(path, "w", **profile):
        pass
    assert path.stat().st_size < 10_000
    with pytest.raises(
        UnusableImageryError, match=r"a block of 16384 x 16384 pixels is over 256 MB .*gdal_translate -of COG"
    ):
        asyncio.run(from_disk(path))


@pytest.mark.parametrize("name", ["a.tif", "a.jp2"])
def test_no_other_driver_reads_what_a_file_really_holds(tmp_path, name):
    """A VRT could name any other file or address."""
    secret = write(tmp_path, **TILED).rename(tmp_path / "secret.tif")
    copy_raster(secret, tmp_path / "a.vrt", driver="VRT")
    (tmp_path / "a.vrt").rename(tmp_path / name)
    with serve_files(FileServer(tmp_path)) as server:
        with pytest.raises(FetchError, match="header cannot be read"):
            asyncio.run(over_http(f"{server.url}/{name}"))
        with pytest.raises(FetchError, match="header cannot be read"):
            asyncio.run(from_disk(tmp_path / name))


def test_control_points_that_bend_the_grid_are_refused_with_the_remedy(tmp_path):
    path = write(tmp_path, **SLOW["control points"])
    points = [GroundControlPoint(r, c, 500_000 + 10 * c + r * c, 5_300_000 - 10 * r) for r in (0, 99) for c in (0, 99)]
    with rasterio.open(path, "r+") as file:
        file.gcps = points, file.gcps[1]
    with pytest.raises(UnusableImageryError, match=r"bend its grid: warp it first \(gdalwarp\)"):
        asyncio.run(from_disk(path))


def test_what_no_attempt_can_read_is_told_from_what_failed(tmp_path):
    """A format or a codec that is not read is refused; what may be damage on the way is asked for again."""
    codec = write(tmp_path, **TILED).rename(tmp_path / "codec.tif")
    entry = struct.pack("<HHI", 259, 3, 1)  # of the compression
    data = codec.read_bytes().replace(entry + struct.pack("<I", 8), entry + struct.pack("<I", 50_009))
    codec.write_bytes(data)
    (tmp_path / "picture.tif").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    (tmp_path / "page.tif").write_bytes(b"<html>sign in</html>" + bytes(100))
    with serve_files(FileServer(tmp_path)) as server:
        for name, says in (("codec", "missing codec"), ("picture", "picture.tif is PNG, and only TIFF and JPEG 2000")):
            with pytest.raises(UnusableImageryError, match=says):
                asyncio.run(over_http(f"{server.url}/{name}.tif"))
        with pytest.raises(FetchError) as caught:
            asyncio.run(over_http(f"{server.url}/page.tif"))
    assert not isinstance(caught.value, UnusableImageryError)
