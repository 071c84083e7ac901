"""Fills the virtual environment of `make install`, and says what it does: a line for each step, with its seconds.

Without a GPU, torch comes from PyTorch's index of CPU builds, which saves four gigabytes; if that index does not
answer, it comes from pip's own. TORCH_INDEX names another index; empty is none. Needs nothing but Python and its venv.
"""

from __future__ import annotations

import glob
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

CPU_INDEX = "https://download.pytorch.org/whl/cpu"
_PROBE_TIMEOUT = 5  # seconds in which the index must answer
_SHOWN = 30  # lines of pip's output after a failure


def main(folder: Path) -> int:
    """Install the project of the working directory with what its tests need; the exit status."""
    if sys.version_info < (3, 11):  # noqa: UP036  # this is where an older one is told
        sys.stderr.write(f"Python 3.11 or newer is needed; this is {sys.version.split()[0]} (make PYTHON=python3.12)\n")
        return 1
    import tomllib  # since 3.11

    started, pip = time.monotonic(), [str(folder / "bin" / "python"), "-m", "pip"]
    with open("pyproject.toml", "rb") as file:
        project = tomllib.load(file)["project"]
    requirements = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    torch = next(requirement for requirement in requirements if requirement.startswith("torch"))
    if not _succeeds([*pip, "--version"]):
        shutil.rmtree(folder, ignore_errors=True)
        _step(f"{folder} with Python {sys.version.split()[0]}", [sys.executable, "-m", "venv", str(folder)], folder)
    index, build = torch_index(os.environ, has_gpu(), lambda url: answers(pip, url))
    _step(f"PyTorch: {build}", [*pip, "install", torch, *(["--extra-index-url", index] if index else [])], folder)
    _step(f"{len(requirements) - 1} packages to run and test with", [*pip, "install", *requirements], folder)
    kernels = "deepseek-serve, its CPU kernels compiled for this machine (one to five minutes)"
    _step(kernels, [*pip, "install", "--no-deps", "--editable", "."], folder)
    size = sum(os.lstat(path).st_size for path in folder.rglob("*"))
    print(f"installed in {time.monotonic() - started:.0f} s; {folder} has {size / 1e9:.1f} GB", flush=True)
    return 0


def has_gpu() -> bool:
    """Whether this machine shows an NVIDIA GPU or its driver."""
    return bool(glob.glob("/dev/nvidia[0-9]*")) or shutil.which("nvidia-smi") is not None


def torch_index(
    environment: Mapping[str, str], has_gpu: bool, answers: Callable[[str], bool]
) -> tuple[str | None, str]:
    """Return the index that has torch beside pip's own, or None, and in words what is chosen."""
    index = environment.get("TORCH_INDEX", None if has_gpu else CPU_INDEX)
    if not index:
        return None, "the build of pip's index" + (" (there is a GPU)" if has_gpu else "")
    if not answers(index):
        return None, f"the build of pip's index, since {_host(index)} does not answer"
    return index, f"the build of {_host(index)}" + ("" if has_gpu else ", for CPUs (no GPU here)")


def answers(pip: list[str], index: str) -> bool:
    """Whether an index has torch; asked by pip, whose proxy and certificates apply."""
    probe = ["index", "versions", "torch", "--index-url", index, "--retries", "0", "--timeout", str(_PROBE_TIMEOUT)]
    return _succeeds([*pip, *probe], {**os.environ, "PIP_FIND_LINKS": os.devnull})  # wheels on disk do not count


def _host(index: str) -> str:
    """An index as it may be shown: without a password."""
    return index.partition("://")[2].rpartition("@")[2].rstrip("/")


def _succeeds(command: list[str], environment: Mapping[str, str] | None = None) -> bool:
    try:
        return subprocess.run(command, env=environment, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def _step(title: str, command: list[str], folder: Path) -> None:
    """Run one command, its output in a file; on a terminal, its seconds are counted. Exits if it fails."""
    log_path, started = folder.with_name(f"{folder.name}-install.log"), time.monotonic()
    sys.stdout.write(f"  {title} ...")
    sys.stdout.flush()
    with log_path.open("w+") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        while True:
            try:
                process.wait(timeout=1)
                break
            except subprocess.TimeoutExpired:
                if sys.stdout.isatty():
                    sys.stdout.write(f"\r  {title} ... {time.monotonic() - started:.0f} s")
                    sys.stdout.flush()
            except KeyboardInterrupt:
                process.kill()
                process.wait()
                sys.exit("\nstopped")
        log.seek(0)
        lines = log.read().splitlines()
    log_path.unlink()
    if process.returncode != 0:
        sys.stdout.write(" failed\n")
        sys.stdout.flush()
        sys.exit("\n".join([*lines[-_SHOWN:], f"{' '.join(command)} ended with status {process.returncode}"]))
    end = "\r  " + title + " ... " if sys.stdout.isatty() else " "
    sys.stdout.write(f"{end}{time.monotonic() - started:.0f} s \n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
