"""/v1/files: OpenAI's files. Their bytes go to the database as they arrive, and come from it as they are read."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Annotated, Literal
from urllib.parse import quote

import msgspec
from fastapi import APIRouter, HTTPException, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field
from starlette.requests import ClientDisconnect

from engine.errors import RequestError
from server.http.access import LEFT
from server.http.multipart import FormReader
from server.http.openapi import ERRORS, links, media
from server.http.query import QueryModel
from server.state import State
from server.storage import BATCH_FILES_LAST
from server.storage.database import PART_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from server.storage.files import StoredFile

router = APIRouter(responses=ERRORS, tags=["Files"])

SHORTEST_EXPIRY, LONGEST_EXPIRY = 3600, 30 * 86400
_PURPOSES = ("batch", "user_data")
_FORM = {
    "type": "object",
    "required": ["file", "purpose"],
    "properties": {
        "file": {"type": "string", "format": "binary"},
        "purpose": {"type": "string", "enum": list(_PURPOSES)},
        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
        "expires_after[seconds]": {"type": "integer", "minimum": SHORTEST_EXPIRY, "maximum": LONGEST_EXPIRY},
    },
    "additionalProperties": False,
    "dependentRequired": {
        "expires_after[anchor]": ["expires_after[seconds]"],
        "expires_after[seconds]": ["expires_after[anchor]"],
    },
}
_BYTES = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
_BODY = {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _FORM}}}}
_NEXT = links("file_id", "retrieve_file", "retrieve_content", "delete_file")


class FileObject(BaseModel):
    """OpenAI's description of a file."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"
    status_details: None = None

    @classmethod
    def of(cls, file: StoredFile) -> FileObject:
        """Return the description of a stored file."""
        values = {name: value for name, value in file._asdict().items() if name in cls.model_fields}
        return cls(**values)


class FilePage(BaseModel):
    """A list of files."""

    object: Literal["list"] = "list"
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileDeleted(BaseModel):
    """What a file's deletion is answered with."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


class FileList(QueryModel):
    """The query of GET /v1/files."""

    after: str | None = Field(None, max_length=64, description="the id behind which the list begins")
    limit: int = Field(10_000, ge=1, le=10_000)
    order: Literal["asc", "desc"] = "desc"
    purpose: str | None = Field(None, max_length=32)


@router.post("/v1/files", openapi_extra=_BODY, responses={200: {"links": _NEXT}})
async def create_file(request: Request, server: State) -> FileObject:
    """Upload a file: multipart/form-data with `file`, `purpose`, and `expires_after` if wanted."""
    form = FormReader(request.headers.get("content-type", ""), "file")
    async with server.storage.files.upload(request.scope["caller"].tenant) as upload:
        try:
            async for piece in form.file_pieces(request.stream(), PART_BYTES):
                await upload.write(piece)
        except ClientDisconnect:
            raise HTTPException(LEFT, "The client left.") from None
        purpose = _purpose(form.fields)
        lasts = _expires_after(form.fields, BATCH_FILES_LAST if purpose == "batch" else None)
        if form.fields:
            name = next(iter(form.fields))
            raise RequestError(f"Unsupported parameter: '{name}' is not implemented by this server.", name)
        return FileObject.of(await upload.finish(_base_name(form.filename or ""), purpose, lasts))


@router.get("/v1/files", response_model=FilePage)
async def list_files(request: Request, query: Annotated[FileList, Query()], server: State) -> Response:
    """The caller's files, the newest first unless asked otherwise."""
    found, has_more = await server.storage.files.page(
        request.scope["caller"].tenant,
        after=query.after,
        limit=query.limit,
        is_ascending=query.order == "asc",
        purpose=query.purpose,
    )
    return await page_of(map(FileObject.of, found), has_more)


@router.get("/v1/files/{file_id}")
async def retrieve_file(file_id: str, request: Request, server: State) -> FileObject:
    """One of the caller's files."""
    return FileObject.of(await server.storage.files.get(request.scope["caller"].tenant, file_id))


@router.get("/v1/files/{file_id}/content", responses=media("application/octet-stream"), response_class=Response)
async def retrieve_content(file_id: str, request: Request, server: State) -> Response:
    """A file's bytes."""
    file = await server.storage.files.get(request.scope["caller"].tenant, file_id)
    headers = {
        "Content-Length": str(file.bytes),
        "Content-Disposition": f"attachment; filename*=utf-8''{quote(file.filename, safe='')}",
        "X-Content-Type-Options": "nosniff",
    }
    content = server.storage.files.content(file.content_id, file.kind)
    return StreamingResponse(content, headers=headers, media_type="application/octet-stream")


@router.delete("/v1/files/{file_id}")
async def delete_file(file_id: str, request: Request, server: State) -> FileDeleted:
    """Delete one of the caller's files; running batches still read it to its end."""
    await server.storage.files.delete(request.scope["caller"].tenant, file_id)
    await server.storage.files.sweep()
    return FileDeleted(id=file_id)


async def page_of(objects: Iterable[BaseModel], has_more: bool) -> Response:
    """Return one page of a list. It may have thousands of objects, so they are made and written in a thread."""

    def write() -> bytes:
        data = [one.model_dump() for one in objects]
        ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {"first_id": None, "last_id": None}
        return msgspec.json.encode({"object": "list", "data": data, **ends, "has_more": has_more})

    return Response(await asyncio.to_thread(write), media_type="application/json")


def _purpose(fields: dict[str, str]) -> str:
    purpose = fields.pop("purpose", None)
    if purpose is None:
        raise RequestError("Missing required parameter: 'purpose'.", "purpose")
    if purpose not in _PURPOSES:
        raise RequestError(f"Invalid 'purpose': '{purpose}'; this server keeps files for {_PURPOSES}.", "purpose")
    return purpose


def _expires_after(fields: dict[str, str], default: int | None) -> int | None:
    """Return how many seconds a file lasts."""
    anchor, seconds = fields.pop("expires_after[anchor]", None), fields.pop("expires_after[seconds]", None)
    if anchor is None and seconds is None:
        return default
    if anchor != "created_at":
        raise RequestError("Invalid 'expires_after[anchor]': it must be 'created_at'.", "expires_after")
    number = int(seconds) if seconds is not None and re.fullmatch(r"[0-9]{1,9}", seconds) else 0
    if not SHORTEST_EXPIRY <= number <= LONGEST_EXPIRY:
        message = f"Invalid 'expires_after[seconds]': it must be from {SHORTEST_EXPIRY} to {LONGEST_EXPIRY}."
        raise RequestError(message, "expires_after")
    return number


def _base_name(filename: str) -> str:
    """Return a file's name without folders and control characters; it is text, and no file ever has it."""
    name = re.split(r"[/\\]", filename)[-1]
    return "".join(c for c in name if c.isprintable())[:255] or "file"
