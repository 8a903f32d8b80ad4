"""One process builds a cache at a time, and a killed one does not keep others out."""

from __future__ import annotations

import errno
import fcntl
import subprocess
import sys
from pathlib import Path

import pytest

from xtoken_pl.teachers.cache.lock import LOCK_FILE, building
from xtoken_pl.utilities.errors import UserError

#: Locks a file, says so, and waits to be killed; imports nothing of ours, which would take seconds.
_HOLDER = """
import sys
from filelock import FileLock

lock = FileLock(sys.argv[1])
lock.acquire()
print("locked", flush=True)
sys.stdin.read()
"""


def test_a_directory_is_free_again_after_its_builder_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _HOLDER, str(tmp_path / LOCK_FILE)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        refused = pytest.raises(UserError, match=f"another one is building {tmp_path}; wait for it or stop it")
        with refused, building(tmp_path):
            pass
        holder.kill()
    with building(tmp_path):
        pass


def test_a_directory_is_free_again_after_a_build_that_failed(tmp_path: Path) -> None:
    with pytest.raises(KeyError), building(tmp_path / "new"):
        raise KeyError
    with building(tmp_path / "new"):
        pass


@pytest.mark.parametrize("reason", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK])
def test_a_build_goes_on_with_a_warning_where_files_cannot_be_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: int
) -> None:
    refuse_locks(monkeypatch, OSError(reason, "no locks"))
    built = False
    warned = pytest.warns(UserWarning, match="cannot be locked .*no locks.*: make sure nothing else builds there")
    with warned, building(tmp_path):
        built = True
    assert built


def test_other_errors_of_a_lock_are_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_locks(monkeypatch, OSError(errno.EIO, "the disk is broken"))
    with pytest.raises(OSError, match="the disk is broken"), building(tmp_path):
        pass


def refuse_locks(monkeypatch: pytest.MonkeyPatch, error: OSError) -> None:
    def flock(*_: object) -> None:
        raise error

    monkeypatch.setattr(fcntl, "flock", flock)
