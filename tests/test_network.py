"""Behind a company's proxy, with its own certificates: each variable holds for every connection."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import ee
import pytest
from google.auth.credentials import AnonymousCredentials

from archive_server import Api, FileServer, Tile, serve_api, serve_files, write_items, write_scene
from earth_engine import serving
from fakes import Hub, serve_hub
from rs_embed import PointBuffer, ProviderError, RSEmbedError, StacProvider, TemporalSpec, fetch_patch
from rs_embed.certificates import ssl_context
from rs_embed.cli import doctor
from rs_embed.grid import transformer
from rs_embed.patch import Patch
from rs_embed.providers.gee import session
from rs_embed.providers.stac.catalogs import StacCatalog
from tls_server import HOST, Network, new_network, serve_proxy, serve_tls

VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")
TILE = Tile("33UVP", 32633, 499_980, 5_300_040, side_px=256)
LON, LAT = transformer(TILE.epsg, 4326).transform(TILE.left + 1280, TILE.top - 1280)
ASKED = {"spatial": PointBuffer(LON, LAT, 320), "temporal": TemporalSpec.range("2022-06-01", "2022-07-01")}


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*VARIABLES, "SSL_CERT_DIR", "HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Network:
    return new_network(tmp_path_factory.mktemp("network"))


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("archive")
    write_items(root / "items.json", [write_scene(root, ".", TILE, "2022-06-03", seed=3)])
    return root


def fetch(network: Network, archive: Path, host: str = "127.0.0.1", plain_catalog: bool = False) -> Patch:
    """Fetch a place whose catalog, tokens and files are on https servers."""
    with serve_files(FileServer(archive, token="sig=1")) as files, serve_tls(network, files.url) as file_port:
        [item] = json.loads((archive / "items.json").read_text())["features"]
        token = archive / "sas" / host.partition(".")[0] / str(item["id"])
        token.parent.mkdir(parents=True, exist_ok=True)
        token.write_text(json.dumps({"token": "sig=1", "msft:expiry": "2099-01-01T00:00:00Z"}))
        for asset in item["assets"].values():
            asset["href"] = f"https://{host}:{file_port}/{asset['href'].removeprefix('./')}"
        with (
            serve_files(FileServer(archive)) as tokens,
            serve_tls(network, tokens.url) as token_port,
            serve_api(Api([item])) as api,
            serve_tls(network, api.url) as port,
        ):
            api.shown_at = api.url if plain_catalog else f"https://{host}:{port}"
            signing = {"sas_token_url": f"https://{host}:{token_port}/sas", "signed_hosts": host}
            catalog = StacCatalog(name="test", url=api.shown_at, collections=("sentinel-2-l2a",), **signing)
            return fetch_patch(**ASKED, backend=StacProvider(catalog))


def earth_engine(network: Network, archive: Path, host: str = "127.0.0.1") -> Patch:
    """Fetch a place from an Earth Engine on https, whose client is opened as ours is."""
    with serving(archive / "items.json") as engine, serve_tls(network, engine.url) as port:
        engine.url = f"https://{host}:{port}"
        session._prepare_session(ee)
        ee.data.setMaxRetries(0)  # its pauses sum up to half a minute
        try:
            ee.Initialize(AnonymousCredentials(), project="test", url=engine.url)
            return fetch_patch(**ASKED, backend="gee:test")
        finally:
            ee.Reset()


HUB = """
import sys
from rs_embed import RSEmbedError
from rs_embed.clip import hub
try:
    print(hub.download_weights(hub.parse("owner/small"), "model.safetensors", hub.list_files(hub.parse("owner/small"))))
except RSEmbedError as error:
    print(error)
"""


def ask_hub(network: Network, cache: Path, host: str = "127.0.0.1") -> str:
    """Download from a hub on https, in a process of its own: its client reads HF_ENDPOINT once."""
    with serve_hub(Hub({"model.safetensors": b"weights"})) as hub, serve_tls(network, hub.url) as port:
        environment = os.environ | {"HF_ENDPOINT": f"https://{host}:{port}", "HF_HOME": str(cache)}
        command = [sys.executable, "-W", "ignore", "-c", HUB]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("variable", VARIABLES)
def test_each_variable_that_names_a_ca_bundle_holds_for_every_connection(
    network, archive, variable, monkeypatch, tmp_path
):
    monkeypatch.setenv(variable, str(network.bundle))
    assert fetch(network, archive).valid.all()
    assert earth_engine(network, archive).valid.all()
    assert ask_hub(network, tmp_path).endswith("model.safetensors")
    with serve_api(Api([])) as api, serve_tls(network, api.url) as port:
        assert doctor._reach("catalog", f"https://127.0.0.1:{port}", "").ok
    assert str(network.bundle) in doctor._connection().found


def test_a_certificate_that_is_not_trusted_is_named_with_the_remedy(network, archive, tmp_path):
    untrusted = (
        r"its certificate is not trusted \([\w -]+\): set SSL_CERT_FILE to the CA bundle \(PEM\) of your network"
    )
    with pytest.raises(ProviderError, match=rf"the catalog 127\.0\.0\.1 cannot be reached: {untrusted}"):
        fetch(network, archive)
    with pytest.raises(ProviderError, match=rf"gave no token for .* \({untrusted}\) \(1 attempt"):
        fetch(network, archive, plain_catalog=True)
    with pytest.raises((ee.EEException, OSError)) as told:
        earth_engine(network, archive)
    assert re.match(f"Earth Engine cannot be reached: {untrusted}", str(session.to_provider_error(told.value)))
    assert "its certificate is not trusted" in ask_hub(network, tmp_path)
    with serve_api(Api([])) as api, serve_tls(network, api.url) as port:
        found = doctor._reach("catalog", f"https://127.0.0.1:{port}", "")
    assert not found.ok
    assert "127.0.0.1 cannot be reached (its certificate is not trusted" in found.found
    assert found.remedy == "set SSL_CERT_FILE to the CA bundle (PEM) of your network"


def test_a_bundle_without_the_authority_is_named_itself(network, archive, monkeypatch, tmp_path):
    other = new_network(tmp_path).bundle
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(other))
    monkeypatch.setenv("SSL_CERT_FILE", str(network.bundle))  # the first variable that is set decides
    with pytest.raises(ProviderError, match=r"not trusted by REQUESTS_CA_BUNDLE='.*pem' .*: set REQUESTS_CA_BUNDLE to"):
        fetch(network, archive)


@pytest.mark.parametrize(("content", "says"), [(None, "does not exist"), ("no certificate", "holds no certificate")])
def test_a_bundle_that_is_none_is_an_error_that_names_its_variable(monkeypatch, tmp_path, content, says):
    file = tmp_path / "bundle.pem"
    if content is not None:
        file.write_text(content)
    monkeypatch.setenv("CURL_CA_BUNDLE", str(file))
    with pytest.raises(RSEmbedError, match=rf"^CURL_CA_BUNDLE='.*bundle\.pem' {says}"):
        ssl_context()
    found = doctor._connection()
    assert not found.ok
    assert "CURL_CA_BUNDLE" in found.found


def test_a_folder_of_certificates_is_a_bundle_too(network, monkeypatch, tmp_path):
    (tmp_path / "company.pem").write_bytes(network.bundle.read_bytes())
    subprocess.run(["openssl", "rehash", str(tmp_path)], check=True, capture_output=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path))
    with serve_api(Api([])) as api, serve_tls(network, api.url) as port:
        assert doctor._reach("catalog", f"https://127.0.0.1:{port}", "").ok


@pytest.fixture
def proxy(network: Network, monkeypatch: pytest.MonkeyPatch) -> Iterator[Network]:
    monkeypatch.setenv("SSL_CERT_FILE", str(network.bundle))
    network.tunnels.clear()
    with serve_proxy(network) as address:
        monkeypatch.setenv("HTTPS_PROXY", address)
        yield network


def test_the_proxy_for_https_leads_every_connection(proxy, archive, tmp_path):
    """The host's name exists for the proxy alone."""
    assert fetch(proxy, archive, HOST).valid.all()
    assert len({t for t in proxy.tunnels if t.startswith(HOST)}) == 3  # catalog, tokens, files
    assert earth_engine(proxy, archive, HOST).valid.all()
    assert ask_hub(proxy, tmp_path, HOST).endswith("model.safetensors")
    assert len({t for t in proxy.tunnels if t.startswith(HOST)}) == 5
    with serve_api(Api([])) as api, serve_tls(proxy, api.url) as port:
        assert doctor._reach("catalog", f"https://{HOST}:{port}", "").ok
    assert "127.0.0.1" in doctor._connection().found


def test_hosts_of_no_proxy_are_reached_without_it(proxy, archive, monkeypatch, tmp_path):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert fetch(proxy, archive).valid.all()
    assert earth_engine(proxy, archive).valid.all()
    assert ask_hub(proxy, tmp_path).endswith("model.safetensors")
    assert proxy.tunnels == []


def test_a_proxys_password_is_not_shown(monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://me:secret@proxy.example:3128")
    assert doctor._connection().found.endswith(", proxy.example:3128 proxy")
