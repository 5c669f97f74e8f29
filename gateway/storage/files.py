"""Files that are there completely or not at all, and that a power cut does not take back. All of it blocks."""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import time
from collections import OrderedDict
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from gateway.storage.keys import checked

#: Unfinished files older than this belong to nobody: no upload takes so long.
STALE_SECONDS = 3600
#: Raw pictures older than this belong to no open job: one that was drawn is finished, or given up, within minutes.
RAW_SECONDS = 86_400
_MOST_REMEMBERED = 4096


class Folder:
    """A folder of files by key. Files are readable by their owner alone."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._unfinished = root / ".unfinished"
        self._hashes: OrderedDict[tuple[str, int, int, int], str] = OrderedDict()

    def prepare(self) -> None:
        """Make the folder and clear what a crash, or an upload that came after the end of its job, left behind."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._unfinished.mkdir(mode=0o700, exist_ok=True)
        self._clear(self._unfinished, older=STALE_SECONDS)
        self._clear(self.root / "raw", older=RAW_SECONDS)

    def _clear(self, folder: Path, *, older: float) -> None:
        before = time.time() - older
        for file in [path for path in folder.rglob("*") if path.is_file()]:
            try:
                if file.stat().st_mtime < before:
                    file.unlink()
            except FileNotFoundError:
                continue  # another replica was faster

    def path(self, key: str) -> Path:
        return self.root / checked(key)

    def begin(self, key: str) -> Unfinished:
        """A file that appears under its key only when it is finished."""
        return Unfinished(self, self._unfinished / secrets.token_hex(16), self.path(key))

    def write(self, key: str, data: bytes) -> None:
        unfinished = self.begin(key)
        try:
            unfinished.write(data)
            unfinished.finish()
        finally:
            unfinished.discard()

    def read(self, key: str) -> bytes | None:
        try:
            return self.path(key).read_bytes()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return None

    def look(self, key: str) -> tuple[os.stat_result, str] | None:
        """Facts and SHA-256 of a file, None when there is none. The hash is computed once as long as the file stays."""
        path = self.path(key)
        try:
            with path.open("rb") as file:
                facts = os.fstat(file.fileno())
                known = (key, facts.st_ino, facts.st_mtime_ns, facts.st_size)
                digest = self._hashes.get(known)
                if digest is None:
                    digest = self._hashes[known] = hashlib.file_digest(file, "sha256").hexdigest()
                    if len(self._hashes) > _MOST_REMEMBERED:
                        self._hashes.popitem(last=False)
                return facts, digest
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return None

    def purge(self, prefix: str, keep: Collection[str]) -> None:
        """Remove a key, or all below a prefix, but the keys to keep. It has two segments: it never means everything."""
        top = self.path(prefix.removesuffix("/"))
        if top.is_file():
            if prefix not in keep:
                top.unlink(missing_ok=True)
            return
        for folder, _, names in os.walk(top, topdown=False, onerror=_unless_gone):
            for name in names:
                file = Path(folder, name)
                if file.relative_to(self.root).as_posix() not in keep:
                    file.unlink(missing_ok=True)
            with self.still(fcntl.LOCK_EX):
                try:
                    Path(folder).rmdir()
                except OSError:
                    continue  # something was kept, or has just been written

    @contextmanager
    def still(self, lock: int) -> Iterator[None]:
        """Under `LOCK_SH` no folder goes away, under `LOCK_EX` none is filled: in all processes that share the root."""
        descriptor = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, lock)
            yield
        finally:
            os.close(descriptor)  # and with it the lock

    def try_out(self) -> None:
        """Raises `OSError` when nothing can be written."""
        file = self._unfinished / secrets.token_hex(16)
        try:
            file.write_bytes(b"?")
        finally:
            file.unlink(missing_ok=True)


class Unfinished:
    """A file in the making. `discard` in any case; after `finish` it does nothing."""

    def __init__(self, folder: Folder, temporary: Path, path: Path) -> None:
        self._folder = folder
        self._temporary = temporary
        self._path = path
        descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        self._file = os.fdopen(descriptor, "wb")

    def write(self, data: bytes | bytearray) -> None:
        self._file.write(data)

    def finish(self) -> None:
        """Durable and visible when it returns; replaces what was there."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        with self._folder.still(fcntl.LOCK_SH):
            _make_folder(self._path.parent, self._folder.root)
            self._temporary.replace(self._path)
        try:
            _sync_folder(self._path.parent)
        except FileNotFoundError:
            pass  # purged again already

    def discard(self) -> None:
        try:
            self._file.close()
        except OSError:
            pass  # the disk is full: what could not be written is thrown away here
        finally:
            self._temporary.unlink(missing_ok=True)


def _unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _make_folder(folder: Path, root: Path) -> None:
    """Make a folder and its parents below the root, each entry safe on the disk."""
    if folder == root or folder.is_dir():
        return
    _make_folder(folder.parent, root)
    folder.mkdir(mode=0o700, exist_ok=True)
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
