"""Modules and objects that are older than their sources are told from others."""

import os
import shutil

import pytest

from kernels.native import build

COMPILER = shutil.which("c++")


def test_modules_are_outdated_when_a_source_has_changed(tmp_path, monkeypatch):
    folder, source = tmp_path / "native", tmp_path / "some_op" / "native.cpp"
    folder.mkdir()
    source.parent.mkdir()
    source.write_text("// as built")
    monkeypatch.setattr(build, "_ROOT", tmp_path)
    monkeypatch.setattr(build, "_BUILT_FROM", folder / "_kernels.sources")
    assert not build.is_outdated(), "nothing was built here"
    build._BUILT_FROM.write_text(build._hash_of_sources())
    assert not build.is_outdated()
    source.write_text("// changed")
    assert build.is_outdated()


@pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler")
def test_an_object_is_compiled_again_when_a_file_that_it_was_made_from_is_newer_or_gone(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "_ROOT", tmp_path)
    source, own, another = tmp_path / "some op.cpp", tmp_path / "own.h", tmp_path / "another.h"
    source.write_text('#include "own.h"\nint f() { return VALUE; }')
    own.write_text("#define VALUE 1")
    another.write_text("")
    path = tmp_path / "objects" / "some_op.o"

    def is_compiled():
        before = path.stat().st_ino if path.exists() else None
        build._compile([COMPILER], source, path)
        return path.stat().st_ino != before

    def touch(file):
        later = path.stat().st_mtime + 1
        os.utime(file, (later, later))

    assert is_compiled()
    assert not is_compiled()
    touch(another)
    assert not is_compiled()
    for file in (source, own):
        touch(file)
        assert is_compiled()
        os.utime(file, (0, 0))
    source.write_text("int f() { return 1; }")
    os.utime(source, (0, 0))
    own.unlink()
    assert is_compiled()
    assert not is_compiled()
