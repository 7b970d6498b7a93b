"""Claims: one holder at a time, and none that is dead."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from sdekit.study import StorageError, claims
from sdekit.study.claims import Claims


def ended() -> int:
    """Return the number of a process that has ended."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def claim(folder: Path, **owner: object) -> Path:
    folder.mkdir(exist_ok=True)
    file = folder / "cell.claim"
    file.write_text(json.dumps(owner))
    return file


def test_a_claim_is_held_by_one_and_given_back(tmp_path: Path) -> None:
    one, two = Claims(tmp_path), Claims(tmp_path)
    with one.holding("cell") as first:
        with two.holding("cell") as second, two.holding("another") as other:
            assert (first, second, other) == (1, 0, 1)
        with two.holding("cell") as still:
            assert still == 0
    with two.holding("cell") as later:
        assert later == 1
    assert [file.name for file in tmp_path.iterdir()] == [".lock"]


def test_an_error_gives_it_back(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), Claims(tmp_path).holding("cell"):
        raise KeyboardInterrupt
    with Claims(tmp_path).holding("cell") as ours:
        assert ours == 1


def test_of_many_at_once_one_wins(tmp_path: Path) -> None:
    """Also where all find the claim of a dead process and would take it over."""
    claim(tmp_path, run="gone", attempt=1, host=os.uname().nodename, pid=ended())
    ready, over, won = threading.Barrier(8), threading.Barrier(8), []

    def take() -> None:
        mine = Claims(tmp_path)
        ready.wait()
        with mine.holding("cell") as attempt:
            won.append(attempt)
            over.wait()

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == [0] * 7 + [1]


def test_the_claim_of_a_dead_process_is_void_at_once(tmp_path: Path) -> None:
    file = claim(tmp_path, run="gone", attempt=1, host=os.uname().nodename, pid=ended())
    with Claims(tmp_path).holding("cell") as ours:
        assert ours == 1
        assert json.loads(file.read_text())["pid"] == os.getpid()


def test_a_process_that_is_dead_but_listed_is_dead(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    claim(tmp_path, run="gone", attempt=1, host=os.uname().nodename, pid=child.pid)
    until = time.monotonic() + 20
    while time.monotonic() < until:  # not waited for, so it stays in the table of processes
        with Claims(tmp_path).holding("cell") as ours:
            if ours:
                break
        time.sleep(0.05)
    assert ours == 1
    child.wait()


def test_the_attempts_of_a_run_are_counted(tmp_path: Path) -> None:
    ours = Claims(tmp_path)
    for attempt in (1, 2):
        claim(tmp_path, run=ours.run, attempt=attempt, host=os.uname().nodename, pid=ended())
        assert ours.left("cell")
        assert not Claims(tmp_path).left("cell")
        with ours.holding("cell") as count:
            assert count == attempt + 1
            assert not ours.left("cell")
    assert not ours.left("cell")


def test_elsewhere_a_claim_lives_as_long_as_its_sign_of_life(tmp_path: Path) -> None:
    file = claim(tmp_path, run="other", attempt=1, host="elsewhere", pid=1)
    with Claims(tmp_path).holding("cell") as ours:
        assert ours == 0
    long_ago = time.time() - 2 * claims.STALE
    os.utime(file, (long_ago, long_ago))
    with Claims(tmp_path).holding("cell") as ours:
        assert ours == 1


def test_work_gives_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "BEAT", 0.01)
    with Claims(tmp_path).holding("cell"):
        os.utime(tmp_path / "cell.claim", (0, 0))
        until = time.monotonic() + 20
        while (tmp_path / "cell.claim").stat().st_mtime == 0:
            assert time.monotonic() < until
            time.sleep(0.01)


@pytest.mark.parametrize("torn", ["", '{"run": "a', "[]"])
def test_a_torn_claim_is_void(tmp_path: Path, torn: str) -> None:
    """Claims are written under the lock: whoever left one torn is dead."""
    (tmp_path / "cell.claim").write_text(torn)
    with Claims(tmp_path).holding("cell") as ours:
        assert ours == 1


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(StorageError, match="must be able to write"),
        Claims(tmp_path / "file" / "claims").holding("cell"),
    ):
        pass
