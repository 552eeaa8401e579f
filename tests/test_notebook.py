"""Results as a person meets them in a notebook: pictures and facts, frames, GeoTIFFs and progress bars."""

from __future__ import annotations

import sys

import geopandas
import numpy as np
import pytest
import rasterio

from fakes import FakeProvider
from rs_embed import (
    EmbeddingIndex,
    OutputSpec,
    PointBuffer,
    RSEmbedError,
    SpecError,
    TemporalSpec,
    export_embeddings,
    get_embedding,
)

MODEL = "clip_eurosat_s2rgb"
JUNE = TemporalSpec.range("2022-06-01", "2022-07-01")
PLACE = PointBuffer(15, 48, 640)


@pytest.fixture(scope="module")
def grid():
    return get_embedding(MODEL, spatial=PLACE, temporal=JUNE, output=OutputSpec.grid(), backend=FakeProvider())


@pytest.fixture(scope="module")
def pooled():
    return get_embedding(MODEL, spatial=PLACE, temporal=JUNE, backend=FakeProvider())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("notebook") / "ds"
    places = [PointBuffer(15 + i / 100, 48, 320) for i in range(6)] + [PointBuffer(180, -16.5, 640)]
    export_embeddings(MODEL, places, folder, temporal=JUNE, backend=FakeProvider())
    return folder


@pytest.fixture(scope="module")
def index(folder):
    return EmbeddingIndex(folder)


def test_a_token_grid_is_a_geotiff_where_its_tokens_lie(grid, tmp_path):
    path = grid.to_geotiff(tmp_path / "tokens.tif")
    with rasterio.open(path) as file:
        assert (file.count, file.shape, file.crs) == (192, grid.data.shape[1:], grid.meta["crs"])
        np.testing.assert_array_equal(file.read(), grid.data.values)
        for row, column in ((0, 0), (6, 3)):
            x, y = file.xy(row, column)
            assert (x, y) == pytest.approx((float(grid.data["x"][column]), float(grid.data["y"][row])))
        assert file.descriptions[:2] == ("d0", "d1")
        assert file.tags()["request_id"] == grid.meta["request_id"]
    assert [p.name for p in tmp_path.iterdir()] == ["tokens.tif"]


def test_a_vector_and_a_grid_without_a_place_are_no_geotiff(pooled, tmp_path):
    with pytest.raises(SpecError, match=r"is a vector.*OutputSpec\.grid\(\)"):
        pooled.to_geotiff(tmp_path / "v.tif")
    pixels = np.random.default_rng(0).integers(0, 3000, (3, 64, 64))
    nowhere = get_embedding(MODEL, input_chw=pixels, output=OutputSpec.grid())
    with pytest.raises(SpecError, match="no coordinates"):
        nowhere.to_geotiff(tmp_path / "v.tif")
    assert list(tmp_path.iterdir()) == []


def test_hits_are_a_geodataframe_in_their_order(index):
    found = index.search(id=index.places(limit=1).hits[0].id, k=5)
    frame = found.to_geodataframe()
    assert isinstance(frame, geopandas.GeoDataFrame)
    assert frame["unique_id"].tolist() == [hit.unique_id for hit in found.hits]
    assert frame["rank"].tolist() == [1, 2, 3, 4, 5]
    assert frame.crs.to_authority() == ("OGC", "CRS84")
    assert frame.geometry.is_valid.all()
    assert "footprint" not in frame
    across = index.places(bbox=(179, -17, -179, -16)).to_geodataframe()
    assert across.geometry.geom_type.tolist() == ["MultiPolygon"]  # cut at 180°
    assert len(index.places(bbox=(0, 0, 1, 1)).to_geodataframe()) == 0


def test_a_missing_geopandas_is_one_line(index, monkeypatch):
    monkeypatch.setitem(sys.modules, "geopandas", None)
    with pytest.raises(RSEmbedError, match=r"'geopandas'.*pip install 'rs-embed-remoteclip\[notebook\]'"):
        index.places().to_geodataframe()
