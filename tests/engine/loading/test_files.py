"""What stands in a checkpoint in place of a file neither blocks the reader nor fills the memory."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from engine.errors import ModelError
from engine.loading.files import read_bytes
from engine.loading.gguf_file import GGUFFile
from engine.loading.resolve import ModelSource
from server.text.tokenizer import Tokenizer
from tests.support.checkpoints import refusal

if TYPE_CHECKING:
    from collections.abc import Callable

READ = ("config.json", "generation_config.json", "model.safetensors", "model.safetensors.index.json")
READ_BY_THE_SERVER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made, contextlib.chdir(path.parent):
        made.bind(path.name)  # a socket's path has 107 bytes at most


THINGS: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "a folder": os.mkdir,
    "a link to a device": lambda path: path.symlink_to("/dev/zero"),
    "a sparse file": lambda path: (path.touch(), os.truncate(path, 1 << 40)),
    "a socket": make_socket,
}


@pytest.mark.parametrize("put", THINGS.values(), ids=THINGS)
@pytest.mark.parametrize("name", READ)
def test_the_engine_reads_files_only(folder: Path, name: str, put: Callable[[Path], object]) -> None:
    (folder / name).unlink(missing_ok=True)
    put(folder / name)
    assert name in refusal(folder)


@pytest.mark.parametrize("put", THINGS.values(), ids=THINGS)
@pytest.mark.parametrize("name", READ_BY_THE_SERVER)
def test_the_server_reads_files_only(folder: Path, name: str, put: Callable[[Path], object]) -> None:
    (folder / name).unlink(missing_ok=True)
    put(folder / name)
    with pytest.raises(ModelError):
        Tokenizer.load(ModelSource(folder, "tiny"))


@pytest.mark.parametrize("put", THINGS.values(), ids=THINGS)
def test_a_gguf_file_is_a_file(tmp_path: Path, put: Callable[[Path], object]) -> None:
    put(tmp_path / "model.gguf")
    with pytest.raises(ModelError, match=r"model\.gguf"):
        GGUFFile(tmp_path / "model.gguf")


def test_a_link_to_a_file_is_read_up_to_the_limit(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("file")
    assert read_bytes(tmp_path / "link", 5) == b"12345"
    with pytest.raises(OSError, match="has 5 bytes; at most 4 are read"):
        read_bytes(tmp_path / "link", 4)


def test_a_file_without_end_is_empty() -> None:
    assert read_bytes(Path("/proc/kmsg"), 100) == b""  # whose reader would wait for the next message


def test_a_file_for_which_a_limit_leaves_no_room_is_refused_with_what_helps(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    os.truncate(tmp_path / "file", 8 << 30)
    code = """
import pathlib, resource, sys
from engine.loading.files import map_file
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
try:
    map_file(pathlib.Path(sys.argv[1]))
except OSError as error:
    print(error)
"""
    command = [sys.executable, "-c", code, str(tmp_path / "file")]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert text.startswith("8 GiB of address space are needed to map it; `ulimit -v` leaves 0.9")
