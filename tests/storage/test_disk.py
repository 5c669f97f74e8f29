"""What the folder keeps, and how."""

from __future__ import annotations

import os
import time
from pathlib import Path

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import StorageUnavailable
from gateway.storage.disk import DiskStorage
from gateway.storage.files import STALE_SECONDS, Folder
from gateway.storage.keys import is_key
from tests.storage.conftest import INTERNAL, PUBLIC, SECRET, Clock, files, signed

pytestmark = pytest.mark.anyio


async def test_what_is_kept_can_be_read(storage: DiskStorage) -> None:
    await storage.keep("master/job1/0.png", b"pixels")
    assert await storage.read("master/job1/0.png") == b"pixels"
    await storage.keep("master/job1/0.png", b"other pixels")
    assert await storage.read("master/job1/0.png") == b"other pixels"


async def test_what_is_not_there_reads_as_none(storage: DiskStorage) -> None:
    await storage.keep("master/job1/0.png", b"pixels")
    assert await storage.read("master/job1/1.png") is None
    assert await storage.read("master/job1") is None
    assert await storage.read("master/job1/0.png/deeper") is None


async def test_only_what_is_signed_gets_to_where_links_lead(storage: DiskStorage, root: Path) -> None:
    for key in ("out/job1/0.jpg", "unsafe/job1/0.jpg"):
        with pytest.raises(ValueError, match="only what is signed"):
            await storage.keep(key, b"pixels")
    for key in ("master/job1/0.jpg", "quarantine/job1/0.jpg", "raw/job1/0.jpg", "out/job1/0.png"):
        with pytest.raises(ValueError, match="no place"):
            await storage.publish(key, signed())
    assert files(root) == []
    await storage.publish("out/job1/0.jpg", signed())
    assert files(root) == ["out/job1/0.jpg"]


@pytest.mark.parametrize("key", ["raw/job1/0.png", "master/job1/0.png", "quarantine/job1/0.png"])
async def test_what_is_private_gets_no_link(storage: DiskStorage, key: str) -> None:
    with pytest.raises(ValueError, match="private"):
        storage.link(key, filename="a.png", expires_at=2e6)


@pytest.mark.parametrize("key", ["out/job1/0.png", "master/job1/0.png", "quarantine/job1/0.png", "raw/job1/0.jpg"])
async def test_a_worker_gets_a_slot_for_raw_pngs_only(storage: DiskStorage, key: str) -> None:
    with pytest.raises(ValueError, match="upload"):
        storage.slot(key, expires_at=2e6)


async def test_files_and_folders_are_the_owners_alone(storage: DiskStorage, root: Path) -> None:
    await storage.publish("out/job1/0.jpg", signed())
    await storage.keep("master/job1/0.png", b"pixels")
    modes = {oct(path.stat().st_mode & 0o777) for path in (root, *root.rglob("*")) if path.is_dir()}
    assert modes == {"0o700"}
    assert {oct(path.stat().st_mode & 0o777) for path in root.rglob("*") if path.is_file()} == {"0o600"}


async def test_purge_leaves_what_is_to_be_kept(storage: DiskStorage, root: Path) -> None:
    for key in ("raw/job1/0/0.png", "raw/job1/1/0.png", "raw/job10/0/0.png", "master/job1/0.png"):
        await storage.keep(key, b"pixels")
    await storage.purge("raw/job1/", keep=frozenset({"raw/job1/1/0.png"}))
    assert files(root) == ["master/job1/0.png", "raw/job1/1/0.png", "raw/job10/0/0.png"]
    await storage.purge("raw/job1")
    assert not (root / "raw" / "job1").exists()
    await storage.purge("raw/job1")
    assert files(root) == ["master/job1/0.png", "raw/job10/0/0.png"]


async def test_a_single_file_can_be_purged(storage: DiskStorage, root: Path) -> None:
    for key in ("master/job1/0.png", "master/job1/1.png"):
        await storage.keep(key, b"pixels")
    await storage.purge("master/job1/0.png", keep=frozenset({"master/job1/0.png"}))
    assert files(root) == ["master/job1/0.png", "master/job1/1.png"]
    await storage.purge("master/job1/0.png")
    assert files(root) == ["master/job1/1.png"]
    await storage.purge("master/job1/0.png")


@pytest.mark.parametrize("prefix", ["", "/", "raw", "raw/", ".", "raw/..", "../raw/job1"])
async def test_purge_never_means_everything(storage: DiskStorage, root: Path, prefix: str) -> None:
    await storage.keep("raw/job1/0.png", b"pixels")
    with pytest.raises(ValueError, match="not a storage key"):
        await storage.purge(prefix)
    assert files(root) == ["raw/job1/0.png"]


async def test_writing_and_purging_at_once_never_fails(storage: DiskStorage) -> None:
    async def write() -> None:
        for _ in range(20):
            await storage.keep("raw/job1/0/0.png", b"pixels")

    async def purge() -> None:
        for _ in range(20):
            await storage.purge("raw/job1")

    async with anyio.create_task_group() as tasks:
        for work in (write, write, purge):
            tasks.start_soon(work)
    await storage.keep("raw/job1/0/0.png", b"pixels")
    assert await storage.read("raw/job1/0/0.png") == b"pixels"


async def test_a_file_is_on_the_disk_before_its_name_is_and_both_before_publish_returns(
    storage: DiskStorage, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await storage.publish("out/job0/0.jpg", signed())
    steps: list[str] = []
    sync, replace = os.fsync, os.replace

    def note_sync(descriptor: int) -> None:
        steps.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).relative_to(root).as_posix())
        sync(descriptor)

    def note_replace(source: Path, target: Path) -> None:
        steps.append("renamed")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "replace", note_replace)
    await storage.publish("out/job1/0.jpg", signed())
    assert steps[0].startswith(".unfinished/")
    assert steps[1:] == ["out", "renamed", "out/job1"]


async def test_what_a_crash_left_unfinished_is_cleared_at_the_next_start(root: Path, clock: Clock) -> None:
    storage = DiskStorage(root, secret=SECRET, public_url=PUBLIC, internal_url=INTERNAL, now=clock)
    async with storage.open():
        pass
    old, fresh = root / ".unfinished" / "old", root / ".unfinished" / "fresh"
    old.write_bytes(b"half a pict")
    fresh.write_bytes(b"another replica is at it")
    os.utime(old, (old.stat().st_atime, old.stat().st_mtime - STALE_SECONDS - 60))
    async with storage.open():
        assert files(root) == [".unfinished/fresh"]


def test_building_a_storage_touches_nothing(root: Path, clock: Clock) -> None:
    DiskStorage(root, secret=SECRET, public_url=PUBLIC, internal_url=INTERNAL, now=clock)
    assert not root.exists()


async def test_a_storage_that_can_write_is_ready(storage: DiskStorage) -> None:
    assert (await storage.readiness()).ready


async def test_a_folder_that_is_gone_is_not_ready_and_says_so(storage: DiskStorage, root: Path) -> None:
    (root / ".unfinished").rmdir()
    readiness = await storage.readiness()
    assert not readiness.ready
    assert "No such file" in readiness.reason
    assert str(root) not in readiness.reason
    with pytest.raises(StorageUnavailable):
        await storage.keep("master/job1/0.png", b"pixels")


async def test_a_full_disk_is_not_ready(storage: DiskStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.storage.disk.ROOM", 2**80)
    readiness = await storage.readiness()
    assert not readiness.ready
    assert "MB left" in readiness.reason


async def test_a_write_that_fails_leaves_nothing_behind(storage: DiskStorage, root: Path) -> None:
    (root / "master").write_bytes(b"a file where a folder should be")
    with pytest.raises(StorageUnavailable):
        await storage.keep("master/job1/0.png", b"pixels")
    assert files(root) == ["master"]


hostile = st.one_of(
    st.text(max_size=40),
    st.lists(
        st.sampled_from(
            ["..", ".", "", "/", "\\", "\0", "\n", "~", "out", "raw", "a.png", "%2e%2e", "．．", ".unfinished"]
        ),
        max_size=8,
    ).map("/".join),
    st.from_regex(r"[a-z0-9_./-]{0,40}", fullmatch=True),
)


@given(key=hostile)
def test_no_key_leads_out_of_the_folder(key: str) -> None:
    folder = Folder(Path("/srv/pictures"))
    if not is_key(key):
        with pytest.raises(ValueError, match="not a storage key"):
            folder.path(key)
        return
    path = Path(os.path.normpath(folder.path(key)))
    assert path == folder.path(key)
    assert len(path.relative_to(folder.root).parts) >= 2
    assert not any(part.startswith(".") for part in path.relative_to(folder.root).parts)


@pytest.mark.parametrize("key", ["out/a.jpg", "raw/0abc/0/1.png", "master/a_b-c/0.png", "out/" + "a" * 128])
def test_keys_that_we_use_are_keys(key: str) -> None:
    assert is_key(key)


@pytest.mark.parametrize(
    "key",
    [
        "",
        "out",
        "/out/a",
        "out/",
        "out//a",
        "out/../a",
        "out/a..b",
        "out/.a",
        "out/A.jpg",
        "out/a\n",
        "out/a b",
        "o/" * 300,
    ],
)
def test_what_is_not_a_key_is_refused(key: str) -> None:
    assert not is_key(key)


async def test_raw_pictures_that_nobody_came_for_go_at_the_next_start(tmp_path):
    """An upload may come after its job has ended; nothing else would ever remove it."""
    storage = DiskStorage(tmp_path, secret=b"s" * 32, public_url="http://x", internal_url="http://x", now=time.time)
    async with storage.open():
        for key in ("raw/old/0/0.png", "raw/new/0/0.png", "master/old/0.png"):
            await storage.keep(key, b"x")
    for old in ("raw/old/0/0.png", "master/old/0.png"):
        os.utime(tmp_path / old, (1, 1))
    async with storage.open():
        kept = [await storage.read(key) for key in ("raw/old/0/0.png", "raw/new/0/0.png", "master/old/0.png")]
    assert kept == [None, b"x", b"x"]
