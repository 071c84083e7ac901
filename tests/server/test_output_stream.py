"""The outputs of a request as they come, and aborts of one sequence."""

from engine.protocol import GenerateRequest, SamplingParams, SchedulingParams


async def test_an_output_stream_tells_the_engine_to_abort_what_is_still_live(api):
    request = GenerateRequest("r", [65], SamplingParams(max_tokens=400, ignore_eos=True), 2, SchedulingParams(0.0))
    with api.client.submit([request]) as stream:
        assert (await anext(stream)).request_id == "r"
        stream.abort("r", 0)
        assert {(await anext(stream)).index for _ in range(5)} == {1}
    await api.until_idle()
