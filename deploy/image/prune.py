"""Removes from the CPU image's site-packages what serving never imports. `make image-test` serves from what is left."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

UNUSED = {  # pattern below site-packages: why nothing misses it
    "torch/include": "headers, for building C++ extensions",
    "torch/share": "CMake's files, for the same",
    "torch/bin/protoc*": "the compiler of protocol buffers, for building torch",
    "torch/testing/_internal/[dgo]*": "torch's own tests: their cases; common_dtype and logging_tensor are imported",
    "torch/testing/_internal/common_[!d]*": "their tools",
    "torch/testing/_internal/__pycache__": "of both",
    "torch/_inductor": "the compiler behind torch.compile, which the engine never calls",
    "sympy*": "symbolic shapes, for torch.compile",
    "isympy.py": "sympy's shell",
    "mpmath*": "sympy's numbers",
    "networkx*": "partitions graphs for torch.compile",
    "numpy/**/tests": "numpy's own tests",
    "numpy/f2py": "wraps Fortran sources",
    "fastapi_offline/static/redoc*": "another page for the API's reference; Swagger UI's is served",
    "pip*": "the image is complete: nothing is installed later",
    "setuptools*": "builds packages; torch wants it for C++ extensions",
    "pkg_resources": "setuptools' second package",
    "_distutils_hack": "setuptools' third",
    "distutils-precedence.pth": "imports _distutils_hack at each start",
}
STRIPPED = ("torch/lib/*.so*",)  # symbol tables: for debuggers; the loader has its own


def main(folder: Path) -> None:
    """Prune a site-packages folder and print what each entry freed."""
    total = _size(folder)
    for pattern, reason in UNUSED.items():
        before = _size(folder)
        for path in list(folder.glob(pattern)):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        sys.stdout.write(f"{(before - _size(folder)) / 1e6:8.1f} MB  {pattern}: {reason}\n")
    before = _size(folder)
    for pattern in STRIPPED:
        subprocess.run(["strip", "--strip-unneeded", *folder.glob(pattern)], check=True)
    sys.stdout.write(f"{(before - _size(folder)) / 1e6:8.1f} MB  symbols of {', '.join(STRIPPED)}\n")
    sys.stdout.write(f"{total / 1e6:.0f} MB before, {_size(folder) / 1e6:.0f} MB after\n")


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
