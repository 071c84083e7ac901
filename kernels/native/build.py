"""Compile kernels/*/*.cpp into one shared library for each instruction set; needs a C++ compiler and nothing else.

Called when the package is installed (hatch_build.py), or by hand: `python kernels/native/build.py`. Imports nothing of
the project. Sources pick their paths by what the compiler defines (`__AMX_BF16__`, `__AVX512BF16__`, ...).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
_OBJECTS = HERE / "objects"  # kept, so that a rebuild compiles what changed
_V4 = ["-march=x86-64-v4", "-mprefer-vector-width=512"]
_V4_BF16 = [*_V4, "-mavx512bf16", "-mavx512vnni"]
ISAS = {  # name -> what the compiler may use; best first: the loader picks the first that the CPU has
    "amx": [*_V4_BF16, "-mamx-tile", "-mamx-bf16", "-mamx-int8"],
    "avx512_bf16": _V4_BF16,  # Zen 4, Cooper Lake
    "avx512": _V4,
    "avx2": ["-march=x86-64-v3"],
}
_FLAGS = [
    "-std=c++17",
    "-O3",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",
    "-fPIC",
    "-Wno-psabi",
]


def library_path(isa: str) -> Path:
    """Where the library for an instruction set lies, built or not."""
    return HERE / f"libkernels_{isa}.so"


def build() -> list[Path]:
    """Compile what is older than its sources, as many files at a time as there are cores.

    Returns:
        The libraries, without those for which the compiler is too old; nothing where there is no compiler.

    Raises:
        subprocess.CalledProcessError: the compiler refused the sources.
    """
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None or os.uname().machine != "x86_64":
        return []
    sources = sorted(HERE.parent.glob("*/*.cpp"))
    shared = max(path.stat().st_mtime for path in (*HERE.parent.glob("*/*.h"), Path(__file__)))
    isas = [isa for isa, flags in ISAS.items() if _knows(compiler, flags)]
    jobs = [(isa, source) for isa in isas for source in sources]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        objects = list(pool.map(lambda job: _compile(compiler, *job, newer_than=shared), jobs))
    for index, isa in enumerate(isas):
        _link(compiler, isa, objects[index * len(sources) : (index + 1) * len(sources)])
    return [library_path(isa) for isa in isas]


def _knows(compiler: str, flags: list[str]) -> bool:
    command = [compiler, *flags, "-E", "-x", "c++", os.devnull]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _compile(compiler: str, isa: str, source: Path, *, newer_than: float) -> Path:
    path = _OBJECTS / isa / f"{source.parent.name}_{source.stem}.o"
    if not path.exists() or path.stat().st_mtime <= max(newer_than, source.stat().st_mtime):
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}")
        subprocess.run([compiler, *_FLAGS, *ISAS[isa], "-c", str(source), "-o", str(unfinished)], check=True)
        unfinished.replace(path)
    return path


def _link(compiler: str, isa: str, objects: list[Path]) -> None:
    path = library_path(isa)
    if path.exists() and path.stat().st_mtime >= max(item.stat().st_mtime for item in objects):
        return
    unfinished = path.with_suffix(f".{os.getpid()}")
    subprocess.run([compiler, "-shared", "-pthread", *map(str, objects), "-o", str(unfinished)], check=True)
    unfinished.replace(path)  # atomic, and safe for a process that has the old one loaded


if __name__ == "__main__":
    sys.stdout.write(
        "".join(f"{path}\n" for path in build()) or "no C++ compiler for this machine; nothing was built\n"
    )
