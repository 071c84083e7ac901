"""GET /, /docs and /openapi.json: the page on which people try the model, and the API's reference and its source.

Nothing of them comes from elsewhere.
The files of the page lie in server/page; the reference's are Swagger UI's, from the package fastapi-offline.
"""

from __future__ import annotations

import asyncio
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

if TYPE_CHECKING:
    from starlette.types import Scope

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'{data}; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'{types}"
)
_COMMON = {"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
# The page never parses text as markup, so browsers may forbid it. Swagger UI does, and has icons in data: addresses.
_PAGE = _POLICY.format(data="", types="; require-trusted-types-for 'script'")
_DOCS = _POLICY.format(data=" data:", types="")

router = APIRouter(include_in_schema=False)


class _Files(StaticFiles):
    """A folder whose answers have the common headers: browsers ask each time whether a file is still the same."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """Called by Starlette."""
        response = await super().get_response(path, scope)
        response.headers.update(_COMMON)
        return response


_page_files = _Files(directory=Path(__file__).parents[1] / "page")


@router.head("/")
@router.get("/")
async def page(request: Request) -> Response:
    """The page."""
    return await _document("index.html", request, _PAGE)


@router.head("/docs")
@router.get("/docs")
async def docs(request: Request) -> Response:
    """The API's reference."""
    if request.scope["raw_path"].endswith(b"/"):  # the addresses in it are relative
        return RedirectResponse("../docs")
    return await _document("docs.html", request, _DOCS)


@router.head("/openapi.json")
@router.get("/openapi.json")
async def openapi(request: Request) -> Response:
    """The API's OpenAPI document."""
    return Response(await asyncio.to_thread(request.app.document), media_type="application/json")


@router.head("/page/{name}")
@router.get("/page/{name}")
async def page_file(name: str, request: Request) -> Response:
    """What the two refer to."""
    return await _page_files.get_response(name, request.scope)


@router.head("/docs/{name}")
@router.get("/docs/{name}")
async def docs_file(name: str, request: Request) -> Response:
    """Swagger UI."""
    return await _swagger_files().get_response(name, request.scope)


async def _document(name: str, request: Request, policy: str) -> Response:
    response = await _page_files.get_response(name, request.scope)
    response.headers["Content-Security-Policy"] = policy
    return response


@cache
def _swagger_files() -> _Files:
    package = find_spec("fastapi_offline")  # not imported: only its files are wanted
    assert package is not None
    assert package.origin is not None
    return _Files(directory=Path(package.origin).parent / "static")
