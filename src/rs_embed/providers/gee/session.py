"""The Earth Engine client (https://developers.google.com/earth-engine/apidocs): session, limits, errors."""

from __future__ import annotations

import json
import logging
import os
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import requests
from requests.adapters import HTTPAdapter

from rs_embed.answers import Bounds, UnreadableAnswerError, read_answer
from rs_embed.background import within
from rs_embed.certificates import TrustingAdapter, untrusted
from rs_embed.errors import ProviderError, import_extra
from rs_embed.retry import EARTH_ENGINE

T = TypeVar("T")

PROJECT_VARIABLES = ("EE_PROJECT", "GOOGLE_CLOUD_PROJECT")
IN_FLIGHT = 40  # concurrent requests of a project: https://developers.google.com/earth-engine/guides/usage
_ANSWER_BYTES = 64 << 20  # the service's own limit is 48 MB
_KEY_VARIABLE = "GOOGLE_APPLICATION_CREDENTIALS"
_SCOPES = ("https://www.googleapis.com/auth/earthengine", "https://www.googleapis.com/auth/cloud-platform")
_REGISTER = "https://console.cloud.google.com/earth-engine"

_initialising = threading.Lock()
_in_flight = threading.BoundedSemaphore(IN_FLIGHT)
_log = logging.getLogger("rs_embed")


class RequestTooLargeError(ProviderError):
    """Refusal of a request for its size: a smaller request may succeed."""


class UnknownServiceError(ProviderError):
    """Failure that no known remedy matches: it may concern only one of the places in a request."""


_NO_ANSWER = (TypeError, KeyError, AttributeError)  # the client's, for JSON of another shape
_TOO_LARGE = "the request is too large: use a smaller place, a shorter time range, or max_scenes"
_REMEDIES = {  # by a pattern of the service's message; the first match counts
    r"no project found|project is required|required permission to use project|requires a quota project"
    r"|project \S+ (was )?not found": (
        "no usable Cloud project: set EE_PROJECT (or backend='gee:<project>') to a project of yours that is registered "
        f"at {_REGISTER}"
    ),
    r"permission 'earthengine\.|permission 'serviceusage\.": (
        "this account may not use Earth Engine in the project: grant it the roles Earth Engine Resource Writer and "
        "Service Usage Consumer"
    ),
    r"authorize access|could not automatically determine credentials|default credentials were not found"
    r"|cannot be refreshed|invalid_grant|reauthentication|unauthenticated|\b401\b|invalid authentication"
    r"|insufficient authentication scopes|account \S*\s*(is|was) (disabled|deleted)": (
        "not authenticated: run `earthengine authenticate` once, or set GOOGLE_APPLICATION_CREDENTIALS to a service "
        "account's key file"
    ),
    r"has not been used in project|api .*is disabled|not registered to use earth engine|not signed up": (
        f"the project is not set up for Earth Engine: enable the API and register it at {_REGISTER}"
    ),
    r"over \d+ elements|total request size|user memory limit|computation timed out|pixel grid dimensions"
    r"|deadline exceeded|reprojection output too large": _TOO_LARGE,
    r"request payload size": "too many scenes for one request: use a shorter time range, or max_scenes",
    r"too many requests|quota|rate.?limit|too many concurrent|capacity|\b429\b|resource_exhausted": (
        "the quota is exhausted: lower RS_EMBED_REMOTECLIP_FETCH_WORKERS, wait, or check the project's EECU-hours "
        "(https://developers.google.com/earth-engine/guides/noncommercial_tiers)"
    ),
}


def open_client(project: str | None = None) -> ModuleType:
    """Return the client, and initialise it unless the caller has done so. It never prompts the user."""
    ee = import_extra("ee", extra="gee")
    with _initialising:
        _prepare_session(ee)
        if not ee.data.is_initialized():
            _initialise(ee, project or next((v for name in PROJECT_VARIABLES if (v := os.environ.get(name))), None))
        elif project is not None and project != (current := ee.data._get_projects_path().removeprefix("projects/")):
            raise ProviderError(
                f"Earth Engine is already initialised for the project {current!r} and cannot change to {project!r} in "
                "this process: use backend='gee', or another process"
            )
    module: ModuleType = ee
    return module


def _initialise(ee: Any, project: str | None) -> None:
    try:
        ee.Initialize(_credentials(ee), project=project, url=ee.data.HIGH_VOLUME_API_BASE_URL)
        ee.data.setDeadline(EARTH_ENGINE.read_timeout_s * 1000)  # the service itself aborts after five minutes
    except Exception as error:  # noqa: BLE001  (several libraries raise their own; all become one line)
        ee.Reset()  # a client that failed half-way would report that it is initialised
        raise to_provider_error(error) from None


def _prepare_session(ee: Any) -> None:
    """Give the client's session our CA bundle, and a connection for each concurrent request: it keeps ten itself."""
    state: Any = getattr(ee.data, "_get_state", lambda: None)()
    if not hasattr(state, "requests_session"):
        return  # another version of the client, which works with its own session
    session = state.requests_session = state.requests_session or requests.Session()
    if _read not in session.hooks["response"]:
        session.hooks["response"].append(_read)
    for scheme in ("https://", "http://"):
        if type(session.get_adapter(scheme)) is HTTPAdapter:  # a caller's own adapter stays
            session.mount(scheme, TrustingAdapter(pool_maxsize=IN_FLIGHT))


def _read(response: requests.Response, **_: object) -> None:
    read_answer(response, Bounds(_ANSWER_BYTES, EARTH_ENGINE.read_timeout_s))


def _credentials(ee: Any) -> Any:
    """Return a service account's credentials if a key file is set, else the client's stored or default credentials."""
    path = os.environ.get(_KEY_VARIABLE)
    try:
        is_service_account = path and json.loads(Path(path).read_text("utf-8")).get("type") == "service_account"
    except (OSError, ValueError, AttributeError) as error:
        raise ProviderError(
            f"{_KEY_VARIABLE} names {path}, which is no readable key file ({error}): correct or unset it"
        ) from None
    if not is_service_account:
        return ee.data.get_persistent_credentials()
    from google.oauth2.service_account import Credentials

    return Credentials.from_service_account_file(path, scopes=_SCOPES)  # type: ignore[no-untyped-call]


def send(request: Callable[[], T]) -> T:
    """Send a request and return its response; at most 40 are in flight in this process."""
    import ee

    for attempt in range(1, EARTH_ENGINE.attempts + 1):
        try:
            with _in_flight:
                return within(EARTH_ENGINE.deadline_s, request)
        except (EOFError, ValueError, RecursionError, *_NO_ANSWER) as error:  # a truncated or malformed response
            if attempt == EARTH_ENGINE.attempts:
                raise to_provider_error(error) from None
            _log.info("Earth Engine's response was malformed (%s), attempt %s", error, attempt)
            time.sleep(EARTH_ENGINE.pause_s(attempt))
        except (ee.EEException, OSError) as error:
            raise to_provider_error(error) from None
        except Exception as error:
            if type(error).__module__.startswith(("google.auth", "httplib2")):
                raise to_provider_error(error) from None
            raise
    raise AssertionError("unreachable")


def to_provider_error(error: Exception) -> ProviderError:
    """Return a failure of the client as a one-line error with its remedy, without keys and tokens."""
    if isinstance(error, ProviderError):
        return error
    if isinstance(error, UnreadableAnswerError):
        return ProviderError(f"Earth Engine {error}: check HTTPS_PROXY, or try again later")
    if isinstance(error, (RecursionError, *_NO_ANSWER)):
        return ProviderError(f"Earth Engine's answer is of no known shape ({error!r:.200}): check HTTPS_PROXY")
    message = " ".join(str(error).split()) or type(error).__name__
    message = re.sub(r"(ya29\.|Bearer\s+)\S+", "…", message)
    if (problem := untrusted(message)) is not None:
        return ProviderError(f"Earth Engine cannot be reached: {problem}")
    if isinstance(error, OSError) or type(error).__name__ in ("TransportError", "ServerNotFoundError"):
        return ProviderError(f"Earth Engine cannot be reached: check the network or HTTPS_PROXY ({message[:300]})")
    for pattern, remedy in _REMEDIES.items():
        if re.search(pattern, message, re.IGNORECASE):
            kind = RequestTooLargeError if remedy is _TOO_LARGE else ProviderError
            return kind(f"Earth Engine: {remedy} ({message[:300]})")
    return UnknownServiceError(f"Earth Engine: {message[:300]}")
