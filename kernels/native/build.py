"""Compile kernels/*/cpu.cpp into one shared library for each instruction set; needs a C++ compiler and nothing else.

Called when the package is installed (hatch_build.py), or by hand: `python kernels/native/build.py`. Imports nothing of
the project.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ISAS = {  # name -> what the compiler may use; the loader picks the first that the CPU has
    "avx512": ["-march=x86-64-v4", "-mprefer-vector-width=512"],
    "avx2": ["-march=x86-64-v3"],
}
_FLAGS = [
    "-std=c++17",
    "-O3",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",
    "-fopenmp",
    "-shared",
    "-fPIC",
    "-Wno-psabi",
]


def library_path(isa: str) -> Path:
    """Where the library for an instruction set lies, built or not."""
    return HERE / f"libkernels_{isa}.so"


def build() -> list[Path]:
    """Compile what is older than its sources.

    Returns:
        The libraries, or nothing where there is no compiler.

    Raises:
        subprocess.CalledProcessError: the compiler refused the sources.
    """
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None or os.uname().machine != "x86_64":
        return []
    sources = sorted(HERE.parent.glob("*/cpu.cpp"))
    newest = max(path.stat().st_mtime for path in (*sources, HERE / "common.h", Path(__file__)))
    libraries = []
    for isa, flags in ISAS.items():
        path = library_path(isa)
        if not path.exists() or path.stat().st_mtime < newest:
            unfinished = path.with_suffix(f".{os.getpid()}")
            subprocess.run([compiler, *_FLAGS, *flags, *map(str, sources), "-o", str(unfinished)], check=True)
            unfinished.replace(path)  # atomic, and safe for a process that has the old one loaded
        libraries.append(path)
    return libraries


if __name__ == "__main__":
    sys.stdout.write(
        "".join(f"{path}\n" for path in build()) or "no C++ compiler for this machine; nothing was built\n"
    )
