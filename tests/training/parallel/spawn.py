"""Runs a function in as many processes as a layout has ranks. A server that has imported torch forks them: no rank
imports it again."""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any

from training.config import ParallelismSettings

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection


_SECONDS = 120  # of patience for all ranks together


def run_ranks(function: Callable[..., Any], degrees: tuple[int, int, int], *arguments: Any) -> list[Any]:
    """`function(ranks, *arguments)` on each rank of tensor x pipeline x data; what each returned, by rank."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["training.parallel.worker", "tests.training.parallel.training_steps"])
    tensor, pipeline, data = degrees
    settings = ParallelismSettings(tensor=tensor, pipeline=pipeline, data=data)
    port = _free_port()
    processes, ends = [], []
    for rank in range(settings.num_ranks):
        end, other = context.Pipe(duplex=False)
        process = context.Process(target=_rank, args=(other, rank, port, settings, function, arguments), daemon=True)
        process.start()
        other.close()
        processes.append(process)
        ends.append(end)
    try:
        return _results(ends)
    finally:
        for process in processes:
            process.kill()
            process.join()


def _results(ends: list[Connection]) -> list[Any]:
    results: dict[int, Any] = {}
    while len(results) < len(ends):
        ready = wait([end for rank, end in enumerate(ends) if rank not in results], _SECONDS)
        assert ready, f"only ranks {sorted(results)} have come to an end"
        for end in ready:
            failure, result = end.recv()
            assert failure is None, failure
            results[ends.index(end)] = result
    return [results[rank] for rank in range(len(ends))]


def _rank(
    end: Connection,
    rank: int,
    port: int,
    degrees: ParallelismSettings,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    import torch

    from training.parallel.ranks import started_ranks

    torch.set_num_threads(1)
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": rank, "WORLD_SIZE": degrees.num_ranks}
    os.environ.update({name: str(value) for name, value in where.items()})
    try:
        with started_ranks(degrees, torch.device("cpu")) as ranks:
            end.send((None, function(ranks, *arguments)))
    except BaseException:  # noqa: BLE001  # told to the test
        end.send((traceback.format_exc(), None))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
