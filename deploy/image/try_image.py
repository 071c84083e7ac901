"""`make image-test`: builds the CPU image from package registries alone, runs it, asks it, and measures it.

The base image is debootstrap's, under the name that the Dockerfile gives it; buildah builds and podman runs.
IMAGE_STORE names a folder that keeps images for the next run; without it they are removed.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import machine

if TYPE_CHECKING:
    from collections.abc import Iterator

_REPOSITORY = Path(__file__).resolve().parents[2]
_IMAGE = "localhost/deepseek-serve:test"
_MAX_BYTES = 1.2e9  # of the image's files, without the default model
_LIMITS = (
    '[containers]\ndefault_ulimits = ["nofile=20000:20000", "nproc=96000:96000"]\n'  # where these may not be raised
)
_CONFINED = (
    *("--read-only", "--read-only-tmpfs=false", "--tmpfs=/tmp", "--network=none"),
    *("--cap-drop=all", "--security-opt=no-new-privileges", "--cgroups=disabled"),
)
_MODEL = ("--model", "/models/tiny")
_FORMS = {
    "bfloat16": (*_MODEL, "--dtype", "bfloat16"),
    "float32": (*_MODEL, "--dtype", "float32"),
    "int8": (*_MODEL, "--quantization", "int8"),
}


class Images:
    """buildah and podman over one store of images in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._driver = "overlay" if _can_overlay(folder) else "vfs"  # which copies, on any file system
        (folder / "containers.conf").write_text(_LIMITS)
        self._environment = os.environ | {
            "CONTAINERS_CONF": str(folder / "containers.conf"),
            "BUILDAH_ISOLATION": "chroot",
            "PODMAN_IGNORE_CGROUPSV1_WARNING": "1",
        }

    def run(self, tool: str, *arguments: str, show: bool = False) -> str:
        """Run a tool; its stdout, or nothing where that is shown."""
        store = [f"--root={self._folder}/root", f"--runroot={self._folder}/run"]
        store.append(f"--storage-driver={self._driver}")
        outcome = subprocess.run(
            [tool, *store, *arguments], env=self._environment, stdout=None if show else subprocess.PIPE, text=True
        )
        if outcome.returncode:
            raise SystemExit(f"image-test: '{tool} {' '.join(arguments)}' ended with status {outcome.returncode}")
        return (outcome.stdout or "").strip()

    def close(self) -> None:
        """End what may still run, and release the store's own mount, so that its folder can be removed."""
        self.run("podman", "rm", "--all", "--force", "--time=0")
        subprocess.run(["umount", self._folder / "root/overlay"], stderr=subprocess.DEVNULL, check=False)

    def build(self) -> None:
        """Build the Dockerfile's target cpu, on a base that is made unless the store has it."""
        name = re.findall(r"^ARG BASE=(.+)$", (_REPOSITORY / "Dockerfile").read_text(), re.MULTILINE)[0]
        full_name = f"docker.io/library/{name}"
        if full_name not in self.run("buildah", "images", "--format={{.Name}}:{{.Tag}}"):
            base = machine.make_base(self._folder, name)
            container = self.run("buildah", "from", "scratch")
            self.run("buildah", "copy", "--quiet", container, str(base), "/")
            self.run("buildah", "commit", "--quiet", "--rm", container, full_name)
        layers = f"--layers={str('IMAGE_STORE' in os.environ).lower()}"
        options = ["--pull=never", "--format=docker", layers, "--target=cpu", f"--tag={_IMAGE}"]
        self.run("buildah", "build", *options, *machine.build_options(self._folder), str(_REPOSITORY), show=True)

    def measure(self) -> None:
        """Print the size and the ten largest parts; fail beyond the limit."""
        root = Path(self.run("podman", "image", "mount", _IMAGE))
        sizes: Counter[str] = Counter()
        for path in root.rglob("*"):
            sizes[_part(path.relative_to(root))] += (
                path.lstat().st_size if path.is_symlink() or not path.is_dir() else 0
            )
        self.run("podman", "image", "unmount", _IMAGE)
        weights = sizes.pop("cache/deepseek-serve")
        total = sum(sizes.values())
        print(f"size: {total / 1e6:.0f} MB without the default model, whose weights are {weights / 1e6:.0f} MB")
        for name, size in sizes.most_common(10):
            print(f"{size / 1e6:8.1f} MB  /{name}")
        assert total <= _MAX_BYTES, f"the image is larger than {_MAX_BYTES / 1e6:.0f} MB"

    @contextlib.contextmanager
    def running(self, *arguments: str, options: tuple[str, ...] = ()) -> Iterator[str]:
        """A container that runs the image; leaving it stops the server by SIGTERM and expects a clean end."""
        volume = f"--volume={Path(__file__).with_name('inside.py')}:/inside.py:ro"
        container = self.run("podman", "run", "--detach", *_CONFINED, volume, *options, _IMAGE, *arguments)
        try:
            yield container
            processes = _family(self.run("podman", "inspect", "--format={{.State.Pid}}", container))
            self.run("podman", "kill", "--signal=TERM", container)
            status = self.run("podman", "wait", container)
            assert status == "0", f"status {status} after SIGTERM"
            assert len(processes) >= 3, "an init, the server and its engine were expected"
            assert not [pid for pid in processes if Path("/proc", pid).exists()], "a process is left"
        except BaseException:
            self.run("podman", "logs", container, show=True)
            raise
        finally:
            self.run("podman", "rm", "--force", "--time=0", container)

    def check(self, container: str, name: str) -> dict[str, Any]:
        """Run one of inside.py's checks in a container."""
        answer: dict[str, Any] = json.loads(self.run("podman", "exec", container, "python", "/inside.py", name))
        print(f"{name}: {answer}", flush=True)
        return answer


def _family(pid: str) -> list[str]:
    """A process and all that descend from it."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(member for child in children for member in _family(child))]


def _can_overlay(folder: Path) -> bool:
    """Whether an overlay can be mounted in a folder, as it cannot inside most containers."""
    lower, upper, work, merged = (folder / "overlay" / name for name in ("lower", "upper", "work", "merged"))
    for path in (lower, upper, work, merged):
        path.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "overlay", "-o", f"lowerdir={lower},upperdir={upper},workdir={work}", "overlay", merged]
    if subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode:
        return False
    subprocess.run(["umount", merged], check=True)
    return True


def _part(path: Path) -> str:
    """The part of the image that a file belongs to: a Python package, a library of torch, or a folder."""
    parts = path.parts
    if "site-packages" in parts:
        start = parts.index("site-packages") + 1
        return "/".join(parts[: start + (3 if parts[start : start + 2] == ("torch", "lib") else 1)])
    return "/".join(parts[: 4 if parts[:2] == ("usr", "lib") else 2])


def try_image(images: Images) -> None:
    """Run the image as its users do, and ask it."""
    started = time.time()
    with images.running() as container:  # no argument: the default model, a GGUF file
        answer = images.check(container, "ask")
        print(f"seconds to ready: {answer['ready_at'] - started:.1f}")
        images.run("podman", "healthcheck", "run", container)
        for name in ("confined", "imports", "kernels", "sbom"):
            images.check(container, name)
    volume = ("--volume=models:/models",)
    command = ["make-checkpoint", "--like", "v2-lite", "--out", "/models/tiny"]
    images.run("podman", "run", "--rm", *_CONFINED, *volume, _IMAGE, *command)
    for form, arguments in _FORMS.items():
        print(form)
        with images.running(*arguments, options=volume) as container:
            images.check(container, "ask")


def main() -> None:
    """Build, measure and try, in a mount namespace of their own."""
    if "--isolated" not in sys.argv:
        os.execvp("unshare", ["unshare", "--mount", sys.executable, __file__, "--isolated"])
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # in order with what the tools print
    # crun takes version 1 or 2 of cgroups, and no mixture.
    subprocess.run(["umount", "/sys/fs/cgroup/unified"], stderr=subprocess.DEVNULL, check=False)
    machine.install_tools()
    with contextlib.ExitStack() as stack:
        folder = os.environ.get("IMAGE_STORE") or stack.enter_context(tempfile.TemporaryDirectory())
        images = Images(Path(folder))
        stack.callback(images.close)
        images.build()
        images.measure()
        try_image(images)


if __name__ == "__main__":
    main()
