"""Routes requests to engine replicas: to the one whose cache has the prompt's beginning, else by power of two choices.

Ray makes one router in each process that calls the replicas. What the router remembers is its own: the prompts that it
sent. Which of the candidates is idle enough, and that a candidate is alive, is Ray's.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from ray.serve.request_router import RequestRouter

from deploy.ray.prefixes import SentPrefixes, hash_blocks
from engine.protocol import GenerateRequest, PoolRequest

if TYPE_CHECKING:
    from ray.serve.request_router import PendingRequest, ReplicaID, ReplicaResult, RunningReplica


class PrefixRouter(RequestRouter):
    """Ray's request router; see the module."""

    def initialize_state(self, slack: int) -> None:
        """Called by Ray with `request_router_kwargs`."""
        self._slack = slack
        self._prefixes = SentPrefixes()

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Called by Ray: candidates in order of rank; of those of one rank, Ray takes the least loaded."""
        pair = random.sample(candidate_replicas, min(2, len(candidate_replicas)))
        hashes = _hashes(pending_request)
        if not hashes:
            return [pair]
        replicas = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        loads = {name: self.replica_queue_len_cache.get(replica.replica_id) or 0 for name, replica in replicas.items()}
        name = self._prefixes.choose(hashes, loads, self._slack)
        return [pair] if name is None else [[replicas[name]], pair]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: ReplicaResult) -> None:
        """Called by Ray: a replica has taken a request."""
        del result
        if hashes := _hashes(pending_request):
            self._prefixes.add(replica_id.unique_id, hashes)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Called by Ray: these replicas are there from now on."""
        super().update_replicas(replicas)
        self._prefixes.keep({replica.replica_id.unique_id for replica in replicas})


def _hashes(pending_request: PendingRequest | None) -> list[bytes]:
    match pending_request.args if pending_request is not None else ():
        case [(GenerateRequest() | PoolRequest()) as request]:
            return hash_blocks(request.prompt_token_ids, request.scheduling.prefix_salt)
    return []
