"""What EngineInfo refuses. Its refusals over HTTP are in tests/server/routes."""

import msgspec
import pytest

from engine.engine_info import EngineInfo
from engine.errors import RequestError
from engine.protocol import (
    EngineStats,
    GenerateRequest,
    PoolingParams,
    PoolRequest,
    SamplingParams,
    SchedulingParams,
    SequenceOutput,
    StepOutput,
    decode_from_engine,
    decode_to_engine,
    encode,
)

INFO = EngineInfo(128, 256, 8, 16, "cpu", "float32", 4)
PARAMS = SamplingParams(max_tokens=4)


@pytest.mark.parametrize("modalities", [b"", b"\0\0\0", b"\0\1\2"])
def test_modalities_that_the_model_knows_are_taken(modalities):
    msgspec.structs.replace(INFO, modalities=("text", "code", "image")).check([1, 2, 3], PARAMS, modalities)


@pytest.mark.parametrize("modalities", [b"\0\1\2", b"\0\0", b"\0\0\0\0"])
def test_modalities_are_refused_that_the_model_lacks_or_that_are_not_one_a_token(modalities):
    with pytest.raises(RequestError, match="this model knows text, code") as refusal:
        msgspec.structs.replace(INFO, modalities=("text", "code")).check([1, 2, 3], PARAMS, modalities)
    assert refusal.value.param == "modality"


def test_modalities_cross_the_line_to_the_engine():
    request = GenerateRequest("r", [1, 2], PARAMS, 1, SchedulingParams(0.0), b"\0\1")
    assert decode_to_engine(encode(request)) == request


POOLING_INFO = msgspec.structs.replace(INFO, tasks=("embed", "classify"))


def test_a_prompt_may_fill_the_context_where_nothing_follows():
    POOLING_INFO.check_pooling([1] * 128, PoolingParams(task="embed", pooling="mean"))


@pytest.mark.parametrize(
    ("prompt", "pooling", "modalities", "param", "message"),
    [
        ([], {}, b"", "prompt", "empty"),
        ([256], {}, b"", "prompt", "from 0 to 255"),
        ([-1], {}, b"", "prompt", "from 0 to 255"),
        ([1] * 129, {}, b"", "prompt", "maximum context length is 128 tokens. However, the prompt has 129"),
        ([1], {}, b"\1", "modality", "knows text"),
        ([1], {"task": "classify", "pooling": "mean"}, b"", "pooling", "'embed' alone takes the mean"),
        ([1], {"task": "value"}, b"", "model", "cannot say how sound a text is; it can embed text and classify text"),
        ([1], {"pooling": "max"}, b"", None, "Invalid enum value 'max'"),
    ],
)
def test_what_has_no_values_is_refused(prompt, pooling, modalities, param, message):
    with pytest.raises(RequestError, match=message) as refusal:
        POOLING_INFO.check_pooling(prompt, PoolingParams(**{"task": "embed", **pooling}), modalities)
    assert refusal.value.param == param


def test_a_model_without_a_vocabulary_head_generates_nothing():
    with pytest.raises(RequestError, match="cannot generate text; it can embed text and classify text") as refusal:
        POOLING_INFO.check([1], PARAMS)
    assert refusal.value.code == "task_not_supported"


def test_values_cross_the_line_as_bytes():
    request = PoolRequest("r", [1, 2], PoolingParams(task="value"), SchedulingParams(0.0), b"\0\1")
    assert decode_to_engine(encode(request)) == request
    step = StepOutput([SequenceOutput("r", 0, [], "stop", pooled=b"\0\0\x80?")], EngineStats(0, 0, 0, 8))
    assert decode_from_engine(encode(step)) == step
