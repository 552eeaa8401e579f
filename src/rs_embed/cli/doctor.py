"""`rs-embed doctor`: what works here, and the remedy for what does not."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import util
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from urllib.parse import urlparse

import typer

from rs_embed import settings
from rs_embed.cli import options
from rs_embed.cli.serve import MAP_REMEDY
from rs_embed.errors import DISTRIBUTION, RSEmbedError, pip_line

_CORE = (
    *("numpy", "torch", "safetensors", "huggingface_hub", "tokenizers", "pillow", "xarray", "odc-geo", "rasterio"),
    *("pystac-client", "async-tiff", "httpx2", "pyarrow", "h5netcdf", "ftfy", "typer", "rich"),
)
_HUB = "https://huggingface.co"
_TIMEOUT_S = 3.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    name: str
    ok: bool
    found: str
    remedy: str = ""
    needed: bool = False
    """True when nothing works without it."""


def doctor(as_json: options.Json = False) -> None:
    """Say what works on this machine; exit 1 when something that everything needs does not."""
    checks: tuple[Callable[[], Finding], ...] = (
        _packages,
        _shadowed,
        _device,
        _sample,
        _page,
        _weights,
        _hub,
        _hub_credentials,
        _catalog,
        _earth_engine,
        _variables,
    )
    findings = [check() for check in checks]
    if as_json:
        typer.echo(json.dumps([asdict(f) for f in findings], indent=1))
    else:
        typer.echo("\n".join(_line(f) for f in findings))
    if any(f.needed and not f.ok for f in findings):
        raise typer.Exit(1)


def _line(finding: Finding) -> str:
    mark = "ok" if finding.ok else ("MISSING" if finding.needed else "no")
    remedy = f"\n{'':<26}-> {finding.remedy}" if finding.remedy and not finding.ok else ""
    return f"{mark:<9}{finding.name:<17}{finding.found}{remedy}"


def _packages() -> Finding:
    found, missing = [f"python {sys.version.split()[0]}"], []
    for package in _CORE:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            missing.append(package)
    text = f"missing: {', '.join(missing)}" if missing else ", ".join(found[:4]) + f" and {len(found) - 4} more"
    return Finding("packages", not missing, text, pip_line(), needed=True)


def _shadowed() -> Finding:
    """PyPI's `rs-embed` is another project with the same import name."""
    try:
        other = version("rs-embed")
    except PackageNotFoundError:
        return Finding("import name", True, f"rs_embed is {DISTRIBUTION}")
    remedy = f"pip uninstall rs-embed && pip install --force-reinstall --no-deps {DISTRIBUTION}"
    return Finding(
        "import name", False, f"another project, rs-embed {other}, installs the same name", remedy, needed=True
    )


def _device() -> Finding:
    import torch

    if torch.cuda.is_available():
        return Finding("device", True, f"cuda: {torch.cuda.get_device_name()}")
    return Finding("device", True, f"cpu, {torch.get_num_threads()} thread(s); no CUDA device")


def _sample() -> Finding:
    from rs_embed.providers.sample import list_samples

    try:
        samples = list_samples()
    except RSEmbedError as error:
        return Finding("sample imagery", False, str(error), pip_line(), needed=True)
    return Finding("sample imagery", True, f"{len(samples)} real Sentinel-2 patches (backend 'sample')")


def _page() -> Finding:
    """The map of `rs-embed serve`."""
    if util.find_spec("fastapi") is None:
        return Finding("page", False, "fastapi is not installed", pip_line("web"))
    from rs_embed.web.server import map_is_there

    return Finding("page", map_is_there(), "the map of `rs-embed serve`", MAP_REMEDY)


def _weights() -> Finding:
    from huggingface_hub import try_to_load_from_cache

    from rs_embed.embedders.cards import find_card

    repo = find_card("remoteclip_s2rgb").checkpoint
    cached = try_to_load_from_cache(repo, "model.safetensors", cache_dir=settings.hub_cache_dir())
    if isinstance(cached, str) and Path(cached).exists():
        return Finding("RemoteCLIP", True, f"{repo} is in the cache")
    return Finding(
        "RemoteCLIP",
        False,
        f"{repo} (605 MB) is not in the cache",
        "it is downloaded when first used; or pass --checkpoint FOLDER",
    )


def _hub() -> Finding:
    endpoint = os.environ.get("HF_ENDPOINT", _HUB)
    return _reach("hub", endpoint, "weights that are cached or local work without; behind a proxy set HTTPS_PROXY")


def _hub_credentials() -> Finding:
    from huggingface_hub import get_token

    if get_token() is None:
        return Finding("hub login", True, "none: enough for public weights (private ones: hf auth login)")
    return Finding("hub login", True, "a token is set")


def _catalog() -> Finding:
    from rs_embed.providers.stac.catalogs import EARTH_SEARCH

    return _reach("Earth Search", EARTH_SEARCH.url, "the sample and local folders work without")


def _earth_engine() -> Finding:
    """What backend 'gee' would start with; nothing is sent."""
    if util.find_spec("ee") is None:
        return Finding("Earth Engine", False, "its client is not installed", pip_line("gee"))
    from rs_embed.providers.gee.session import PROJECT_VARIABLES

    key = os.environ.get("GOOGLE_APPLICATION_CREDENTIALS")  # where it is set, nothing else is looked at
    config = Path.home() / ".config"
    stores = config / "earthengine" / "credentials", config / "gcloud" / "application_default_credentials.json"
    stored = next((str(path) for path in ([Path(key)] if key else stores) if path.is_file()), None)
    project = next((os.environ[name] for name in PROJECT_VARIABLES if os.environ.get(name)), None)
    missing = f"missing: {key}" if key else "missing"
    found = f"credentials {stored or missing}, project {project or 'of the credentials'}"
    return Finding("Earth Engine", stored is not None, found, "earthengine authenticate; docs/earth-engine.md")


def _variables() -> Finding:
    try:
        text = f"backend {settings.default_backend()}, {settings.fetch_workers()} fetches, batches of "
        text += str(settings.batch_size("cpu"))
    except RSEmbedError as error:
        return Finding("settings", False, str(error), "unset or correct it", needed=True)
    return Finding("settings", True, text)


def _reach(name: str, url: str, remedy: str) -> Finding:
    """Whether a server's port answers, within seconds; nothing is sent."""
    parsed = urlparse(url)
    port = parsed.port or (443 if parsed.scheme == "https" else 80)
    try:
        socket.create_connection((parsed.hostname or "", port), timeout=_TIMEOUT_S).close()
    except OSError as error:
        return Finding(name, False, f"{parsed.hostname} cannot be reached ({error})", remedy)
    return Finding(name, True, f"{parsed.hostname} answers")
