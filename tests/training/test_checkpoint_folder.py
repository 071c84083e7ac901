from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from training import checkpoint_folder


def _write(root: Path, step: int) -> None:
    folder = checkpoint_folder.begin(root, step)
    (folder / "tensors").mkdir()
    (folder / "tensors" / "a").write_bytes(b"\0" * 1000 + str(step).encode())
    (folder / "run.json").write_text("{}")
    checkpoint_folder.commit(root, step)


def _whole_steps(root: Path) -> list[int]:
    return [
        step for step, path in checkpoint_folder.step_folders(root).items() if checkpoint_folder.damage(path) is None
    ]


def test_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (5, 10, 15, 20):
        _write(tmp_path, step)
        checkpoint_folder.prune(tmp_path, 2)
    assert _whole_steps(tmp_path) == [20, 15]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000015", "step-00000020"]


def test_a_step_that_is_written_again_replaces_the_old_one(tmp_path: Path) -> None:
    _write(tmp_path, 5)
    (checkpoint_folder.finished(tmp_path, 5) / "tensors" / "a").write_bytes(b"damaged")
    assert _whole_steps(tmp_path) == []
    _write(tmp_path, 5)
    assert _whole_steps(tmp_path) == [5]


@pytest.mark.parametrize("change", ["truncate", "flip", "remove", "no manifest", "bad manifest"])
def test_damage_is_found(tmp_path: Path, change: str) -> None:
    _write(tmp_path, 5)
    folder = checkpoint_folder.finished(tmp_path, 5)
    file, manifest = folder / "tensors" / "a", folder / "manifest.json"
    content = file.read_bytes()
    if change == "truncate":
        file.write_bytes(content[:-1])
    elif change == "flip":
        file.write_bytes(content[:500] + b"\1" + content[501:])
    elif change == "remove":
        file.unlink()
    elif change == "no manifest":
        manifest.unlink()
    else:
        manifest.write_text('{"tensors/a": 3}')
    fault = checkpoint_folder.damage(folder)
    assert fault is not None
    assert ("tensors/a" in fault) == (change in ("truncate", "flip", "remove"))


def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each change that a save makes to the disk is once the last one that the process lives to make."""
    moment = 0
    while True:
        root = tmp_path / str(moment)
        for step in (5, 10):
            _write(root, step)
        if not _killed_at(moment, root, monkeypatch):
            break
        whole = _whole_steps(root)
        assert whole == list(checkpoint_folder.step_folders(root)), "a checkpoint that shows is whole"
        assert whole in ([10, 5], [15, 10, 5], [15, 10], [10], [15])
        _write(root, 20)  # the next process goes on, and cleans up
        checkpoint_folder.prune(root, 2)
        assert _whole_steps(root)[0] == 20
        assert not [path for path in root.iterdir() if path.name.startswith(".writing")]
        moment += 1
    assert moment > 15


class _Killed(BaseException):
    pass


def _killed_at(moment: int, root: Path, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Write step 15 and prune; whether the process came to `moment` calls that change the disk and was killed there."""
    left = [moment]

    def count(function: Any) -> Any:
        def counted(*args: Any, **named: Any) -> Any:
            if left[0] == 0:
                raise _Killed
            left[0] -= 1
            return function(*args, **named)

        return counted

    with monkeypatch.context() as patch:
        for owner, name in ((os, "fsync"), (os, "unlink"), (os, "rmdir"), (Path, "rename"), (Path, "write_text")):
            patch.setattr(owner, name, count(getattr(owner, name)))
        patch.setattr(Path, "mkdir", count(Path.mkdir))
        try:
            _write(root, 15)
            checkpoint_folder.prune(root, 2)
        except _Killed:
            return True
    return False
