"""/v1/models: the one model that is served."""

import dataclasses
from pathlib import Path

import pytest

from server.config import ServerConfig
from tests.server.conftest import check_error


async def test_models_lists_the_one_model_with_id_and_root(api):
    listing = (await api.http.get("/v1/models")).json()
    assert listing["object"] == "list"
    [model] = listing["data"]
    assert (model["id"], model["object"], model["root"]) == ("tiny", "model", "tiny")
    assert model["max_model_len"] == 512
    assert model["tasks"] == ["generate", "embed"]
    assert model["modalities"] == ["text"]
    assert isinstance(model["created"], int)
    assert (await api.http.get("/v1/models/tiny")).json() == model


async def test_an_unknown_model_is_not_found(api):
    for name in ("gpt-4", "tiny/x", "Tiny", "a/b/c"):
        check_error(await api.http.get(f"/v1/models/{name}"), 404, type="not_found_error", code="model_not_found")


async def test_a_model_has_all_the_names_that_it_is_given(serve):
    api = await serve(config=ServerConfig(served_model_name="tiny, gpt-4,org/x"))
    listing = (await api.http.get("/v1/models")).json()["data"]
    assert [model["id"] for model in listing] == ["tiny", "gpt-4", "org/x"]
    assert {model["root"] for model in listing} == {"tiny"}
    for name in ("gpt-4", "org/x", "tiny"):
        assert (await api.http.get(f"/v1/models/{name}")).json()["id"] == name
        assert (await api.complete("a", model=name, max_tokens=1))["model"] == name
    assert (await api.complete("a", max_tokens=1))["model"] == "tiny"
    error = check_error(await api.http.get("/v1/models/other"), 404, code="model_not_found")
    assert "'tiny', 'gpt-4', 'org/x'" in error["message"]


@pytest.mark.parametrize(
    ("root", "config", "expected"),
    [
        ("/models/tiny", {"host": "127.0.0.1"}, "tiny"),
        ("/models/tiny", {"host": "0.0.0.0"}, "tiny"),
        ("/c/models--org--name/snapshots/0a1b", {"host": "0.0.0.0"}, "org/name"),
        ("/models/tiny", {"model_root": "org/tiny"}, "org/tiny"),
    ],
)
async def test_root_names_the_tokenizer_and_shows_no_path(api, root, config, expected):
    state = api.app.state.server
    api.app.state.server = dataclasses.replace(state, model_root=Path(root), config=ServerConfig(**config))
    [model] = (await api.http.get("/v1/models")).json()["data"]
    assert model["root"] == expected
