"""Confines its own process, then runs `program.py` of its working folder. sandbox.py starts it, and nothing imports it.

Landlock leaves the process Python's own files to read, and nothing to write. Seccomp leaves it the system calls of a
computation: no process or thread, no program, no socket, no signal. Limits bound memory, seconds and open files.
It reports `ready`, then the token that waits on standard input if the program ended well, else what went wrong.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import resource
import sys
from typing import NoReturn

_SYSTEM_CALLS = """
    read readv pread64 write writev lseek open openat close fstat stat lstat newfstatat statx access faccessat
    faccessat2 readlink readlinkat getcwd getdents64 dup dup2 dup3 mmap munmap mprotect mremap brk madvise futex
    rt_sigaction rt_sigprocmask rt_sigreturn sigaltstack restart_syscall getpid gettid getppid getuid geteuid getgid
    getegid clock_gettime clock_getres clock_nanosleep nanosleep gettimeofday time getrandom sysinfo uname getrusage
    times sched_yield sched_getaffinity set_robust_list rseq exit exit_group
"""
# Of fcntl's commands, those of descriptors: F_SETOWN with F_SETSIG and O_ASYNC would send a signal to any process.
_FCNTL_COMMANDS = (fcntl.F_DUPFD, fcntl.F_DUPFD_CLOEXEC, fcntl.F_GETFD, fcntl.F_SETFD, fcntl.F_GETFL)
_READABLE = ("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/etc/ld.so.cache")
_MAX_OPEN_FILES = 32

# linux/landlock.h
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_GET_VERSION, _PATH_BENEATH = 1, 1
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_RIGHTS_BY_VERSION = {1: 13, 2: 14, 3: 15, 5: 16}  # how many file rights each version knows
_PR_SET_NO_NEW_PRIVS = 38  # linux/prctl.h

# seccomp.h
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_EQUAL = 4


class _Comparison(ctypes.Structure):
    """seccomp.h's scmp_arg_cmp: a system call's argument, by its place, and what it is compared with."""

    _fields_ = (
        ("argument", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("value", ctypes.c_uint64),
        ("second", ctypes.c_uint64),
    )


def main() -> None:
    """Confine, run, report."""
    memory, seconds = map(int, sys.argv[1:])
    report = os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (1, 2):
        os.dup2(null, stream)
    with open("program.py", encoding="utf-8", errors="surrogatepass") as file:
        source = file.read()
    try:
        _limit(memory, seconds)
        _leave_no_files()
        _leave_few_system_calls()
    except OSError as error:
        _end(report, f"{error.strerror}\n".encode())
    os.write(report, b"ready\n")
    try:
        exec(compile(source, "program.py", "exec"), {"__name__": "__main__"})  # noqa: S102  # nosec B102  # what this file is for
    except BaseException as error:  # noqa: BLE001  # the program's own, whatever it is
        _end(report, type(error).__name__.encode(errors="replace"))
    _end(report, os.read(0, 64))


def _end(report: int, text: bytes) -> NoReturn:
    os.write(report, text)
    os._exit(0)  # threads and exit handlers of the program have no say


def _limit(memory: int, seconds: int) -> None:
    for kind, limit in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, _MAX_OPEN_FILES),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (limit, limit))


def _leave_no_files() -> None:
    """Restrict this process by Landlock to reading Python's files and its working folder."""
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(_CREATE_RULESET, None, 0, _GET_VERSION)
    if version < 1:
        raise OSError(errno.ENOSYS, "this kernel has no Landlock (Linux 5.13, and `landlock` among its lsm= modules)")
    count = max(rights for known, rights in _RIGHTS_BY_VERSION.items() if known <= version)
    handled = ctypes.c_uint64((1 << count) - 1)
    ruleset = _checked(libc.syscall(_CREATE_RULESET, ctypes.byref(handled), 8, 0), "landlock_create_ruleset")
    for path in (os.path.join(sys.base_prefix, "lib"), *_READABLE, os.getcwd()):
        if os.path.exists(path):
            rights = _READ_FILE | _READ_DIR if os.path.isdir(path) else _READ_FILE
            parent = os.open(path, os.O_PATH)
            rule = rights.to_bytes(8, sys.byteorder) + parent.to_bytes(4, sys.byteorder)  # packed
            _checked(libc.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, rule, 0), "landlock_add_rule")
            os.close(parent)
    _checked(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "PR_SET_NO_NEW_PRIVS")
    _checked(libc.syscall(_RESTRICT_SELF, ruleset, 0), "landlock_restrict_self")
    os.close(ruleset)


def _leave_few_system_calls() -> None:
    """Let every system call but those above fail with EPERM, by libseccomp."""
    try:
        library = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    except OSError:
        raise OSError(errno.ENOENT, "libseccomp.so.2 is not installed (apt install libseccomp2)") from None
    library.seccomp_init.restype = ctypes.c_void_p
    rules = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(_ERRNO | errno.EPERM)))
    for name in _SYSTEM_CALLS.split():
        number = library.seccomp_syscall_resolve_name(name.encode())
        library.seccomp_rule_add_array(rules, ctypes.c_uint32(_ALLOW), number, 0, None)  # fails where there is none
    number = library.seccomp_syscall_resolve_name(b"fcntl")
    for command in _FCNTL_COMMANDS:
        rule = _Comparison(1, _EQUAL, command, 0)
        added = library.seccomp_rule_add_array(rules, ctypes.c_uint32(_ALLOW), number, 1, ctypes.byref(rule))
        _checked(added, "seccomp_rule_add")
    _checked(library.seccomp_load(rules), "seccomp_load")


def _checked(result: int, what: str) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{what} failed: {os.strerror(ctypes.get_errno() or -result)}")
    return result


if __name__ == "__main__":
    main()
