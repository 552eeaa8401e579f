"""Copernicus Data Space: JPEG 2000 files in an S3 storage that wants the user's keys, on loopback (moto)."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import boto3
import numpy as np
import pytest
import rasterio
import requests
from affine import Affine
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from moto.server import ThreadedMotoServer
from pyproj import Transformer

from archive_server import Api, serve_api
from rs_embed import PointBuffer, ProviderError, RSEmbedError, SensorSpec, StacProvider, TemporalSpec, fetch_patch
from rs_embed.cli import doctor
from rs_embed.patch import Patch
from rs_embed.providers.registry import resolve
from rs_embed.providers.stac.catalogs import DATA_SPACE
from rs_embed.providers.stac.s3 import s3_address, signed_headers
from rs_embed.settings import S3Keys
from tls_server import new_network, serve_tls

EPSG, N = 32633, 512
GRID = Affine(10, 0, 499_980, 0, -10, 5_300_040)
PRODUCT = "S2A_MSIL2A_20220603T101031_N0510_R022_T33UVP_20240701T101010"
FOLDER = f"Sentinel-2/MSI/L2A/2022/06/03/{PRODUCT}.SAFE"
JUNE = TemporalSpec.range("2022-06-01", "2022-07-01")
KEYS = ("CDSE_S3_ACCESS_KEY", "CDSE_S3_SECRET_KEY")


@dataclass
class Storage:
    """A running S3 storage with one bucket, and keys that may read it."""

    url: str
    access_key: str
    secret_key: str
    bands: dict[str, np.ndarray]


def jpeg2000(path: Path, values: np.ndarray, grid: Affine) -> bytes:
    height, width = values.shape
    shape = {"count": 1, "height": height, "width": width, "dtype": values.dtype, "crs": f"EPSG:{EPSG}"}
    lossless = {"QUALITY": "100", "REVERSIBLE": "YES", "YCBCR420": "NO", "BLOCKXSIZE": 256, "BLOCKYSIZE": 256}
    with rasterio.open(path, "w", driver="JP2OpenJPEG", transform=grid, **shape, **lossless) as file:
        file.write(values, 1)
    return path.read_bytes()


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("AWS_", "CDSE_")):
            monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Storage]:
    """moto, which checks the signature of each request once its keys are made."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    logging.getLogger("werkzeug").disabled = True
    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())
    rng, folder = np.random.default_rng(5), tmp_path_factory.mktemp("files")
    bands = {name: rng.integers(1001, 4001, (N, N)).astype(np.uint16) for name in ("B02", "B03", "B04")}
    bands["SCL"] = np.full((N // 2, N // 2), 4, np.uint8)
    open_to_all = {"region_name": "us-east-1", "aws_access_key_id": "any", "aws_secret_access_key": "any"}
    s3, iam = (boto3.client(name, endpoint_url=url, **open_to_all) for name in ("s3", "iam"))
    s3.create_bucket(Bucket="eodata")
    body_of: dict[str, bytes] = {}
    for name, values in bands.items():
        size_m = 20 if name == "SCL" else 10
        body_of[name] = jpeg2000(folder / f"{name}.jp2", values, GRID * Affine.scale(size_m / 10))
        s3.put_object(Bucket="eodata", Key=f"{FOLDER}/{name}_{size_m}m.jp2", Body=body_of[name])
    half = body_of["B03"][: len(body_of["B03"]) // 2]
    s3.put_object(Bucket="eodata", Key=f"{FOLDER}/half.jp2", Body=half)
    iam.create_user(UserName="user")
    statement = [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]
    policy = json.dumps({"Version": "2012-10-17", "Statement": statement})
    iam.put_user_policy(UserName="user", PolicyName="read", PolicyDocument=policy)
    key = iam.create_access_key(UserName="user")["AccessKey"]
    requests.post(f"{url}/moto-api/reset-auth", data=b"0", timeout=10).raise_for_status()
    yield Storage(url, key["AccessKeyId"], key["SecretAccessKey"], bands)
    server.stop()


def item(**changes: object) -> dict[str, object]:
    """An item as the catalog has it, with the fields that matter."""
    to_lonlat = Transformer.from_crs(EPSG, 4326, always_xy=True)
    corners = [(0, 0), (N, 0), (N, N), (0, N), (0, 0)]
    ring = [list(to_lonlat.transform(*(GRID * corner))) for corner in corners]
    xs, ys = zip(*ring, strict=True)
    assets = {
        f"{name}_{size_m}m": {
            "href": f"s3://eodata/{FOLDER}/{name}_{size_m}m.jp2",
            "type": "image/jp2",
            "gsd": size_m,
            "bands": [] if name == "SCL" else [{"name": name}],
            "alternate": {"https": {"href": "https://download.example/odata/v1/Products(1)/Nodes(a)/$value"}},
        }
        for name, size_m in (("B02", 10), ("B03", 10), ("B04", 10), ("SCL", 20))
    }
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "id": PRODUCT,
        "collection": "sentinel-2-l2a",
        "bbox": [min(xs), min(ys), max(xs), max(ys)],
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"datetime": "2022-06-03T10:10:31.024Z", "eo:cloud_cover": 5.0},
        "assets": assets,
        "links": [],
    } | changes


def fetch(**changes: object) -> Patch:
    lon, lat = Transformer.from_crs(EPSG, 4326, always_xy=True).transform(*(GRID * (N / 2, N / 2)))
    with serve_api(Api([item(**changes)])) as api:
        provider = StacProvider(replace(DATA_SPACE, url=api.url))
        return fetch_patch(PointBuffer(lon, lat, 640), JUNE, SensorSpec(), backend=provider)


@pytest.mark.parametrize("names", [KEYS, ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")], ids=["own", "aws"])
def test_files_are_read_from_s3_with_the_users_keys_which_show_nowhere(storage, monkeypatch, caplog, names):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("CDSE_S3_ENDPOINT", storage.url)
    monkeypatch.setenv(names[0], storage.access_key)
    monkeypatch.setenv(names[1], storage.secret_key)
    before = dict(os.environ)
    patch = fetch()
    top, left = (round(v) for v in (~GRID * (patch.geobox.affine.c, patch.geobox.affine.f))[::-1])
    expected = [storage.bands[b][top : top + 128, left : left + 128] - 1000.0 for b in ("B04", "B03", "B02")]
    np.testing.assert_array_equal(patch.dn, expected)
    [scene] = patch.scenes
    assert (scene.processing_baseline, scene.dn_offset) == ("05.10", -1000.0)  # from the product's name
    assert patch.clear_frac == 1.0
    assert dict(os.environ) == before
    servers = ("moto", "botocore", "werkzeug")
    told = "".join(record.getMessage() for record in caplog.records if not record.name.startswith(servers))
    for secret in (storage.secret_key, storage.access_key):
        assert secret not in told
        assert secret not in repr(patch)


def test_without_keys_one_error_says_where_to_get_them():
    with pytest.raises(ProviderError, match=r"https://eodata-s3keysmanager\..* CDSE_S3_ACCESS_KEY and CDSE_S3_SECRET"):
        fetch()


def test_a_plan_needs_no_keys():
    with serve_api(Api([item()])) as api:
        provider = StacProvider(replace(DATA_SPACE, url=api.url))
        asked = {"spatial": PointBuffer(14.9, 47.8, 640), "temporal": JUNE}
        with pytest.raises(ProviderError, match="S3 keys of your own"):
            fetch_patch(asked["spatial"], asked["temporal"], SensorSpec(), backend=provider)
        from rs_embed import plan_export

        assert plan_export([asked["spatial"]], temporal=JUNE, backend=provider).to_dict()


def test_one_key_of_two_is_refused(monkeypatch):
    assert not doctor._data_space().ok
    monkeypatch.setenv(KEYS[0], "half")
    assert "belong together" in doctor._data_space().found
    with pytest.raises(RSEmbedError, match="CDSE_S3_ACCESS_KEY and CDSE_S3_SECRET_KEY belong together"):
        fetch()


@pytest.mark.parametrize("wrong", KEYS)
def test_keys_that_the_storage_refuses_are_told(storage, monkeypatch, wrong):
    monkeypatch.setenv("CDSE_S3_ENDPOINT", storage.url)
    for name, value in zip(KEYS, (storage.access_key, storage.secret_key), strict=True):
        monkeypatch.setenv(name, "AKIAWRONG" if name == wrong else value)
    with pytest.raises(ProviderError) as told:
        fetch()
    assert "AKIAWRONG" not in str(told.value)
    assert storage.secret_key not in str(told.value)
    assert "check CDSE_S3_ACCESS_KEY and CDSE_S3_SECRET_KEY" in str(told.value)


def test_the_storages_own_certificate_is_checked_against_the_one_ca_bundle(storage, monkeypatch, tmp_path):
    network = new_network(tmp_path)
    with serve_tls(network, storage.url) as port:
        monkeypatch.setenv("CDSE_S3_ENDPOINT", f"127.0.0.1:{port}")
        monkeypatch.setenv(KEYS[0], storage.access_key)
        monkeypatch.setenv(KEYS[1], storage.secret_key)
        for name in ("CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"):
            monkeypatch.delenv(name, raising=False)
        with pytest.raises(ProviderError, match=r"its certificate is not trusted .* set SSL_CERT_FILE"):
            fetch()
        for name in ("CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"):
            monkeypatch.setenv(name, str(network.bundle))
            assert fetch().valid.all()
            monkeypatch.delenv(name)


@pytest.mark.parametrize("token", ["", "a+b/c=="])
def test_requests_are_signed_as_amazons_own_client_signs_them(token):
    url = s3_address("s3://eodata/a b/ü~(1).jp2")
    client = AWSRequest("GET", url)
    S3SigV4Auth(Credentials("AKIA", "secret/+", token or None), "s3", "default").add_auth(client)
    theirs = {name.lower(): value for name, value in client.headers.items()}
    moment = datetime.strptime(theirs["x-amz-date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    ours = signed_headers(url, S3Keys("AKIA", "secret/+", token), moment, "default")
    assert ours == theirs | {"host": "eodata.dataspace.copernicus.eu"}


def test_a_file_that_is_missing_or_cut_short_is_a_fault_and_no_empty_ground(storage, monkeypatch):
    monkeypatch.setenv("CDSE_S3_ENDPOINT", storage.url)
    for name, value in zip(KEYS, (storage.access_key, storage.secret_key), strict=True):
        monkeypatch.setenv(name, value)
    assets = item()["assets"]
    folder = {"href": f"s3://eodata/{FOLDER}/half.jp2"}
    for change, says in ((folder, "half.jp2"), ({"href": "s3://eodata/none.jp2"}, "none.jp2: 404")):
        with pytest.raises(ProviderError, match=says) as told:
            fetch(assets=assets | {"B03_10m": assets["B03_10m"] | change})
        assert "could not be read" in str(told.value)


def test_the_name_cdse_is_its_catalog():
    assert resolve("cdse").name == "cdse"
    assert DATA_SPACE.url == "https://stac.dataspace.copernicus.eu/v1"
