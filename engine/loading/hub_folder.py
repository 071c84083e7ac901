"""A hub model in a folder of the user's: whole or not there, and downloaded once by however many processes want it.

The folder's name appears when the download is complete. A lock beside it lets one process download; the system frees
the lock when that process dies, and the next one goes on with what is there. `engine.loading.resolve` is for the cache.
"""

from __future__ import annotations

import fcntl
import logging
import shutil
from fnmatch import fnmatch
from typing import TYPE_CHECKING

from engine.errors import ModelError
from engine.loading.resolve import HUB_FILES, HUB_ID, hub_errors

if TYPE_CHECKING:
    from pathlib import Path

logger = logging.getLogger(__name__)


def fetch(repo_id: str, folder: Path, revision: str = "main") -> None:
    """Download a model's files into a folder, unless the folder is there.

    Raises:
        ModelError: the hub does not give the model, the model has no safetensors, or the folder cannot be written.
    """
    if folder.exists():
        logger.info("%s is there already", folder)
        return
    if not HUB_ID.fullmatch(repo_id):
        raise ModelError(f"--model {repo_id} is not a hub id (org/name)")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with open(folder.parent / f".{folder.name}.lock", "w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.exists():
                _download(repo_id, revision, folder)
    except OSError as error:
        raise ModelError(f"--out {folder} cannot be written: {error}") from None


def _download(repo_id: str, revision: str, folder: Path) -> None:
    """Download into a hidden folder that belongs to one commit, check that it is whole, then give it its name."""
    from huggingface_hub import HfApi, snapshot_download

    try:
        info = HfApi().model_info(repo_id, revision=revision)
        files = [sibling.rfilename for sibling in info.siblings or ()]
        files = [file for file in files if any(fnmatch(file, pattern) for pattern in HUB_FILES)]
        if not any(file.endswith(".safetensors") for file in files):
            raise ModelError(f"--model {repo_id} has no .safetensors file at {revision}; no other weights are read")
        partial = folder.parent / f".{folder.name}.{info.sha}"
        logger.info("fetching %s at commit %s into %s", repo_id, info.sha, folder)
        snapshot_download(repo_id, revision=info.sha, local_dir=partial, allow_patterns=files)
    except hub_errors() as error:
        reason = str(error).split("\n", 1)[0]
        raise ModelError(f"--model {repo_id}: the hub did not give {revision}: {reason}") from None
    # When the hub stops answering, huggingface_hub may return a folder that an earlier try left half full.
    if missing := [file for file in files if not (partial / file).is_file()]:
        raise ModelError(f"--model {repo_id}: the hub did not give {', '.join(missing)}")
    shutil.rmtree(partial / ".cache", ignore_errors=True)  # huggingface_hub's notes, and what cut downloads left
    partial.rename(folder)  # atomic: same file system
