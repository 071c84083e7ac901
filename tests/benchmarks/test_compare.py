"""Servers measured in turn: what is started is ended, who goes when, and the table's arithmetic."""

import json
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest

from benchmarks import compare
from benchmarks.compare import Case
from benchmarks.load.targets import Target, TargetError, is_healthy, running
from tests.support.processes import wait_gone

SERVER = textwrap.dedent('''
    """/health, and completions of one token; with a child that must end with it."""
    import http.server, json, os, pathlib, subprocess, sys

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self, body, kind="application/json"):
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self):
            self.answer(b'{"data": [{"id": "m"}]}')

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            events = [{"choices": [{"text": "a"}]}, {"choices": [], "usage": {"completion_tokens": 1}}]
            lines = [json.dumps(event) for event in events] + ["[DONE]"]
            self.answer("".join(f"data: {line}\\n\\n" for line in lines).encode(), "text/event-stream")

        def log_message(self, *_):
            pass

    child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    pathlib.Path(sys.argv[2]).write_text(f"{os.getpid()} {child.pid}")
    http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
''')


@pytest.fixture
def command(tmp_path):
    """A command that runs SERVER, and writes its process ids into a file."""
    (tmp_path / "server.py").write_text(SERVER)
    return f"{sys.executable} {tmp_path}/server.py {{port}} {tmp_path}/pids"


def pids(tmp_path, name="pids"):
    return [int(word) for word in (tmp_path / name).read_text().split()]


def test_a_command_is_started_and_ended_with_its_children(command, tmp_path):
    with running("ours", command, 30) as target:
        assert is_healthy(target.url)
        with running("same", target.url + "/v1", 30) as same:
            assert same == Target("same", target.url + "/v1")
        assert is_healthy(target.url)  # what ran already goes on
        assert not wait_gone(pids(tmp_path), 0)
    assert wait_gone(pids(tmp_path), 10)
    assert not is_healthy(target.url)


def test_it_is_ended_when_the_measurement_fails(command, tmp_path):
    with pytest.raises(ZeroDivisionError), running("ours", command, 30):
        raise ZeroDivisionError
    assert wait_gone(pids(tmp_path), 10)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (f"{sys.executable} -c \"import sys; sys.exit('no such model')\"", "has ended with status 1:\nno such model"),
        ("/no/such/command", "cannot be started"),
        (f'{sys.executable} -c "import signal; signal.pause()"', "is not ready in 0.2 s"),
        ("http://127.0.0.1:9", "is not ready in 0.2 s"),
    ],
)
def test_a_target_that_does_not_start_is_named_and_says_why(where, message):
    with pytest.raises(TargetError, match="peer") as error, running("peer", where, 0.2 if "0.2" in message else 30):
        pass
    assert message in str(error.value)


def test_targets_take_turns_and_are_measured(command, tmp_path, monkeypatch, capsys):
    with running("peer", command, 30) as peer:
        targets = ["--target", f"ours={command.replace('pids', 'pids2')}", "--target", f"peer={peer.url}"]
        monkeypatch.setattr("sys.argv", ["compare", *targets, "--case", "3,1,2,5", "--repeats", "2"])
        monkeypatch.setattr(signal, "signal", lambda *_: None)  # the test's own handler stays
        compare.main()
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]
    assert [(line["target"], line["repeat"]) for line in lines] == [("ours", 0), ("peer", 0), ("peer", 1), ("ours", 1)]
    assert all(line["completed"] == 5 and line["errors"] == {} for line in lines)
    assert all(line["output_tokens_per_second"] > 0 and line["ttft_ms"] > 0 for line in lines)
    assert "| 3 | 1 | 2 | peer |" in err
    assert wait_gone(pids(tmp_path, "pids2"), 10)


def test_every_round_of_every_case_has_a_seed_that_all_targets_share(monkeypatch):
    """Else the prompts of one case are in the prefix cache when the next one begins."""
    monkeypatch.setattr(compare, "our_load", lambda _target, case, seed, _flags: {"seed": seed})
    targets = [Target("ours", "http://a"), Target("peer", "http://b")]
    flags = ["--target", "ours=http://a", "--target", "peer=http://b", "--case", "3,1,2", "3,1,4", "--repeats", "3"]

    def seeds(*more):
        rounds = {}
        for case, _, repeat, figures in compare.compare(targets, compare.parse([*flags, *more])):
            rounds.setdefault((case, repeat), []).append(figures["seed"])
        assert all(len(seeds) == 2 and len(set(seeds)) == 1 for seeds in rounds.values())
        return [seeds[0] for seeds in rounds.values()]

    assert len(set(seeds())) == 6
    assert seeds() == seeds()
    assert set(seeds()).isdisjoint(seeds("--seed", "1"))


def test_a_signal_ends_what_was_started(command, tmp_path):
    """Sent while it waits for a second target, which says that it is up but never listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(60)
        up = f"socket.create_connection({listener.getsockname()})"
        (tmp_path / "slow.py").write_text(f"import signal, socket\n{up}.close()\nsignal.pause()")
        slow = f"{sys.executable} {tmp_path}/slow.py"
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.compare", "--target", f"a={command}", "--target", f"b={slow}"],
            cwd=Path(__file__).parents[2],
        )
        listener.accept()[0].close()
    children = psutil.Process(process.pid).children()
    assert len(children) == 2
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 128 + signal.SIGTERM
    assert wait_gone([*(child.pid for child in children), *pids(tmp_path)], 10)


def test_medians_and_ratios():
    def figures(rate, ttft, errors=0):
        return {
            "output_tokens_per_second": rate,
            "ttft_ms": ttft,
            "tpot_ms": None,
            "errors": {"429": errors} if errors else {},
        }

    ours = [figures(30.0, 5.0), figures(10.0, 7.0), figures(20.0, 6.0)]
    theirs = [figures(8.0, 12.0, 1), figures(8.0, 11.0, 2), figures(9.0, 13.0)]
    assert compare.medians(theirs) == {"output_tokens_per_second": 8, "ttft_ms": 12, "tpot_ms": 0, "errors": 3}
    table = compare.table({Case(128, 64, 8, 24): {"ours": ours, "peer": theirs}}, ["ours", "peer"])
    assert table.splitlines()[-1] == "| 128 | 64 | 8 | peer | 20.0 | 8.0 | 2.50 | 6.0 / 12.0 | 0.0 / 0.0 | 0 / 3 |"


def test_a_case_says_how_many_requests_or_gets_three_a_stream():
    assert Case.parse("128,64,32") == Case(128, 64, 32, 96)
    assert Case.parse("128,64,1") == Case(128, 64, 1, 8)
    assert Case.parse("128,64,1,5") == Case(128, 64, 1, 5)
    for text in ("128,64", "128,64,0", "a,b,c", "1,2,3,4,5"):
        with pytest.raises(ValueError):
            Case.parse(text)


PRINTED = """
============ Serving Benchmark Result ============
Successful requests:                     22
Benchmark duration (s):                  5.00
Request throughput (req/s):              4.02
Output token throughput (tok/s):         257.25
Mean TTFT (ms):                          190.00
Median TTFT (ms):                        153.71
Median TPOT (ms):                        27.42
"""


def test_another_generator_is_run_and_read(tmp_path):
    (tmp_path / "load.py").write_text(f"import sys\nprint({PRINTED!r})\nprint(*sys.argv[1:], file=sys.stderr)\n")
    case = Case(128, 64, 8, 24)
    target = Target("ours", "http://127.0.0.1:8123")
    command = f"{sys.executable} {tmp_path}/load.py {{port}} {{concurrency}} {{other}}"
    figures = compare.other_load(target, case, 0, command, 30)
    assert figures == {
        "completed": 22,
        "output_tokens_per_second": 257.25,
        "ttft_ms": 153.71,
        "tpot_ms": 27.42,
        "errors": {"failed": 2},
    }
    with pytest.raises(TargetError, match="--load-command"):
        compare.other_load(target, case, 0, f'{sys.executable} -c "exit(3)"', 30)
    with pytest.raises(TargetError, match="printed no line"):
        compare.parse_printed("Successful requests: 3", case)


@pytest.mark.parametrize("flags", [["--target", "a"], ["--target", "=x"], ["--target", "a=x", "--target", "a=y"], []])
def test_targets_have_names_of_their_own(flags):
    with pytest.raises(SystemExit, match="2"):
        compare.parse(flags)
