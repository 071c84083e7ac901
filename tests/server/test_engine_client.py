"""No stream begins without an engine."""

import pytest

from engine.errors import EngineUnavailableError


async def test_an_engine_that_is_not_there_refuses_to_start_requests(serve):
    api = await serve(run=False)
    with pytest.raises(EngineUnavailableError):
        api.client.submit([])
