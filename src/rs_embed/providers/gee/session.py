"""The Earth Engine client: initialised once a process, asked politely, its failures told with their remedy.

https://developers.google.com/earth-engine/guides/usage · https://developers.google.com/earth-engine/apidocs
"""

from __future__ import annotations

import json
import logging
import os
import random
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from requests.adapters import HTTPAdapter

from rs_embed.errors import ProviderError, RSEmbedError, missing_package

T = TypeVar("T")

PROJECT_VARIABLES = ("EE_PROJECT", "GOOGLE_CLOUD_PROJECT")
IN_FLIGHT = 40
"""Requests that Earth Engine takes from a project at a time."""
_KEY_VARIABLE = "GOOGLE_APPLICATION_CREDENTIALS"
_ATTEMPTS = 3
"""For an answer that is not what was announced; the client itself repeats 429, 5xx and what breaks on its way, five
times, with growing and random pauses."""
_DEADLINE_MS = 360_000
"""Earth Engine itself gives up on a request after five minutes."""
_SCOPES = ("https://www.googleapis.com/auth/earthengine", "https://www.googleapis.com/auth/cloud-platform")
_REGISTER = "https://console.cloud.google.com/earth-engine"

_starting = threading.Lock()
_in_flight = threading.BoundedSemaphore(IN_FLIGHT)
_log = logging.getLogger("rs_embed")


class TooMuch(ProviderError):
    """Earth Engine refused the size of a request: less at a time may do."""


class Unexplained(ProviderError):
    """Earth Engine failed for a reason that is not in our table: it may be one place's own."""


_REMEDIES: tuple[tuple[str, type[ProviderError], str], ...] = (
    (
        r"no project found|project is required|required permission to use project|requires a quota project"
        r"|project \S+ (was )?not found",
        ProviderError,
        "no Cloud project that may be used: set EE_PROJECT (or backend='gee:<project>') to one of yours that is "
        f"registered at {_REGISTER}",
    ),
    (
        r"permission 'earthengine\.|permission 'serviceusage\.",
        ProviderError,
        "this account may not use Earth Engine in the project: give it the roles Earth Engine Resource Writer and "
        "Service Usage Consumer there",
    ),
    (
        r"authorize access|could not automatically determine credentials|default credentials were not found"
        r"|cannot be refreshed|invalid_grant|reauthentication|unauthenticated|\b401\b|invalid authentication"
        r"|insufficient authentication scopes|account \S*\s*(is|was) (disabled|deleted)",
        ProviderError,
        "not authenticated: run `earthengine authenticate` once, or set GOOGLE_APPLICATION_CREDENTIALS to a service "
        "account's key file",
    ),
    (
        r"has not been used in project|api .*is disabled|not registered to use earth engine|not signed up",
        ProviderError,
        f"the project is not set up for Earth Engine: enable the API and register it at {_REGISTER}",
    ),
    (
        r"over \d+ elements|total request size|user memory limit|computation timed out|pixel grid dimensions"
        r"|deadline exceeded|reprojection output too large",
        TooMuch,
        "too much for one request: take a smaller place, a shorter time range, or max_scenes",
    ),
    (
        r"request payload size",
        ProviderError,
        "too many scenes for one request: take a shorter time range, or max_scenes",
    ),
    (
        r"too many requests|quota|rate.?limit|too many concurrent|capacity|\b429\b|resource_exhausted",
        ProviderError,
        "over its quota: lower RS_EMBED_REMOTECLIP_FETCH_WORKERS, wait, or look at the project's EECU-hours "
        "(https://developers.google.com/earth-engine/guides/noncommercial_tiers)",
    ),
)


def open_client(project: str | None = None) -> ModuleType:
    """The client, initialised unless the caller has done so; it never asks a person anything.

    Args:
        project: a Cloud project; else `EE_PROJECT`, `GOOGLE_CLOUD_PROJECT`, or that of the credentials.

    Raises:
        RSEmbedError: when the client is not installed.
        ProviderError: when it cannot be initialised, with the remedy.
    """
    try:
        import ee
    except ModuleNotFoundError:
        raise RSEmbedError(missing_package("ee", extra="gee")) from None
    with _starting:
        if not ee.data.is_initialized():
            _start(ee, project or next((v for name in PROJECT_VARIABLES if (v := os.environ.get(name))), None))
        elif project is not None and project != (current := _project_of(ee)):
            raise ProviderError(
                f"Earth Engine is initialised already, for the project {current!r}: backend='gee' uses it, and it "
                f"cannot change to {project!r} in this process"
            )
        _keep_connections(ee)
    module: ModuleType = ee
    return module


def _start(ee: Any, project: str | None) -> None:
    """Initialise the client; one that fails half-way is reset, for it would call itself initialised."""
    try:
        ee.Initialize(_credentials(ee), project=project, url=ee.data.HIGH_VOLUME_API_BASE_URL)
        ee.data.setDeadline(_DEADLINE_MS)
    except Exception as error:  # noqa: BLE001  (of several libraries; told in one line)
        ee.Reset()
        raise explained(error) from None


def _keep_connections(ee: Any) -> None:
    """As many as there may be requests: the client's own pool keeps ten, and drops the others with a warning each."""
    state = getattr(ee.data, "_get_state", lambda: None)()
    session = getattr(state, "requests_session", None)
    if session is None:
        return  # another version's client: it works with ten
    for scheme in ("https://", "http://"):
        adapter = session.get_adapter(scheme)
        if type(adapter) is HTTPAdapter and adapter._pool_maxsize < IN_FLIGHT:  # a caller's own stays
            session.mount(scheme, HTTPAdapter(pool_maxsize=IN_FLIGHT))


def _project_of(ee: Any) -> str:
    """What the client was initialised for, by whomever."""
    return str(ee.data._get_projects_path()).removeprefix("projects/")


def _credentials(ee: Any) -> Any:
    """A service account's key file where one is named, else the client's own store or application default."""
    named = os.environ.get(_KEY_VARIABLE)
    if named and _is_service_account(Path(named)):
        from google.oauth2.service_account import Credentials

        return Credentials.from_service_account_file(named, scopes=_SCOPES)  # type: ignore[no-untyped-call]
    return ee.data.get_persistent_credentials()


def _is_service_account(path: Path) -> bool:
    try:
        return bool(json.loads(path.read_text(encoding="utf-8")).get("type") == "service_account")
    except (OSError, ValueError, AttributeError) as error:
        raise ProviderError(f"{_KEY_VARIABLE} names {path}, which is no readable key file ({error})") from None


def ask(question: Callable[[], T]) -> T:
    """Put a question to the service, at most 40 at a time over the whole process.

    Raises:
        ProviderError: with the remedy.
        TooMuch: when less at a time may do.
    """
    import ee

    for attempt in range(1, _ATTEMPTS + 1):
        try:
            with _in_flight:
                return question()
        except (EOFError, ValueError) as error:  # cut off, or not what was announced
            if attempt == _ATTEMPTS:
                raise explained(error) from None
            _log.info("Earth Engine's answer was broken (%s), attempt %s", error, attempt)
            time.sleep(random.uniform(0, 0.5 * 2**attempt))
        except (ee.EEException, OSError) as error:
            raise explained(error) from None
        except Exception as error:
            if type(error).__module__.startswith(("google.auth", "httplib2")):
                raise explained(error) from None
            raise
    raise AssertionError("unreachable")


def explained(error: Exception) -> ProviderError:
    """A failure of the client as one line with its remedy; nothing of a key or token is in it."""
    if isinstance(error, ProviderError):
        return error
    said = " ".join(str(error).split()) or type(error).__name__
    said = re.sub(r"(ya29\.|Bearer\s+)\S+", "…", said)
    if isinstance(error, OSError) or type(error).__name__ in ("TransportError", "ServerNotFoundError"):
        return ProviderError(
            f"Earth Engine cannot be reached: check the network or HTTPS_PROXY (it said: {said[:300]})"
        )
    for pattern, kind, remedy in _REMEDIES:
        if re.search(pattern, said, re.IGNORECASE):
            return kind(f"Earth Engine: {remedy} (it said: {said[:300]})")
    return Unexplained(f"Earth Engine: {said[:300]}")
