"""`rs-embed doctor`: the parts that work on this machine, and the remedy for each that does not."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata, util
from itertools import groupby
from pathlib import Path
from urllib.parse import urlparse

import httpx2
import typer

from rs_embed import settings
from rs_embed.certificates import ssl_context, untrusted
from rs_embed.cli import options
from rs_embed.cli.search import MAP_REMEDY
from rs_embed.errors import DISTRIBUTION, RSEmbedError, pip_line

_HUB = "https://huggingface.co"
_TIMEOUT_S = 3.0
_REQUIREMENT = re.compile(r"""(?P<name>[\w.-]+)[^;]*(;.*extra == ['"](?P<extra>\w+)['"])?""")
_EXTRAS_WITHOUT_PACKAGES = ("all", "test")


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check."""

    name: str
    ok: bool
    found: str
    remedy: str = ""
    needed: bool = False  # True where nothing works without it


def doctor(as_json: options.Json = False) -> None:
    """Check this machine and print the remedy for each fault.

    The exit code is 1 if something fails that every command needs.
    """
    machine = [*_packages(), _import_name(), _device(), _sample(), _page(), _connection()]
    findings = [*machine, *_network(), _earth_engine(), _data_space(), _settings()]
    typer.echo(json.dumps([asdict(f) for f in findings], indent=1) if as_json else "\n".join(map(_line, findings)))
    if any(f.needed and not f.ok for f in findings):
        raise typer.Exit(1)


def _line(finding: Finding) -> str:
    mark = "ok" if finding.ok else ("MISSING" if finding.needed else "no")
    remedy = f"\n{'':<26}-> {finding.remedy}" if finding.remedy and not finding.ok else ""
    return f"{mark:<9}{finding.name:<17}{finding.found}{remedy}"


def _packages() -> Iterator[Finding]:
    """Check the packages that the distribution declares: those it needs, then those of each extra."""
    try:
        declared = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        yield Finding("packages", False, f"{DISTRIBUTION} is not installed, only on the path", pip_line(), needed=True)
        return
    matches = [match for match in map(_REQUIREMENT.match, declared) if match]
    for extra, group in groupby(sorted(matches, key=lambda m: m["extra"] or ""), key=lambda m: m["extra"]):
        if extra not in _EXTRAS_WITHOUT_PACKAGES:
            yield _installed([match["name"] for match in group], extra)


def _installed(packages: list[str], extra: str | None) -> Finding:
    installed, missing = [] if extra else [f"python {sys.version.split()[0]}"], []
    for package in packages:
        try:
            installed.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            missing.append(package)
    more = f" and {len(installed) - 4} more" if len(installed) > 4 else ""
    found = f"missing: {', '.join(missing)}" if missing else ", ".join(installed[:4]) + more
    return Finding(f"extra {extra}" if extra else "packages", not missing, found, pip_line(extra), needed=not extra)


def _import_name() -> Finding:
    """Look for PyPI's `rs-embed`, another project with the same import name."""
    try:
        other = metadata.version("rs-embed")
    except metadata.PackageNotFoundError:
        return Finding("import name", True, f"rs_embed is {DISTRIBUTION}")
    remedy = f"pip uninstall rs-embed && pip install --force-reinstall --no-deps {DISTRIBUTION}"
    found = f"another project, rs-embed {other}, installs the same name"
    return Finding("import name", False, found, remedy, needed=True)


def _device() -> Finding:
    import torch

    if torch.cuda.is_available():
        return Finding("device", True, f"cuda: {torch.cuda.get_device_name()}")
    return Finding("device", True, f"cpu, {torch.get_num_threads()} thread(s); no CUDA device")


def _sample() -> Finding:
    from rs_embed.providers.sample import list_samples

    return Finding("sample imagery", True, f"{len(list_samples())} real Sentinel-2 patches (backend 'sample')")


def _page() -> Finding:
    """Look for the map of `rs-embed serve`."""
    if util.find_spec("fastapi") is None:
        return Finding("page", False, "fastapi is not installed", pip_line("web"))
    from rs_embed.web.server import has_page_files

    return Finding("page", has_page_files(), "the map of `rs-embed serve`", MAP_REMEDY)


def _network() -> Iterator[Finding]:
    """Look for RemoteCLIP in the cache of the hub, for the hub, its login, and the catalog of the default backend."""
    from huggingface_hub import get_token, try_to_load_from_cache

    from rs_embed.embedders.cards import find_card
    from rs_embed.providers.stac.catalogs import EARTH_SEARCH

    repo = find_card("remoteclip_s2rgb").checkpoint
    cached = try_to_load_from_cache(repo, "model.safetensors", cache_dir=settings.hub_cache_dir())
    is_cached = isinstance(cached, str) and Path(cached).exists()
    found = f"{repo} is in the cache" if is_cached else f"{repo} (605 MB) is not in the cache"
    remedy = "" if is_cached else "the first use downloads it; or pass --checkpoint FOLDER"
    yield Finding("RemoteCLIP", is_cached, found, remedy)
    hub = os.environ.get("HF_ENDPOINT", _HUB)
    yield _reach("hub", hub, "cached and local weights work without it; behind a proxy set HTTPS_PROXY")
    login = (
        "a token is set" if get_token() else "none, which is enough for public weights (private ones: hf auth login)"
    )
    yield Finding("hub login", True, login)
    yield _reach("Earth Search", EARTH_SEARCH.url, "the sample and local folders work without it")


def _earth_engine() -> Finding:
    """Look for the credentials and the project of backend 'gee', without sending anything."""
    if util.find_spec("ee") is None:
        return Finding("Earth Engine", False, "its client is not installed", pip_line("gee"))
    from rs_embed.providers.gee.session import PROJECT_VARIABLES

    key = os.environ.get("GOOGLE_APPLICATION_CREDENTIALS")  # the client uses it alone where it is set
    config = Path.home() / ".config"
    stores = config / "earthengine" / "credentials", config / "gcloud" / "application_default_credentials.json"
    stored = next((str(path) for path in ([Path(key)] if key else stores) if path.is_file()), None)
    project = next((os.environ[name] for name in PROJECT_VARIABLES if os.environ.get(name)), None)
    missing = f"missing: {key}" if key else "missing"
    found = f"credentials {stored or missing}, project {project or 'of the credentials'}"
    return Finding("Earth Engine", stored is not None, found, "earthengine authenticate; docs/earth-engine.md")


def _data_space() -> Finding:
    """Look for the keys of backend 'cdse', without sending anything."""
    remedy = "set CDSE_S3_ACCESS_KEY and CDSE_S3_SECRET_KEY; docs/catalogs.md"
    try:
        keys = settings.data_space_keys()
    except RSEmbedError as error:
        return Finding("Data Space", False, str(error), remedy)
    found = "S3 keys are set" if keys else "no S3 keys (backend 'cdse' needs them)"
    return Finding("Data Space", keys is not None, found, remedy)


def _settings() -> Finding:
    try:
        backend, fetches, batch = settings.default_backend(), settings.fetch_workers(), settings.batch_size("cpu")
    except RSEmbedError as error:
        return Finding("settings", False, str(error), "unset or correct it", needed=True)
    return Finding("settings", True, f"backend {backend}, {fetches} fetches, batches of {batch}")


def _connection() -> Finding:
    """Tell which certificates and which proxy every connection uses."""
    try:
        bundle, _ = settings.ca_bundle(), ssl_context()
    except RSEmbedError as error:
        return Finding("connections", False, str(error), "correct or unset it", needed=True)
    trusted = f"{bundle.path} ({bundle.variable})" if bundle else "the usual authorities"
    return Finding("connections", True, f"certificates of {trusted}, {settings.https_proxy() or 'no'} proxy")


def _reach(name: str, url: str, remedy: str) -> Finding:
    """Ask a server for its first page's header, by the same certificates and proxy as every other request."""
    host = urlparse(url).hostname
    try:
        with httpx2.Client(verify=ssl_context(), timeout=_TIMEOUT_S) as client:
            client.head(url)
    except RSEmbedError as error:
        return Finding(name, False, f"{host} was not asked", str(error))
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
        fault, _, certificate_remedy = (untrusted(error) or "").partition(": ")
        detail = fault or " ".join(str(error).split()) or type(error).__name__
        return Finding(name, False, f"{host} cannot be reached ({detail})", certificate_remedy or remedy)
    return Finding(name, True, f"{host} answers")
