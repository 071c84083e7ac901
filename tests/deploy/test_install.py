"""make install: which torch it asks for, what it says, and what it does when an index or a step fails."""

import re
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

from deploy import install
from tests.deploy.files import ROOT

PIP = """#!{python}
import sys
with open({log!r}, "a") as log:
    log.write(" ".join(sys.argv[1:]) + chr(10))
if {fails!r} in sys.argv:
    print("pip's own words")
    sys.exit(1)
"""


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """environment(fails) -> a virtual environment whose pip writes down what it is asked, and fails at this word."""
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("TORCH_INDEX", raising=False)
    monkeypatch.setattr(install, "has_gpu", lambda: False)
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    log = tmp_path / "asked"

    def make(fails="nothing"):
        python.write_text(PIP.format(python=sys.executable, log=str(log), fails=fails))
        python.chmod(0o755)
        return tmp_path / "venv", lambda: [line.removeprefix("-m pip ") for line in log.read_text().splitlines()]

    return make


def test_each_step_is_a_line_and_torch_comes_for_cpus(environment, capsys):
    folder, asked = environment()
    assert install.main(folder) == 0
    version, probe, torch, others, project = asked()
    assert version == "--version"
    assert probe.startswith(f"index versions torch --index-url {install.CPU_INDEX} --retries 0 --timeout ")
    assert torch.startswith("install torch>=")
    assert torch.endswith(f"--extra-index-url {install.CPU_INDEX}")
    assert "fastapi" in others
    assert "pytest" in others
    assert project == "install --no-deps --editable ."
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert "PyTorch: the build of download.pytorch.org/whl/cpu, for CPUs (no GPU here) ... " in lines[0]
    assert re.match(r"installed in \d+ s; .* has 0\.0 GB", lines[-1])
    assert list(folder.parent.glob("*.log")) == []


def test_an_index_that_does_not_answer_is_left_out(environment, capsys):
    folder, asked = environment(fails="versions")
    assert install.main(folder) == 0
    assert "--extra-index-url" not in " ".join(asked())
    assert "pip's index, since download.pytorch.org/whl/cpu does not answer" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("environment_variables", "has_gpu", "expected"),
    [
        ({}, False, install.CPU_INDEX),
        ({}, True, None),
        ({"TORCH_INDEX": ""}, False, None),
        ({"TORCH_INDEX": "https://u:p@corp/cu130"}, True, "https://u:p@corp/cu130"),
    ],
)
def test_the_index_is_chosen_by_the_gpu_and_the_variable(environment_variables, has_gpu, expected):
    index, words = install.torch_index(environment_variables, has_gpu, lambda _: True)
    assert index == expected
    assert "u:p" not in words


def test_a_step_that_fails_shows_pips_words_and_ends(environment, capsys):
    folder, _ = environment(fails="--editable")
    with pytest.raises(SystemExit, match=r"pip's own words\n.*--editable \. ended with status 1"):
        install.main(folder)


def test_an_unreachable_index_is_noticed_by_a_real_pip(monkeypatch, tmp_path):
    """Port 1 of the loopback refuses at once. A torch on disk is no answer."""
    (tmp_path / "torch-2.9.0-py3-none-any.whl").touch()
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    assert not install.answers([sys.executable, "-m", "pip"], "http://127.0.0.1:1/simple")


def test_the_makefile_runs_it():
    assert "$(PYTHON) deploy/install.py $(VENV)" in (Path(ROOT) / "Makefile").read_text()


def test_the_log_that_an_interrupted_installation_leaves_is_ignored_by_git():
    patterns = (ROOT / ".gitignore").read_text().split()
    for folder in (".venv", ".venv-evaluate"):
        assert any(fnmatch(f"{folder}-install.log", pattern) for pattern in patterns)
