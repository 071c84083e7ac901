"""The database opens late, keeps what is committed and nothing else, and says what is wrong with it."""

import sqlite3
import stat
import subprocess
import sys

import pytest
from sqlalchemy import insert, select, update

from engine.errors import StorageError
from server.storage.database import Database, default_url
from server.storage.schema import VERSION, responses, version

ROW = {"id": "r", "tenant": "", "created_at": 1, "expires_at": 2, "size": 1, "data": b"x"}


def put(connection):
    connection.execute(insert(responses).values(**ROW))


def ids(connection):
    return list(connection.execute(select(responses.c.id)).scalars())


async def test_nothing_is_opened_before_it_is_used(database, database_path):
    assert not database.may_have_data
    assert not database_path.parent.exists()
    assert await database.read(ids) == []
    assert database.may_have_data
    assert stat.S_IMODE(database_path.stat().st_mode) == 0o600
    assert stat.S_IMODE(database_path.parent.stat().st_mode) == 0o700


def test_the_app_starts_without_sqlalchemy():
    code = "import sys, server.app; sys.exit('sqlalchemy' in sys.modules)"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


async def test_what_is_written_is_found_by_others_and_what_fails_is_not(database, database_path):
    await database.write(put)

    def fail(connection):
        connection.execute(update(responses).values(id="other"))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await database.write(fail)
    other = Database(default_url(str(database_path.parent)))
    assert await other.read(ids) == ["r"]
    await other.close()


async def test_a_database_in_memory_is_one_database_and_is_closed_by_its_thread(caplog):
    database = Database(default_url("memory"))
    assert not database.may_have_data
    await database.write(put)
    assert await database.read(ids) == ["r"]
    await database.close()
    assert not caplog.records


async def test_off_stores_nothing():
    database = Database(default_url("off"))
    with pytest.raises(StorageError, match="--data-dir off"):
        await database.read(ids)
    await database.close()


def test_the_default_folder(monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert default_url(None) == "sqlite:////state/deepseek-serve/deepseek-serve.sqlite"
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert default_url(None) == "sqlite:////home/someone/.local/state/deepseek-serve/deepseek-serve.sqlite"


async def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    database = Database(default_url(str(tmp_path / "file" / "folder")))
    with pytest.raises(StorageError, match=r"Nothing can be stored in .*/file/folder: Not a directory"):
        await database.write(put)
    await database.close()


async def test_a_folder_that_cannot_be_looked_into_has_no_data(monkeypatch):
    def refuse(_):
        raise PermissionError

    monkeypatch.setattr("os.stat", refuse)
    assert not Database(default_url("/somewhere")).may_have_data


async def test_a_broken_file_is_named_and_another_may_take_its_place(database, database_path):
    database_path.parent.mkdir()
    database_path.write_bytes(b"no database" * 1000)
    with pytest.raises(StorageError, match=r"deepseek-serve\.sqlite says 'file is not a database'"):
        await database.write(put)
    database_path.unlink()
    await database.write(put)
    assert await database.read(ids) == ["r"]


async def test_a_full_disk_is_an_error_and_loses_nothing(database):
    await database.write(put)

    def too_much(connection):
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
        connection.execute(insert(responses).values(**ROW | {"id": "large", "data": bytes(1 << 20)}))

    with pytest.raises(StorageError, match="database or disk is full"):
        await database.write(too_much)
    assert await database.read(ids) == ["r"]


async def test_a_locked_database_is_an_error_in_time(database, database_path, monkeypatch):
    monkeypatch.setattr("server.storage.database._BUSY_TIMEOUT", 0.05)
    await database.write(put)
    other = sqlite3.connect(database_path)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StorageError, match="database is locked"):
        await database.write(put)
    assert await database.read(ids) == ["r"]  # readers go on
    other.rollback()
    other.close()


async def test_a_newer_database_is_refused(database, database_path):
    await database.write(lambda connection: connection.execute(update(version).values(version=VERSION + 1)))
    other = Database(default_url(str(database_path.parent)))
    with pytest.raises(StorageError, match="written by a newer server"):
        await other.read(ids)
    await other.close()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgresql+psycopg2://x@localhost/y", "a driver that is not installed: psycopg2"),
        ("x", "Could not parse SQLAlchemy URL"),
    ],
)
async def test_a_bad_url_and_a_missing_driver_are_explained(url, words):
    database = Database(url)
    with pytest.raises(StorageError, match=words):
        await database.read(ids)
    await database.close()
