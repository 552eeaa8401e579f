from __future__ import annotations

import warnings

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st

from rs_embed.composite import SceneImage, clear_statistics, median, mosaic


def scenes(
    rng: np.random.Generator, n: int, shape: tuple[int, int, int], missing: float, dtype: str
) -> list[SceneImage]:
    return [
        SceneImage(rng.integers(0, 10_000, shape).astype(dtype), rng.random(shape[1:]) >= missing) for _ in range(n)
    ]


def median_by_loop(images: list[SceneImage]) -> np.ndarray:
    out = np.full(images[0].dn.shape, np.nan, np.float32)
    for band, row, col in np.ndindex(*out.shape):
        seen = sorted(float(i.dn[band, row, col]) for i in images if i.valid[row, col])
        if seen:
            out[band, row, col] = (seen[(len(seen) - 1) // 2] + seen[len(seen) // 2]) / 2
    return out


def mosaic_by_loop(images: list[SceneImage]) -> np.ndarray:
    out = np.full(images[0].dn.shape, np.nan, np.float32)
    for band, row, col in np.ndindex(*out.shape):
        out[band, row, col] = next((i.dn[band, row, col] for i in images if i.valid[row, col]), np.nan)
    return out


@given(
    st.integers(1, 19), st.sampled_from([0.0, 0.3, 0.9]), st.sampled_from(["uint16", "float32"]), st.integers(0, 2**32)
)
@settings(max_examples=60, deadline=None)
def test_median_and_mosaic_equal_a_loop_over_pixels(n, missing, dtype, seed):
    images = scenes(np.random.default_rng(seed), n, (3, 5, 7), missing, dtype)
    np.testing.assert_array_equal(median(images), median_by_loop(images))
    np.testing.assert_array_equal(mosaic(images), mosaic_by_loop(images))


def test_a_median_over_several_strips_equals_nanmedian():
    images = scenes(np.random.default_rng(1), 8, (3, 410, 410), 0.2, "uint16")
    stack = np.where([i.valid[None] for i in images], [i.dn for i in images], np.nan).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # numpy's own, of pixels that nothing observed
        expected = np.nanmedian(stack, axis=0)
    np.testing.assert_array_equal(median(images), expected.astype(np.float32))


def test_the_largest_dn_is_not_taken_for_missing():
    top = np.full((1, 1, 1), 65_535, np.uint16)
    seen, unseen = np.ones((1, 1), bool), np.zeros((1, 1), bool)
    assert median([SceneImage(top, seen), SceneImage(top - 1, unseen)]).item() == 65_535
    assert np.isnan(median([SceneImage(top, unseen)])).all()


def test_a_full_mosaic_reads_no_further_scene():
    full = SceneImage(np.ones((3, 2, 2), np.float32), np.ones((2, 2), bool))

    def images():
        yield full
        raise AssertionError("read although nothing was missing")

    assert (mosaic(images()) == 1).all()


def test_a_mosaic_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="no image"):
        mosaic([])


def test_masking_by_scene_class_keeps_what_is_clear():
    scl = np.array([[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]], np.uint8)
    image = SceneImage(np.ones((3, 1, 12), np.float32), np.ones((1, 12), bool), scl)
    assert np.flatnonzero(image.masked().valid).tolist() == [2, 4, 5, 6, 7, 11]


def test_clear_statistics_count_observations_and_never_claim_what_nobody_classified():
    valid = np.ones((1, 4), bool)
    dn = np.ones((3, 1, 4), np.float32)
    images = [
        SceneImage(dn, valid, np.array([[4, 4, 8, 9]], np.uint8)),
        SceneImage(dn, valid, np.array([[4, 9, 8, 9]], np.uint8)),
        SceneImage(dn, valid),
    ]
    assert clear_statistics(images) == (0.5, 0.5)
    assert clear_statistics(images[2:]) == (None, None)


def test_clear_statistics_of_a_mosaic_look_at_what_lies_on_top():
    """Under a cloudy scene the clear ones are hidden: a cloudy mosaic must not look like a clean one."""
    dn, all_of_it = np.ones((3, 1, 4), np.float32), np.ones((1, 4), bool)
    half = np.array([[True, True, False, False]])
    images = [
        SceneImage(dn, half, np.full((1, 4), 9, np.uint8)),
        SceneImage(dn, all_of_it, np.full((1, 4), 4, np.uint8)),
    ]
    assert clear_statistics(images) == (1.0, 1.0)
    assert clear_statistics(images, on_top=True) == (0.5, 0.5)
    assert clear_statistics([i.masked() for i in images], on_top=True) == (1.0, 1.0)


def test_a_real_time_series_needs_its_mask(shared):
    file = shared / "time_series" / "l2a_scl_19_dates.nc"
    stored = {}
    for name in ("S2-L2A-B04", "S2-L2A-B03", "S2-L2A-B02", "S2-L2A-SCL"):
        with rasterio.open(f"netcdf:{file}:{name}") as dataset:
            stored[name] = dataset.read()  # (19, 52, 46)
    rgb, scl = np.stack([stored[b] for b in ("S2-L2A-B04", "S2-L2A-B03", "S2-L2A-B02")], axis=1), stored["S2-L2A-SCL"]
    images = [
        SceneImage(d.astype(np.float32), (d > 0).all(axis=0), s.astype(np.uint8)) for d, s in zip(rgb, scl, strict=True)
    ]
    clear_frac, n_clear = clear_statistics(images)
    assert clear_frac is not None
    assert n_clear is not None
    assert clear_frac > 0.9
    assert n_clear <= 4  # of 19 dates only three are clear
    cloudy, clear = median(images), median([i.masked() for i in images])
    assert np.nanmedian(cloudy) > 2 * np.nanmedian(clear)  # an unmasked median of this series is cloud
