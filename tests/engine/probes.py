"""How a WatchedBatcher gets in between: parts of the batcher that report to it, and constants for a small load."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from engine import dynamic_batcher, policies
from engine.dynamic_batcher import DynamicBatcher
from engine.kv_cache_manager import KVCacheManager
from engine.sequence import Sequence, SequenceStatus

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.engine.watched_batcher import WatchedBatcher


@contextmanager
def constants(**values: float) -> Iterator[None]:
    """Other values of the batcher's constants."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setattr(policies if name == "BURST" else dynamic_batcher, name, value)
        yield


class Phased(DynamicBatcher):
    """The batcher; it says when the underserved have started and the step is packed."""

    watch: WatchedBatcher

    def _urgent(self) -> list[Sequence]:
        self.watch.fair.end_first_phase(self.watch.waiting, self.watch.tried)
        return super()._urgent()


class WatchedCache(KVCacheManager):
    """The batcher's cache; it reports who starts and who is preempted, in order."""

    watch: WatchedBatcher

    def find_prefix(self, seq: Sequence) -> list[int]:
        self.watch.tried.append(seq)
        return super().find_prefix(seq)

    def start(self, seq: Sequence, prefix: list[int], num_spare: int) -> bool:
        started = super().start(seq, prefix, num_spare)
        if started:
            self.watch.started(self.watch.live[seq.request_id, seq.index], len(prefix))
        else:
            self.watch.refused(self.watch.live[seq.request_id, seq.index], prefix)
        return started

    def release(self, seq: Sequence, *, forget: bool = False) -> None:
        if seq.status is SequenceStatus.RUNNING:
            self.watch.preempted(self.watch.live[seq.request_id, seq.index])
        super().release(seq, forget=forget)
