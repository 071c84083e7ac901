"""What EngineInfo refuses. Its refusals over HTTP are in tests/server/routes."""

import msgspec
import pytest

from engine.errors import RequestError
from engine.protocol import EngineInfo, GenerateRequest, SamplingParams, SchedulingParams, decode_to_engine, encode

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
