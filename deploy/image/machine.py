"""What a build borrows from this machine: Debian's tools, pip's and apt's settings, and a base image.

Nothing of it stays in the image: settings and certificates are mounted while commands run.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

_TOOLS = ("buildah", "debootstrap", "podman", "crun")
_MIRROR = os.environ.get("DEBIAN_MIRROR", "http://deb.debian.org/debian")
_PYTHON_SUITE = "bookworm"
_OF_THAT_SUITE = ("python3", "python3-minimal", "libpython3-stdlib", "python3-distutils", "python3-lib2to3")
_MOUNTED = Path("/machine")  # files of this machine, while the image is built
_UNUSED = ("usr/share/doc", "usr/share/info", "usr/share/locale", "usr/share/man", "var/cache/apt", "var/lib/apt/lists")


def install_tools() -> None:
    """Install what is missing of the tools, with apt."""
    if os.getuid() != 0:
        sys.exit("make image-test must run as root: debootstrap and buildah's chroot need it")
    if missing := [tool for tool in _TOOLS if shutil.which(tool) is None]:
        sys.stdout.write(f"apt-get install {' '.join(missing)}\n")
        _run("apt-get", "--quiet=2", "update")
        _run("apt-get", "--quiet=2", "install", "--yes", "--no-install-recommends", *missing)


def make_base(folder: Path, name: str) -> Path:
    """A slim Debian with a Python, as the official python:VERSION-slim-SUITE: no documentation and no translations."""
    version, suite = re.fullmatch(r"python:([\d.]+)-slim-(\w+)", name).groups()  # type: ignore[union-attr]
    base = folder / "base"
    _run("debootstrap", "--variant=minbase", suite, str(base), _MIRROR)
    other = base / "etc/apt/sources.list.d/python.list"  # a Debian of another age may have that Python
    other.write_text(f"deb {_MIRROR} {_PYTHON_SUITE} main\n")
    _write_apt_settings(base / "etc/apt/apt.conf.d/99machine")
    packages = [f"python{version}", f"python{version}-venv", f"libpython{version}-dev"]
    packages += [f"{package}/{_PYTHON_SUITE}" for package in _OF_THAT_SUITE]
    _run("chroot", str(base), "apt-get", "--quiet=2", "update")
    _run("chroot", str(base), "apt-get", "--quiet=2", "install", "--yes", "--no-install-recommends", *packages)
    (base / "usr/local/bin/python3").symlink_to(f"/usr/bin/python{version}")
    for path in (other, base / "etc/apt/apt.conf.d/99machine", *base.glob("usr/lib/**/libpython*.a")):
        path.unlink()
    for unused in _UNUSED:
        shutil.rmtree(base / unused, ignore_errors=True)
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
    _write_apt_settings(apt)
    volumes[str(apt)] = "/etc/apt/apt.conf.d/99machine"
    index = os.environ.get("TORCH_INDEX") or _torch_index(settings.get("index-url", "https://pypi.org/simple"))
    options = ["--secret", f"id=pip,src={pip}", *([f"--build-arg=TORCH_INDEX={index}"] if index else [])]
    return [*options, *(f"--volume={source}:{target}:ro" for source, target in volumes.items())]


def _run(*command: str) -> None:
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    environment.pop("TMPDIR", None)  # which a chroot may lack
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)


def _write_apt_settings(path: Path) -> None:
    """How apt downloads on this machine: proxies, checks."""
    path.write_text(
        subprocess.run(["apt-config", "dump", "Acquire"], capture_output=True, text=True, check=True).stdout
    )


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
