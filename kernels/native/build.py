"""Compile kernels/**/*.cpp into one extension module for each instruction set.

Called when the package is installed (hatch_build.py), or by hand: `python kernels/native/build.py [ISA...]`. Needs a
C++ compiler, Python's headers and nanobind; imports nothing of the project. Sources pick their paths by what the
compiler defines (`__AMX_BF16__`, `__AVX512BF16__`, ...). kernels/native/*.cpp and nanobind run before the CPU is known,
so they are compiled for any CPU and linked first: of an inline function that several objects have, the linker takes the
first.
"""

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
_ROOT = HERE.parent
_OBJECTS = HERE / "objects"  # kept, so that a rebuild compiles what changed
_BUILT_FROM = HERE / "_kernels.sources"  # the hash of what the modules were built from, where they were built
_COMPILERS = ("c++", "g++", "clang++")
_V4 = ["-march=x86-64-v4", "-mprefer-vector-width=512"]
_V4_BF16 = [*_V4, "-mavx512bf16", "-mavx512vnni"]
ISAS = {  # name -> what the compiler may use; best first: the loader picks the first that the CPU has (module.cpp)
    "amx": [*_V4_BF16, "-mamx-tile", "-mamx-bf16", "-mamx-int8"],
    "avx512_bf16": _V4_BF16,  # Zen 4, Cooper Lake
    "avx512": _V4,
    "avx2": ["-march=x86-64-v3"],
}
_FLAGS = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-DNDEBUG", "-Wno-psabi"]
_KERNEL_FLAGS = ["-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"]


def module_path(isa: str) -> Path:
    """Where the extension module for an instruction set lies, built or not."""
    return HERE / f"_kernels_{isa}{sysconfig.get_config_var('EXT_SUFFIX')}"


def is_outdated() -> bool:
    """Whether sources have changed since the modules were built here."""
    return _BUILT_FROM.exists() and _BUILT_FROM.read_text() != _hash_of_sources()


def build(isas: list[str] | None = None) -> list[Path]:
    """Compile what is older than its sources and their headers, as many files at a time as there are cores.

    Args:
        isas: instruction sets to build for; all by default.

    Returns:
        The modules, without those for which the compiler is too old; nothing without a compiler or Python's headers.

    Raises:
        subprocess.CalledProcessError: the compiler refused the sources.
    """
    compiler = shlex.split(os.environ.get("CXX", "")) or [path for path in map(shutil.which, _COMPILERS) if path][:1]
    python_headers = Path(sysconfig.get_path("include"))
    if not compiler or os.uname().machine != "x86_64" or not (python_headers / "Python.h").exists():
        return []
    import nanobind  # which an installed package does without

    library = Path(nanobind.source_dir())
    objects_at = _OBJECTS / f"{sys.implementation.cache_tag}-nanobind-{nanobind.__version__}"  # one ABI each
    includes = [nanobind.include_dir(), str(library.parent / "ext/robin_map/include"), python_headers]
    command = [*compiler, *_FLAGS, *(f"-I{path}" for path in includes)]
    portable = [*command, "-O2", "-fno-strict-aliasing"]
    module, sources = HERE / "module.cpp", _hash_of_sources()
    jobs = [
        (portable, path, objects_at / f"{path.stem}.o")
        for path in (library / "nb_combined.cpp", *sorted(HERE.glob("*.cpp")))
        if path != module
    ]
    known = [isa for isa in isas or ISAS if _knows(compiler, ISAS[isa])]
    for isa in known:
        jobs.append(([*portable, f"-DISA={isa}", f"-DNB_DOMAIN={isa}"], module, objects_at / isa / "module.o"))
        jobs += [
            ([*command, *_KERNEL_FLAGS, *ISAS[isa]], path, objects_at / isa / f"{path.parent.name}_{path.stem}.o")
            for path in sorted(_ROOT.rglob("*.cpp"))
            if path.parent != HERE
        ]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        objects = list(pool.map(lambda job: _compile(*job), jobs))
    for isa in known:
        _link(compiler, module_path(isa), [path for path in objects if path.parent in (objects_at, objects_at / isa)])
    modules = [module_path(isa) for isa in known]
    _write_stub(modules)
    _BUILT_FROM.write_text(sources)
    return modules


def _hash_of_sources() -> str:
    digest = hashlib.sha256()
    for path in sorted((*_ROOT.rglob("*.cpp"), *_ROOT.rglob("*.h"))):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _knows(compiler: list[str], flags: list[str]) -> bool:
    command = [*compiler, *flags, "-E", "-x", "c++", os.devnull]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _compile(command: list[str], source: Path, path: Path) -> Path:
    """The object, compiled if it is older than a file that it was made from."""
    files = path.with_suffix(".d")
    if _is_older(path, files):
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished, its_files = path.with_suffix(f".{os.getpid()}"), files.with_suffix(f".{os.getpid()}.d")
        own = source.relative_to(_ROOT) if source.is_relative_to(_ROOT) else source
        arguments = ["-MMD", "-MF", str(its_files), "-c", str(own), "-o", str(unfinished)]
        subprocess.run([*command, *arguments], cwd=_ROOT, check=True)  # so that objects may be copied to another tree
        its_files.replace(files)
        unfinished.replace(path)
    return path


def _is_older(path: Path, files: Path) -> bool:
    """Whether an object is older than this script or a file that make's rule in `files` says it was made from."""
    try:
        rule = files.read_text().replace("\\\n", " ")
        made_from = [Path(__file__), *map(_ROOT.joinpath, shlex.split(rule)[1:])]
        return path.stat().st_mtime <= max(file.stat().st_mtime for file in made_from)
    except FileNotFoundError:  # the object is new, or one of its files is gone
        return True


def _link(compiler: list[str], path: Path, objects: list[Path]) -> None:
    if path.exists() and path.stat().st_mtime >= max(item.stat().st_mtime for item in objects):
        return
    unfinished = path.with_suffix(f".{os.getpid()}")
    command = [*compiler, "-shared", "-s", "-pthread", "-Wl,-Bsymbolic"]  # a module calls its own inline functions
    subprocess.run([*command, *map(str, objects), "-o", str(unfinished)], check=True)
    unfinished.replace(path)  # atomic, and safe for a process that has the old one loaded


def _write_stub(modules: list[Path]) -> None:
    """What the modules define, for type checkers: _kernels.pyi, from the first one that this CPU can run."""
    stubgen = [sys.executable, "-m", "nanobind.stubgen", "--quiet", "-i", str(HERE), "-o", str(HERE / "_kernels.pyi")]
    for path in modules:
        name = path.name.partition(".")[0]
        probe = f"import sys; sys.path.insert(0, {str(HERE)!r}); import {name}; sys.exit(not {name}.is_supported)"
        if subprocess.run([sys.executable, "-c", probe], check=False).returncode == 0:
            subprocess.run([*stubgen, "-m", name], check=True)
            return


if __name__ == "__main__":
    sys.stdout.write(
        "".join(f"{path}\n" for path in build(sys.argv[1:]))
        or "no C++ compiler or no Python headers here; nothing was built\n"
    )
