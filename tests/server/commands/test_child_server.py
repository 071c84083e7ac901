"""A server as a child: what is said of one that ends or is slow. That its children end too: tests/benchmarks."""

import sys
import tempfile

import pytest

from server.commands.child_server import NotReadyError, end, start, tail, until


def test_a_server_that_ends_is_told_with_its_status_and_the_end_of_its_log() -> None:
    with tempfile.TemporaryFile() as log:
        process = start([sys.executable, "-c", "print('\\n'.join(map(str, range(30)))); raise SystemExit(3)"], log)
        with pytest.raises(NotReadyError, match="has ended with status 3"):
            until(lambda: False, 60, process)
        assert tail(log).splitlines() == [":", *map(str, range(10, 30))]
        end(process)  # again, which is nothing


def test_a_server_that_is_never_ready_is_told_after_the_time() -> None:
    with pytest.raises(NotReadyError, match=r"is not ready in 0\.1 s"):
        until(lambda: False, 0.1, None)
    until(lambda: True, 0.0, None)
