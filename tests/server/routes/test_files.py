"""/v1/files: what goes in comes out, for its owner alone, within bounds."""

import asyncio
import time

import pytest

from server.config import ServerConfig
from server.storage.files import MAX_UPLOADS
from tests.server.conftest import check_error

BATCH = {"purpose": "batch"}


@pytest.fixture
async def files(serve, tmp_path):
    """files(...) -> an API that stores files in a folder."""
    apis = []

    async def make(**config):
        api = await serve(run=False, config=ServerConfig(**{"data_dir": str(tmp_path / "state")} | config))
        apis.append(api)
        return api

    yield make
    for api in apis:
        await api.app.state.server.storage.close()


async def upload(api, content=b"{}\n", filename="a.jsonl", data=BATCH, **options):
    return await api.http.post("/v1/files", data=data, files={"file": (filename, content)}, **options)


async def test_a_file_comes_out_as_it_went_in(files):
    api = await files()
    content = bytes(range(256)) * 5000  # several parts
    file = (await upload(api, content)).json()
    now = int(time.time())
    assert file.pop("id").startswith("file-")
    assert now - 2 <= file.pop("created_at") <= now
    assert now + 30 * 86400 - 2 <= file.pop("expires_at") <= now + 30 * 86400
    assert file == {
        "object": "file",
        "bytes": len(content),
        "filename": "a.jsonl",
        "purpose": "batch",
        "status": "processed",
        "status_details": None,
    }
    [listed] = (await api.http.get("/v1/files")).json()["data"]
    assert (await api.http.get(f"/v1/files/{listed['id']}")).json() == listed
    answer = await api.http.get(f"/v1/files/{listed['id']}/content")
    assert answer.content == content
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"] == "attachment; filename*=utf-8''a.jsonl"
    deleted = {"id": listed["id"], "object": "file", "deleted": True}
    assert (await api.http.delete(f"/v1/files/{listed['id']}")).json() == deleted
    for path in (f"/v1/files/{listed['id']}", f"/v1/files/{listed['id']}/content"):
        check_error(await api.http.get(path), 404, param="file_id")
    check_error(await api.http.delete(f"/v1/files/{listed['id']}"), 404)


async def test_the_expiry_is_the_callers(files):
    api = await files()
    data = BATCH | {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
    file = (await upload(api, data=data)).json()
    assert file["expires_at"] == file["created_at"] + 3600
    api.app.state.server.storage.files._clock = lambda: file["expires_at"]
    check_error(await api.http.get(f"/v1/files/{file['id']}"), 404)
    assert (await api.http.get("/v1/files")).json()["data"] == []
    kept = (await upload(api, data={"purpose": "user_data"})).json()
    assert kept["expires_at"] is None


@pytest.mark.parametrize(
    ("filename", "kept"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\x\\y.jsonl", "y.jsonl"),
        ("a\x85b\u202e.jsonl", "ab.jsonl"),
        ("über maß.jsonl", "über maß.jsonl"),
        ("x" * 300, "x" * 255),
        ("/", "file"),
    ],
)
async def test_a_name_is_only_a_name(files, filename, kept):
    api = await files()
    assert (await upload(api, filename=filename)).json()["filename"] == kept


@pytest.mark.parametrize(
    ("data", "param"),
    [
        ({}, "purpose"),
        ({"purpose": "fine-tune"}, "purpose"),
        (BATCH | {"more": "x"}, "more"),
        (BATCH | {"expires_after[anchor]": "created_at"}, "expires_after"),
        (BATCH | {"expires_after[anchor]": "x", "expires_after[seconds]": "3600"}, "expires_after"),
        (BATCH | {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3599"}, "expires_after"),
        (BATCH | {"expires_after[anchor]": "created_at", "expires_after[seconds]": "-1"}, "expires_after"),
        (BATCH | {"more": "x" * 5000}, None),
        ({f"f{i}": "x" for i in range(20)}, "f16"),
    ],
)
async def test_a_bad_form_is_refused_and_leaves_nothing(files, data, param):
    api = await files()
    check_error(await upload(api, data=data), 400, param=param)
    storage = api.app.state.server.storage
    counted = "SELECT (SELECT count(*) FROM files), (SELECT count(*) FROM parts)"
    assert await storage.database.read(lambda c: tuple(c.exec_driver_sql(counted).one())) == (0, 0)


FORM = {"Content-Type": "multipart/form-data; boundary=b"}
PART = b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\nhello\r\n'


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"Content-Type": "application/json"}, b"{}"),
        ({"Content-Type": "multipart/form-data"}, b""),
        (FORM, b""),
        (FORM, b"no form"),
        (FORM, PART),
        (FORM, PART + PART + b"--b--\r\n"),
        (FORM, b"--b\r\n\r\nx\r\n--b--\r\n"),
        (FORM, b"--b\r\nContent-Disposition: form-data; name=" + b"x" * 10_000 + b"\r\n\r\nx\r\n--b--\r\n"),
        (FORM, b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--b--\r\n'),
        (FORM, PART.replace(b"\r\n\r\n", b"\r\nContent-Transfer-Encoding: base64\r\n\r\n") + b"--b--\r\n"),
    ],
)
async def test_what_is_no_form_is_refused(files, headers, body):
    api = await files()
    check_error(await api.http.post("/v1/files", headers=headers, content=body), 400)


async def test_files_are_listed_by_pages(files):
    api = await files()
    made = [(await upload(api, data={"purpose": p})).json()["id"] for p in ("batch", "user_data", "batch", "batch")]

    async def ids(**params):
        page = (await api.http.get("/v1/files", params=params)).json()
        found = [file["id"] for file in page["data"]]
        assert (page["first_id"], page["last_id"]) == ((found[0], found[-1]) if found else (None, None))
        return found, page["has_more"]

    assert await ids() == (made[::-1], False)
    assert await ids(order="asc", limit=3) == (made[:3], True)
    assert await ids(order="asc", limit=3, after=made[2]) == (made[3:], False)
    assert await ids(after=made[1]) == (made[:1], False)
    assert await ids(purpose="user_data") == (made[1:2], False)
    check_error(await api.http.get("/v1/files", params={"after": "x"}), 404, param="after")
    for params in ({"limit": 0}, {"limit": 10_001}, {"order": "up"}, {"else": 1}):
        check_error(await api.http.get("/v1/files", params=params), 400, param=next(iter(params)))


async def test_files_are_bounded_in_number_and_bytes(files):
    api = await files(max_files=2, max_files_size=1.0)
    first = (await upload(api, bytes(700_000))).json()
    check_error(await upload(api, bytes(700_000)), 400, code="storage_limit_exceeded")
    assert (await upload(api, bytes(100_000))).status_code == 200
    check_error(await upload(api), 400, code="storage_limit_exceeded")
    await api.http.delete(f"/v1/files/{first['id']}")
    assert (await upload(api, bytes(700_000))).status_code == 200


async def test_uploads_at_a_time_are_bounded(files):
    api = await files()
    api.app.state.server.storage.files.num_uploads = MAX_UPLOADS
    check_error(await upload(api), 429)
    api.app.state.server.storage.files.num_uploads = 0


async def test_a_client_that_leaves_leaves_nothing(files):
    api = await files()
    storage, held = api.app.state.server.storage, asyncio.Event()

    async def body():
        yield PART[:-2] + bytes(300_000)
        held.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(api.http.post("/v1/files", headers=FORM, content=body()))
    await held.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert storage.files.num_uploads == 0


async def test_what_an_upload_left_that_never_ended_goes_after_a_day(files):
    store = (await files()).app.state.server.storage.files
    upload = store.upload(b"")
    await upload.__aenter__()
    await upload.write(b"x")
    await store.sweep()
    assert [p async for p in store.content(upload.file_id, 0)] == [b"x"]
    now = store.now
    store._clock = lambda: now + 86400
    await store.sweep()
    assert [p async for p in store.content(upload.file_id, 0)] == []


async def test_without_storage_each_route_says_so(files):
    api = await files(data_dir="off")
    for response in (await upload(api), await api.http.get("/v1/files"), await api.http.get("/v1/batches")):
        error = check_error(response, 503, code="storage_unavailable")
        assert "--data-dir off" in error["message"]


async def test_what_is_kept_in_memory_works_the_same(files):
    api = await files(data_dir="memory")
    file = (await upload(api, b"x" * 300_000)).json()
    assert (await api.http.get(f"/v1/files/{file['id']}/content")).content == b"x" * 300_000
