"""What a build borrows from this machine: Debian's tools, pip's and apt's settings, and a base image.

Nothing of it stays in the image: settings and certificates are mounted while commands run.
"""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

_TOOLS = ("buildah", "debootstrap", "podman", "crun")
_MIRROR = os.environ.get("DEBIAN_MIRROR", "http://deb.debian.org/debian")
_MOUNTED = Path("/machine")  # files of this machine, while the image is built
_UNUSED = ("usr/share/doc", "usr/share/info", "usr/share/locale", "usr/share/man", "var/cache/apt", "var/lib/apt/lists")


def install_tools() -> None:
    """Install what is missing of the tools, with apt."""
    if os.getuid() != 0:
        sys.exit("make image-test must run as root: debootstrap and buildah's chroot need it")
    if missing := [tool for tool in _TOOLS if shutil.which(tool) is None]:
        sys.stdout.write(f"apt-get install {' '.join(missing)}\n")
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        for command in (["update"], ["install", "--yes", "--no-install-recommends", *missing]):
            subprocess.run(["apt-get", "--quiet=2", *command], env=environment, stdout=subprocess.DEVNULL, check=True)


def make_base(folder: Path, suite: str) -> Path:
    """A slim Debian: what debootstrap makes, without documentation and translations, as the official one is."""
    base = folder / "base"
    subprocess.run(
        ["debootstrap", "--variant=minbase", suite, str(base), _MIRROR], stdout=subprocess.DEVNULL, check=True
    )
    for name in _UNUSED:
        shutil.rmtree(base / name, ignore_errors=True)
    (base / "var/cache/apt/archives/partial").mkdir(parents=True)
    return base


def build_options(folder: Path) -> list[str]:
    """Options for buildah that lend a build pip's settings, with the files that they name, and apt's."""
    settings = _pip_settings()
    volumes = {}
    for name, value in settings.items():
        for path in (word for word in value.split() if word.startswith("/") and Path(word).exists()):
            volumes[path] = f"{_MOUNTED}{path}"
            settings[name] = settings[name].replace(path, volumes[path])
    pip, apt = folder / "pip.conf", folder / "apt.conf"
    pip.write_text("[global]\n" + "".join(f"{name} = {value}\n" for name, value in settings.items()))
    apt.write_text(subprocess.run(["apt-config", "dump", "Acquire"], capture_output=True, text=True, check=True).stdout)
    volumes[str(apt)] = "/etc/apt/apt.conf.d/99machine"
    index = os.environ.get("TORCH_INDEX") or _torch_index(settings.get("index-url", "https://pypi.org/simple"))
    options = ["--secret", f"id=pip,src={pip}", *([f"--build-arg=TORCH_INDEX={index}"] if index else [])]
    return [*options, *(f"--volume={source}:{target}:ro" for source, target in volumes.items())]


def _pip_settings() -> dict[str, str]:
    """What pip is set to on this machine; the environment comes last, so that it wins."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    lines = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()  # none without pip
    pairs = [line.split("=", 1) for line in sorted(lines, key=lambda line: line.startswith(":env:"))]
    return {key.rpartition(".")[2]: ast.literal_eval(value).strip().replace("\n", " ") for key, value in pairs}


def _torch_index(own: str) -> str | None:
    """Where torch comes from: None where the Dockerfile's index can be reached, else this machine's own index."""
    try:
        with urllib.request.urlopen("https://download.pytorch.org/whl/cpu/torch/", timeout=10):
            return None
    except (urllib.error.URLError, TimeoutError):
        return own
