"""What memory is free, as the system and cgroups say it, in folders that look like /proc and /sys/fs/cgroup."""

import subprocess
import sys

import pytest

from engine import host_memory

GIB = 1 << 30


@pytest.fixture
def proc(tmp_path):
    """A /proc with 8 GiB available, of a process in no limited group."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 16777216 kB\nMemAvailable: 8388608 kB\nHugePages_Total: 0\n")
    status = "Name:\tx\nVmSize:\t1024 kB\nVmData:\t512 kB\nRssAnon:\t100 kB\nRssFile:\t50 kB\nRssShmem:\t1 kB\n"
    (tmp_path / "proc/self/status").write_text(status)
    (tmp_path / "proc/self/cgroup").write_text("0::/\n")
    (tmp_path / "cgroup").mkdir()
    return tmp_path / "proc"


def v2_group(proc, path, limit, current, cached=0):
    group = proc.parent / "cgroup" / path
    group.mkdir(parents=True, exist_ok=True)
    (group / "memory.max").write_text(f"{limit}\n")
    (group / "memory.current").write_text(f"{current}\n")
    (group / "memory.stat").write_text(
        f"anon {current - cached}\nactive_file {cached // 4}\ninactive_file {cached - cached // 4}\n"
    )


def available(proc):
    return host_memory.available_bytes(proc, proc.parent / "cgroup")


def test_without_a_limit_it_is_what_the_system_has(proc):
    assert available(proc) == 8 * GIB
    v2_group(proc, ".", "max", 5 * GIB)
    assert available(proc) == 8 * GIB


def test_swap_is_counted_where_it_is_asked_for(proc):
    with (proc / "meminfo").open("a") as meminfo:
        meminfo.write("SwapFree: 1048576 kB\n")
    assert available(proc) == 8 * GIB
    assert host_memory.available_bytes(proc, proc.parent / "cgroup", with_swap=True) == 9 * GIB


def test_a_limit_counts_without_cached_files(proc):
    """A model that was just downloaded fills a container's memory with its file, which the kernel drops when asked."""
    v2_group(proc, ".", 4 * GIB, 3 * GIB)
    assert available(proc) == GIB
    v2_group(proc, ".", 4 * GIB, 3 * GIB, cached=2 * GIB)
    assert available(proc) == 3 * GIB
    v2_group(proc, ".", 4 * GIB, 5 * GIB)
    assert available(proc) == 0
    v2_group(proc, ".", 40 * GIB, 5 * GIB)
    assert available(proc) == 8 * GIB


def test_the_tightest_of_the_groups_around_the_process_counts(proc):
    (proc / "self/cgroup").write_text("0::/system.slice/run.scope\n")
    v2_group(proc, "system.slice/run.scope", 7 * GIB, 0)
    assert available(proc) == 7 * GIB
    v2_group(proc, "system.slice", 6 * GIB, 4 * GIB)
    assert available(proc) == 2 * GIB


def test_the_limit_of_cgroup_v1(proc):
    (proc / "self/cgroup").write_text("5:cpu,cpuacct:/a\n4:hugetlb,memory:/docker/abc\n0::/\n")
    group = proc.parent / "cgroup/memory"  # a container sees its own group here, whatever its path
    group.mkdir()
    (group / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert available(proc) == 8 * GIB
    (group / "memory.limit_in_bytes").write_text(f"{3 * GIB}\n")
    (group / "memory.usage_in_bytes").write_text(f"{2 * GIB}\n")
    (group / "memory.stat").write_text(f"inactive_file 7\ntotal_inactive_file {GIB}\ntotal_active_file 0\n")
    assert available(proc) == 2 * GIB


def test_resident_memory_is_without_mapped_files(proc):
    assert host_memory.resident_bytes(proc) == 101 * 1024


@pytest.mark.parametrize("flag", ["RLIMIT_AS", "RLIMIT_DATA"])
def test_the_limits_of_a_process_count(flag):
    code = f"""
import resource
from engine import host_memory
resource.setrlimit(resource.{flag}, ({GIB}, {GIB}))
print(host_memory.available_bytes())
"""
    room = int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
    assert GIB // 2 < room < GIB


@pytest.mark.parametrize(("own", "expected"), [(None, GIB), (GIB // 2, GIB // 2), (2 * GIB, GIB)])
def test_a_limit_that_is_lower_already_is_kept(own, expected):
    code = f"""
import resource
from engine import host_memory
if {own}:
    resource.setrlimit(resource.RLIMIT_AS, ({own}, {own}))
assert (host_memory.address_space_bytes() is None) is ({own} is None)
host_memory.limit_address_space({GIB})
print(*resource.getrlimit(resource.RLIMIT_AS))
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == [str(expected)] * 2
