"""Files of a hub repo, `repo[@revision][:file]`, cached or downloaded. A cached file is used without a request."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from shutil import disk_usage
from urllib.parse import urlsplit

import huggingface_hub
from huggingface_hub import constants, errors
from huggingface_hub.file_download import repo_folder_name

from rs_embed import settings
from rs_embed.certificates import untrusted
from rs_embed.clip import hub_client
from rs_embed.clip.formats import CONFIG_FILES, TOKENIZER_FILE
from rs_embed.clip.tokenizer import Tokenizer
from rs_embed.errors import CheckpointError
from rs_embed.retry import HUB

CLIP_TOKENIZER_REPO = "openai/clip-vit-base-patch32"
_COMPANIONS = (*CONFIG_FILES, TOKENIZER_FILE)  # downloaded with the weights if the repo has them
_API_BYTES = 16 << 20
_COMPANION_BYTES = 32 << 20  # a tokenizer of a million words has about 60 bytes for each
_LARGEST_BYTES = 64 << 30
_REPO = re.compile(r"(?P<id>[\w-][\w.-]*(?:/[\w-][\w.-]*)?)(?:@(?P<revision>[^:@]+))?(?::(?P<file>[^:]+))?")


@dataclass(frozen=True, slots=True)
class HubRepo:
    """A model repository of the hub at a revision."""

    id: str
    revision: str = "main"
    file: str | None = None  # one weights file of several

    def __str__(self) -> str:
        return self.id + (f"@{self.revision}" if self.revision != "main" else "")


def resolve_tokenizer(weights: Path) -> Tokenizer:
    """Load the tokenizer beside a checkpoint's weights, else CLIP's from the hub, else from an installed open_clip."""
    beside = weights.parent / TOKENIZER_FILE
    if beside.is_file():
        return Tokenizer.from_file(beside)
    repo = HubRepo(CLIP_TOKENIZER_REPO)
    if (file := _cached(repo, TOKENIZER_FILE)) is not None:
        return Tokenizer.from_file(file)
    try:
        return Tokenizer.from_file(_download(repo, TOKENIZER_FILE, None, most=_COMPANION_BYTES))
    except CheckpointError as error:
        tokenizer = Tokenizer.from_open_clip_merges()
        if tokenizer is None:
            raise CheckpointError(
                f"no {TOKENIZER_FILE} beside {weights}, and CLIP's is not available ({error}); copy one there, or "
                "`pip install open-clip-torch`, whose vocabulary is then used"
            ) from error
        return tokenizer


def parse(text: str) -> HubRepo:
    """Parse `owner/name[@revision][:file]`."""
    match = _REPO.fullmatch(text)
    if match is None:
        raise CheckpointError(
            f"checkpoint {text!r} is no file or folder that exists, and no hub repo (owner/name[@revision][:file])"
        )
    file = match["file"]
    if file is not None and (PurePosixPath(file).is_absolute() or ".." in PurePosixPath(file).parts):
        raise CheckpointError(f"checkpoint {text!r} names a file outside of its repo")
    return HubRepo(match["id"], match["revision"] or "main", file)


def _cached(repo: HubRepo, name: str) -> Path | None:
    """Return a file of a repo if it is cached."""
    folder = snapshot(repo)
    file = folder / name if folder else None
    return file if file is not None and file.is_file() else None


def snapshot(repo: HubRepo) -> Path | None:
    """Return the client's cache folder of a repo at a revision, if it exists; files in `refs/` name commits."""
    root = settings.hub_cache_dir() or Path(constants.HF_HUB_CACHE)
    folder = root / repo_folder_name(repo_id=repo.id, repo_type="model")
    ref = folder / "refs" / repo.revision
    commit = ref.read_text().strip() if ref.is_file() else repo.revision
    found = folder / "snapshots" / commit
    return found if found.is_dir() else None


def download_weights(repo: HubRepo, name: str, sizes: Mapping[str, int | None]) -> Path:
    """Download one weights file of a repo and the files that belong to it; `sizes` are those of `list_files`."""
    if name not in sizes:
        raise CheckpointError(f"the hub repo {repo} has no file {name!r} (it has {', '.join(sorted(sizes)[:8])})")
    folder = PurePosixPath(name).parent
    for companion in _COMPANIONS:
        if (beside := str(folder / companion)) in sizes:
            _download(repo, beside, sizes[beside], most=_COMPANION_BYTES)
    return _download(repo, name, sizes[name])


def list_files(repo: HubRepo) -> dict[str, int | None]:
    """Return the names of the files of a repo with their sizes, as far as the hub tells them, from one request."""

    def ask() -> dict[str, int | None]:
        found = huggingface_hub.HfApi().model_info(
            repo.id, revision=repo.revision, files_metadata=True, timeout=HUB.read_timeout_s
        )
        named = [file for file in found.siblings or () if isinstance(file.rfilename, str)]
        return {file.rfilename: file.size if isinstance(file.size, int) else None for file in named}

    return hub_client.ask(ask, _API_BYTES, lambda error: CheckpointError(_fault(repo, error)))


def _download(repo: HubRepo, name: str, size: int | None, most: int = _LARGEST_BYTES) -> Path:
    """Download a file, of the size that the hub states and no more."""
    cache = settings.hub_cache_dir() or Path(constants.HF_HUB_CACHE)
    if (size or 0) > most:
        raise CheckpointError(f"{name} of the hub repo {repo} has {size:,} bytes, at most {most:,} are fetched")
    room = disk_usage(next(folder for folder in (cache, *cache.absolute().parents) if folder.exists())).free
    if (size or 0) > room:
        raise CheckpointError(
            f"{name} of the hub repo {repo} has {(size or 0) / 1e6:,.0f} MB, and {cache} has room for "
            f"{room / 1e6:,.0f} MB: make room, or set HF_HOME to a folder on another disk"
        )
    download = partial(
        huggingface_hub.hf_hub_download,
        repo.id,
        name,
        revision=repo.revision,
        cache_dir=cache,
        etag_timeout=HUB.read_timeout_s,
    )
    limit = min(most, room) if size is None else size
    return Path(hub_client.ask(download, limit, lambda error: CheckpointError(_fault(repo, error, name))))


_WITHOUT = "; a local copy passed as checkpoint='FOLDER' works without the hub, as does the model clip_eurosat_s2rgb"


def _fault(repo: HubRepo, error: Exception, name: str | None = None) -> str:
    """Return an error text with its remedy, built from the status alone, because the client's texts hold URLs."""
    what = f"{name} of the hub repo {repo}" if name else f"the hub repo {repo}"
    hub = urlsplit(constants.ENDPOINT).hostname
    if isinstance(error, errors.OfflineModeIsEnabled):
        return f"{what} is not cached and HF_HUB_OFFLINE is set: unset it to download{_WITHOUT}"
    if isinstance(error, errors.GatedRepoError):
        return f"{what} is gated: accept its terms on the hub, then `hf auth login`{_WITHOUT}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"the hub repo {repo.id} has no revision {repo.revision!r}"
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code if error.response is not None else 0
        if status in (401, 403, 404):  # the hub answers 401 for a repo that does not exist
            return f"{what} is not on {hub}, or is private ({status}): check its name, or `hf auth login`{_WITHOUT}"
        return f"{hub} answered {status} for {what}: try again later{_WITHOUT}"
    if isinstance(error, errors.HFValidationError):
        return f"{repo.id!r} is not a hub repo (owner/name)"
    if "onsistency" in str(error) or "ncomplete" in str(error):
        return f"{what} arrived cut short: try again{_WITHOUT}"
    if isinstance(unread := error.__cause__ or error, hub_client.UnreadableDownloadError):
        return f"{hub} {unread}: {what} is not read{_WITHOUT}"
    if isinstance(error, hub_client.NO_HUB):
        return f"{hub} answered for {what} as no hub does ({type(error).__name__}): check HF_ENDPOINT{_WITHOUT}"
    reason = untrusted(error) or type(error).__name__
    return f"{what} is not cached and {hub} cannot be reached ({reason}): connect, or set HF_ENDPOINT{_WITHOUT}"
