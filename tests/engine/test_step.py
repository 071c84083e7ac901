"""Plans and results are plain values: what is sent and read back computes the same."""

import msgspec

from engine.protocol import SamplingParams
from engine.step import BlockTable, StepPlan, StepResult
from tests.support.running import generate, load, make_prompt
from tests.support.sequences import make_sequence

PROMPTS = [make_prompt(length, seed=length) for length in (3, 40, 90)]
PARAMS = [
    SamplingParams(max_tokens=12, temperature=0.0, prompt_logprobs=2, logprobs=1, ignore_eos=True),
    SamplingParams(max_tokens=12, seed=5, repetition_penalty=1.3, presence_penalty=0.5, min_tokens=4),
    SamplingParams(max_tokens=12, seed=6, top_p=0.9, top_k=50, logit_bias={7: 2.5}, stop_token_ids=(9,)),
]


class Sending:
    """An executor as ranks in other processes would be: only bytes reach it, and only bytes come back."""

    def __init__(self, executor):
        self.executor, self.num_bytes = executor, 0

    def execute(self, plan):
        sent = msgspec.msgpack.encode(plan)
        self.num_bytes += len(sent)
        result = self.executor.execute(msgspec.msgpack.decode(sent, type=StepPlan))
        return msgspec.msgpack.decode(msgspec.msgpack.encode(result), type=StepResult)


def test_a_plan_that_was_sent_computes_the_same(tiny_llama):
    engine = load(tiny_llama, max_batched_tokens=32, max_batch_size=4)
    expected = generate(engine, PROMPTS, PARAMS)
    engine = load(tiny_llama, max_batched_tokens=32, max_batch_size=4)
    engine.executor = Sending(engine.executor)
    assert generate(engine, PROMPTS, PARAMS) == expected
    assert engine.executor.num_bytes > 0
    assert all(result.token_ids for result in expected)


def test_a_plan_is_logged_as_json():
    seq = make_sequence(prompt=[1, 2, 3], logit_bias={7: 1.0}, stop_token_ids=(4,), seed=5)
    plan = StepPlan([seq.next_chunk(3, [BlockTable([8])])])
    assert msgspec.json.decode(msgspec.json.encode(plan), type=StepPlan) == plan
