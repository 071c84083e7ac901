"""/v1/batches: OpenAI's batches. Routes read and write the database; server.batches runs what is in it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from engine.errors import RequestError
from server.http.json_body import JsonRoute
from server.http.openapi import ERRORS, links
from server.http.query import QueryModel
from server.protocol.fields import Whole
from server.routes.files import LONGEST_EXPIRY, SHORTEST_EXPIRY, page_of
from server.state import State

if TYPE_CHECKING:
    from sqlalchemy import Row

router = APIRouter(route_class=JsonRoute, responses=ERRORS, tags=["Batches"])

_NEXT = links("batch_id", "retrieve_batch", "cancel_batch")

ENDPOINTS = (
    *("/v1/completions", "/v1/chat/completions", "/v1/responses"),
    *("/v1/embeddings", "/v1/classify", "/v1/moderations", "/v1/score", "/v1/rerank"),
)
Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class OutputExpiresAfter(_Strict):
    """When the files that a batch writes expire."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, Whole] = Field(ge=SHORTEST_EXPIRY, le=LONGEST_EXPIRY)


class BatchRequest(_Strict):
    """POST /v1/batches."""

    input_file_id: str = Field(max_length=64)
    endpoint: Literal[ENDPOINTS]  # type: ignore[valid-type]  # each of the tuple
    completion_window: Literal["24h"]
    metadata: Metadata | None = None
    output_expires_after: OutputExpiresAfter | None = None


class BatchList(QueryModel):
    """The query of GET /v1/batches."""

    after: str | None = Field(None, max_length=64, description="the id behind which the list begins")
    limit: int = Field(20, ge=1, le=100)


class BatchError(BaseModel):
    """What is wrong with a line of the input."""

    code: str
    line: int | None
    message: str
    param: str | None


class BatchErrors(BaseModel):
    """A list of them."""

    object: Literal["list"] = "list"
    data: list[BatchError]


class RequestCounts(BaseModel):
    """How many lines there are, and how many have their result."""

    total: int
    completed: int
    failed: int


class BatchUsage(BaseModel):
    """The tokens of all lines that were completed."""

    input_tokens: int
    input_tokens_details: dict[str, int]
    output_tokens: int
    output_tokens_details: dict[str, int]
    total_tokens: int


class Batch(BaseModel):
    """OpenAI's description of a batch."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    model: str
    errors: BatchErrors | None
    input_file_id: str
    completion_window: str
    status: str
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int | None
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    usage: BatchUsage
    metadata: dict[str, str] | None

    @classmethod
    def of(cls, row: Row[Any]) -> Batch:
        """Return the description of a stored batch."""
        columns = row._mapping
        values = {name: columns[name] for name in cls.model_fields if name in columns}
        values["errors"] = BatchErrors(data=json.loads(row.errors)) if row.errors else None
        values["metadata"] = json.loads(row.metadata) if row.metadata else None
        return cls(
            **values,
            request_counts=RequestCounts(total=row.num_total, completed=row.num_completed, failed=row.num_failed),
            usage=BatchUsage(
                input_tokens=row.num_input_tokens,
                input_tokens_details={"cached_tokens": row.num_cached_tokens},
                output_tokens=row.num_output_tokens,
                output_tokens_details={"reasoning_tokens": row.num_reasoning_tokens},
                total_tokens=row.num_input_tokens + row.num_output_tokens,
            ),
        )


class BatchPage(BaseModel):
    """A list of batches."""

    object: Literal["list"] = "list"
    data: list[Batch]
    first_id: str | None
    last_id: str | None
    has_more: bool


@router.post("/v1/batches", responses={200: {"links": _NEXT}})
async def create_batch(request: Request, body: BatchRequest, server: State) -> Batch:
    """Have the requests of a file answered, beneath live traffic."""
    caller = request.scope["caller"]
    file = await server.storage.files.get(caller.tenant, body.input_file_id)
    if file.purpose != "batch":
        message = f"The file '{file.id}' has the purpose '{file.purpose}'; a batch's has 'batch'."
        raise RequestError(message, "input_file_id")
    await server.storage.files.check_room()
    row = await server.storage.batches.create(
        caller.tenant,
        {
            "key_name": caller.key_name,
            "weight": caller.weight,
            "model": server.model_name,
            "endpoint": body.endpoint,
            "completion_window": body.completion_window,
            "input_file_id": file.id,
            "metadata": None if body.metadata is None else json.dumps(body.metadata),
            "output_expires_after": body.output_expires_after and body.output_expires_after.seconds,
        },
    )
    request.app.state.batches.wake()
    return Batch.of(row)


@router.get("/v1/batches", response_model=BatchPage)
async def list_batches(request: Request, query: Annotated[BatchList, Query()], server: State) -> Response:
    """The caller's batches, the newest first."""
    rows, has_more = await server.storage.batches.page(
        request.scope["caller"].tenant, after=query.after, limit=query.limit
    )
    return await page_of(map(Batch.of, rows), has_more)


@router.get("/v1/batches/{batch_id}")
async def retrieve_batch(batch_id: str, request: Request, server: State) -> Batch:
    """One of the caller's batches."""
    return Batch.of(await server.storage.batches.get(request.scope["caller"].tenant, batch_id))


@router.post("/v1/batches/{batch_id}/cancel")
async def cancel_batch(batch_id: str, request: Request, server: State) -> Batch:
    """End one of the caller's batches; what is finished by then becomes its files."""
    row = await server.storage.batches.cancel(request.scope["caller"].tenant, batch_id)
    request.app.state.batches.wake()
    return Batch.of(row)
