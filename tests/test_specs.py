from __future__ import annotations

import json
import math
from dataclasses import FrozenInstanceError, asdict
from datetime import date

import numpy as np
import pytest

from rs_embed import BBox, OutputSpec, PointBuffer, SensorSpec, SpecError, TemporalSpec


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: PointBuffer(121.5, 31.2, 0), ("buffer_m", "got 0")),
        (lambda: PointBuffer(121.5, 31.2, -5), ("buffer_m", "-5")),
        (lambda: PointBuffer(math.nan, 31.2, 5), ("lon", "nan")),
        (lambda: PointBuffer(121.5, math.inf, 5), ("lat", "inf")),
        (lambda: PointBuffer("121.5", 31.2, 5), ("lon", "'121.5'")),
        (lambda: PointBuffer(True, 31.2, 5), ("lon", "True")),
        (lambda: PointBuffer(181, 31.2, 5), ("longitude 181",)),
        (lambda: PointBuffer(31.2, 121.5, 5), ("latitude 121.5", "swapped")),
        (lambda: PointBuffer(0, 84.5, 5), ("84.5", "UTM")),
        (lambda: PointBuffer(0, -80.5, 5), ("-80.5", "UTM")),
        (lambda: PointBuffer(0, 0, 5, "EPSG:3857"), ("EPSG:4326", "EPSG:3857")),
        (lambda: BBox(10, 0, 5, 1), ("minlon 10", "355 degrees", "antimeridian", "swap")),
        (lambda: BBox(180, 0, -180, 1), ("no area",)),
        (lambda: BBox(170, 85, -170, 86), ("85", "UTM")),
        (lambda: BBox(0, 1, 1, 0), ("minlat 1", "swap")),
        (lambda: BBox(0, 0, 0, 1), ("no area", "PointBuffer")),
        (lambda: BBox(0, 0, 1, 85), ("85", "UTM")),
        (lambda: BBox(0, 0, 1, math.nan), ("maxlat", "nan")),
        (lambda: TemporalSpec.range("2022-09-01", "2022-06-01"), ("reversed", "2022-09-01")),
        (lambda: TemporalSpec.range("2022-09-01", "2022-09-01"), ("empty", "'2022-09-02'")),
        (lambda: TemporalSpec.range("2022-9-1", "2022-10-01"), ("YYYY-MM-DD", "'2022-9-1'")),
        (lambda: TemporalSpec.range("2022-02-30", "2022-10-01"), ("2022-02-30",)),
        (lambda: TemporalSpec.year(2022.5), ("2022.5",)),
        (lambda: TemporalSpec("summer", "2022-06-01", "2022-09-01"), ("'summer'",)),
        (lambda: SensorSpec(scale_m=0), ("scale_m", "0")),
        (lambda: SensorSpec(cloudy_pct=101), ("cloudy_pct", "101")),
        (lambda: SensorSpec(fill_value=math.nan), ("fill_value", "nan")),
        (lambda: SensorSpec(composite="mean"), ("composite", "'mean'", "'median'")),
        (lambda: SensorSpec(cloud_mask="s2cloudless"), ("cloud_mask", "'scl'")),
        (lambda: SensorSpec(max_scenes=0), ("max_scenes", "0")),
        (lambda: SensorSpec(max_scenes=True), ("max_scenes", "True")),
        (lambda: SensorSpec(bands=()), ("bands",)),
        (lambda: SensorSpec(bands="B4"), ("bands", "'B4'")),
        (lambda: SensorSpec(bands=("B4", "B99")), ("B99",)),
        (lambda: SensorSpec(bands=("B4", "B04")), ("repeated",)),
        (lambda: SensorSpec(collection="LANDSAT/LC08"), ("LANDSAT/LC08", "sentinel-2-l2a")),
        (lambda: SensorSpec(collection="hf:"), ("hf:",)),
        (lambda: SensorSpec(check_input="yes"), ("check_input", "'yes'")),
        (lambda: OutputSpec("tokens"), ("'tokens'", "'grid'")),
        (lambda: OutputSpec.pooled("max"), ("'max'", "'projected'")),
        (lambda: OutputSpec("grid", "mean"), ("'mean'",)),
    ],
)
def test_an_impossible_spec_is_refused_with_its_value(build, says):
    with pytest.raises(SpecError) as error:
        build()
    for text in says:
        assert text in str(error.value)


def test_specs_are_frozen_hashable_and_json_ready():
    specs = [
        PointBuffer(121.5, 31.2, 2048),
        BBox(0, 0, 1, 1),
        TemporalSpec.range("2022-06-01", "2022-09-01"),
        TemporalSpec.year(2022),
        SensorSpec(),
        OutputSpec.grid(),
    ]
    assert len({*specs, *specs}) == len(specs)
    for spec in specs:
        json.dumps(asdict(spec), allow_nan=False)
        with pytest.raises((FrozenInstanceError, AttributeError)):
            spec.__setattr__(next(iter(asdict(spec))), 0)


def test_places_take_positions_and_keywords_in_the_order_of_the_contract():
    assert PointBuffer(1, 2, 3) == PointBuffer(lon=1, lat=2, buffer_m=3, crs="EPSG:4326")
    assert BBox(0, 1, 2, 3) == BBox(minlon=0, minlat=1, maxlon=2, maxlat=3)


def test_equal_numbers_make_equal_specs_whatever_their_type():
    assert PointBuffer(np.float64(1), np.float32(2), np.int64(3)) == PointBuffer(1, 2, 3)
    assert json.dumps(asdict(PointBuffer(1, 2, 3))) == json.dumps(asdict(PointBuffer(1.0, 2.0, 3.0)))


def test_a_range_is_half_open_and_takes_dates():
    assert TemporalSpec.range(date(2022, 6, 1), date(2022, 9, 1)) == TemporalSpec.range("2022-06-01", "2022-09-01")
    assert TemporalSpec.year(2022).end == "2023-01-01"


def test_band_names_are_brought_to_one_form():
    assert SensorSpec(bands=("B04", "green", "b2")).bands == ("B4", "B3", "B2")


def test_the_seeds_defaults_hold():
    sensor = SensorSpec()
    assert sensor.collection == "COPERNICUS/S2_SR_HARMONIZED"
    assert sensor.bands == ("B4", "B3", "B2")
    assert (sensor.scale_m, sensor.cloudy_pct, sensor.composite, sensor.fill_value) == (10, 30, "median", 0.0)
    assert OutputSpec.pooled() == OutputSpec.pooled("mean") == OutputSpec("pooled")


def test_the_collection_can_hold_a_checkpoint_instead():
    sensor = SensorSpec(collection="hf:MVRL/remote-clip-vit-base-patch32")
    assert sensor.checkpoint == "MVRL/remote-clip-vit-base-patch32"
    assert sensor.product == "COPERNICUS/S2_SR_HARMONIZED"
