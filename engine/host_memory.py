"""How much memory this process may still take: what the system has, less where a control group or a limit says so.

Sets such a limit, too. Linux alone: cgroup v1 and v2, of the process and of the groups around it. Imports no torch.
"""

from __future__ import annotations

import contextlib
import resource
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_NO_LIMIT = 1 << 60  # bytes; cgroup v1 writes no limit as a number beyond this


def available_bytes(
    proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup"), *, with_swap: bool = False
) -> int:
    """Bytes that the process can take before the system or a limit stops it; memory of cached files counts as free.

    `with_swap` adds what the system can swap out of others.
    """
    system = _fields(proc / "meminfo")
    free = system["MemAvailable"] + (system.get("SwapFree", 0) if with_swap else 0)
    return max(0, min([free, *_cgroup_rooms(proc, cgroups), *_process_rooms(proc)]))


def resident_bytes(proc: Path = Path("/proc")) -> int:
    """Bytes of memory that the process has now, without what it has of files that are mapped to be read."""
    status = _fields(proc / "self/status")
    return status["RssAnon"] + status["RssShmem"]


def address_space_bytes(proc: Path = Path("/proc")) -> int | None:
    """Bytes that `ulimit -v` leaves to map, files included; None without this limit."""
    return next(_limit_rooms(proc, resource.RLIMIT_AS, "VmSize"), None)


def limit_address_space(num_bytes: int) -> None:
    """Give this process no more address space than so many bytes, or than its limit is already."""
    limits = [limit for limit in resource.getrlimit(resource.RLIMIT_AS) if limit != resource.RLIM_INFINITY]
    most = min([num_bytes, *limits])
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _cgroup_rooms(proc: Path, cgroups: Path) -> Iterator[int]:
    """The limit of each group less what its processes have, of which cached files can be dropped."""
    for line in (proc / "self/cgroup").read_text(encoding="ascii").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            roots, names = [cgroups, cgroups / "unified"], ("memory.max", "memory.current", "")
        elif "memory" in controllers.split(","):
            roots, names = [cgroups / "memory"], ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
        else:
            continue
        own = Path(path.lstrip("/"))
        for root in roots:
            for group in (own, *own.parents):  # a container sees its own group as the root, whatever its path
                with contextlib.suppress(FileNotFoundError):
                    yield from _room(root / group, *names)


def _room(group: Path, limit: str, usage: str, prefix: str) -> Iterator[int]:
    text = (group / limit).read_text(encoding="ascii").strip()
    if text == "max" or int(text) >= _NO_LIMIT:
        return
    stat = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
    cached = sum(int(stat.get(f"{prefix}{kind}_file", 0)) for kind in ("active", "inactive"))
    yield int(text) - max(0, int((group / usage).read_text(encoding="ascii")) - cached)


def _process_rooms(proc: Path) -> Iterator[int]:
    """What `ulimit -v` and `ulimit -d` leave."""
    yield from _limit_rooms(proc, resource.RLIMIT_AS, "VmSize")
    yield from _limit_rooms(proc, resource.RLIMIT_DATA, "VmData")


def _limit_rooms(proc: Path, kind: int, used: str) -> Iterator[int]:
    limit, _ = resource.getrlimit(kind)
    if limit != resource.RLIM_INFINITY:
        yield limit - _fields(proc / "self/status")[used]


def _fields(file: Path) -> dict[str, int]:
    """The sizes in a file of `name: number kB`, in bytes."""
    lines = (line.split() for line in file.read_text(encoding="utf-8").splitlines())
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if words[2:] == ["kB"]}
