"""The batcher under calls in any order, watched (tests.support.watched_batcher); what breaks it is shrunk to a few."""

import math
import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from engine.policies import POLICIES
from engine.protocol import SchedulingParams
from tests.support.sequences import make_sequence
from tests.support.watched_batcher import WatchedBatcher

STOP = 1
BEGINNINGS = ([0] * 30, [0] * 8 + [2] * 22, [3, 4] * 15)  # of which prompts share more or less
TENANTS = ((b"", 1.0), (b"a", 1.0), (b"b", 3.0))
MAX_LEN = 40

prompts = st.tuples(
    st.sampled_from(BEGINNINGS), st.integers(0, 30), st.lists(st.integers(0, 2), min_size=1, max_size=6)
).map(lambda parts: parts[0][: parts[1]] + parts[2])
seconds = st.sampled_from([0.0, 0.01, 0.1])
tokens = st.sampled_from([7, 7, 7, 7, 8, STOP, None])


class BatcherMachine(RuleBasedStateMachine):
    """Every rule is a call; WatchedBatcher asserts after each, and at the end that nothing is left behind."""

    @initialize(
        num_blocks=st.integers(1, 24),
        block_size=st.sampled_from([1, 2, 4, 16]),
        max_batch_size=st.integers(1, 6),
        more_tokens=st.sampled_from([0, 1, 7, 40]),
        policy=st.sampled_from(sorted(POLICIES)),
        target_itl=st.sampled_from([None, 0.01]),
        prefill_share=st.sampled_from([0.8, math.inf]),
        prefix_caching=st.booleans(),
        constants=st.sampled_from([(32, 8), (1, 8), (2, 1)]),
    )
    def start(
        self,
        num_blocks,
        block_size,
        max_batch_size,
        more_tokens,
        policy,
        target_itl,
        prefill_share,
        prefix_caching,
        constants,
    ):
        self.watched = WatchedBatcher(
            num_blocks,
            block_size,
            max_batch_size,
            max_batch_size + more_tokens,
            policy=policy,
            target_itl=target_itl,
            prefill_share=prefill_share,
            prefix_caching=prefix_caching,
            max_passed=constants[0],
            look_ahead=constants[1],
        )
        self.capacity = min(num_blocks * block_size, MAX_LEN)
        self.num_requests = 0

    @rule(
        prompt=prompts,
        n=st.sampled_from([1, 1, 2, 4]),
        max_tokens=st.integers(0, 12),
        min_tokens=st.integers(0, 3),
        prompt_logprobs=st.sampled_from([None, None, None, 0]),
        priority=st.integers(0, 2),
        tenant=st.sampled_from(TENANTS),
        deadline=st.none() | seconds,
        start_deadline=st.none() | seconds,
        background=st.booleans(),
        num_text=st.sampled_from([40, 40, 8, 0]),  # tokens of the prompt's beginning; the rest is code
    )
    def add(
        self,
        prompt,
        n,
        max_tokens,
        min_tokens,
        prompt_logprobs,
        priority,
        tenant,
        deadline,
        start_deadline,
        background,
        num_text,
    ):
        prompt = prompt[: self.capacity]
        modalities = (bytes(num_text) + b"\1" * MAX_LEN)[: len(prompt)]
        max_tokens = min(max_tokens, self.capacity - len(prompt))
        now = self.watched.now
        ends, start_ends = (None if limit is None else now + limit for limit in (deadline, start_deadline))
        for index in range(n):
            seq = make_sequence(
                f"r{self.num_requests}",
                prompt=prompt,
                index=index,
                stop_token_ids=(STOP,),
                max_tokens=max_tokens,
                min_tokens=min(min_tokens, max_tokens),
                prompt_logprobs=prompt_logprobs,
                modalities=modalities,
                scheduling=SchedulingParams(now, priority, *tenant, ends, start_ends, background),
            )
            self.watched.add(seq)
        self.num_requests += 1

    @rule(sampled=st.lists(tokens, min_size=1, max_size=6))
    def step(self, sampled):
        self.watched.step(lambda: sampled.pop() if sampled else 7)

    @rule(times=st.integers(2, 12))
    def steps(self, times):
        for _ in range(times):
            self.watched.step(lambda: 7)

    @rule(later=seconds)
    def expire(self, later):
        self.watched.expire(self.watched.now + later)

    @precondition(lambda self: self.watched.live)
    @rule(data=st.data(), whole=st.booleans())
    def abort(self, data, whole):
        request_id, index = data.draw(st.sampled_from(list(self.watched.live)))
        self.watched.abort(request_id, None if whole else index)

    @rule(number=st.integers(0, 40), index=st.none() | st.integers(0, 4))
    def abort_whatever(self, number, index):
        """Any id: live, ended, or never seen."""
        self.watched.abort(f"r{number}", index)

    def teardown(self):
        self.watched.drain(lambda: 7)


NUM_EXAMPLES = os.environ.get("STATE_MACHINE_EXAMPLES")  # unset: a few, the same each time

SETTINGS = settings(
    max_examples=int(NUM_EXAMPLES or 300),
    stateful_step_count=30,
    derandomize=NUM_EXAMPLES is None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestBatcherMachine = BatcherMachine.TestCase
TestBatcherMachine.settings = SETTINGS
