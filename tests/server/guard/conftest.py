"""An API with a guard that answers as the test says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from server.config import ServerConfig
from server.guard.model import GuardModel
from tests.support.no_engine import POOLING_INFO, PoolingEngine

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.server.conftest import Api

INFO = msgspec.structs.replace(POOLING_INFO, tasks=("classify",), labels=("safe", "harm"))


@dataclass
class Guarded:
    """The API, the guard's engine, and the texts that the guard has read."""

    api: Api
    engine: PoolingEngine
    read: list[str]


@pytest.fixture
def guard(serve: Callable[..., Any], tiny_tokenizer: Any) -> Callable[..., Any]:
    """await guard(flags, window=4) -> an API whose guard flags the texts for which flags(text) is true.

    flags(text) may also be None, for a guard that does not answer, or an output that is sent as it is.
    """

    async def start(flags: Callable[[str], Any] = lambda text: "bad" in text, window: int = 4, **parts: Any) -> Guarded:
        read: list[str] = []

        def values(request: Any) -> Any:
            read.append(tiny_tokenizer.decode(request.prompt_token_ids))
            flagged = flags(read[-1])
            return ([0.0, 9.0] if flagged else [9.0, 0.0]) if isinstance(flagged, bool) else flagged

        engine = PoolingEngine(values, INFO)
        engine.name = "guard"
        config = ServerConfig(data_dir="memory", guard="sentry", guard_window=window)
        api = await serve(config=config, guard=GuardModel(engine, tiny_tokenizer, "sentry"), **parts)
        return Guarded(api, engine, read)

    return start
