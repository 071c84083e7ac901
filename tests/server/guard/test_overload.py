"""The guard has a queue of its own, which fills apart from the served model's."""

from __future__ import annotations

from tests.server.conftest import check_error


async def test_a_full_queue_refuses_what_would_wait_in_it(guard) -> None:
    api = (await guard()).api
    for fills, refused, taken in (("guard", "/v1/moderations", "/v1/completions"), ("", "/v1/completions", "")):
        admission = (api.app.state.server.guard if fills else api.app.state.server).admission
        with admission.admit(admission.max_prompts, 1, b""), admission.admit(admission.max_prompts // 4, 1, b"other"):
            check_error(await api.http.post(refused), 429, type="rate_limit_error")
            for path in {"/v1/moderations", taken} - {refused, ""}:
                body = {"input": "a"} if path == "/v1/moderations" else {"prompt": "a", "max_tokens": 1}
                assert (await api.http.post(path, json=body)).status_code == 200
