"""Bodies that are too large are refused before they are in memory."""

import pytest

from tests.server.conftest import COMPLETIONS, check_error


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_beyond_the_limit_is_refused_unread(api, chunked):
    sent = 0

    async def pieces():
        nonlocal sent
        for _ in range(64):
            sent += 1 << 20
            yield b" " * (1 << 20)

    content = pieces() if chunked else b" " * ((32 << 20) + 1)
    response = await api.http.post(COMPLETIONS, content=content, headers={"Content-Type": "application/json"})
    check_error(response, 413, type="invalid_request_error")
    assert sent <= 34 << 20
