"""Leases: one owner at a time, whoever is killed, paused, cut off or has a clock that jumps."""

import functools
import itertools
import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schedule import STORES, Killed, World

from v2f.storage import store, term
from v2f.storage.lease import EXPIRY_S, Clock, HeldError, Lease, LostError
from v2f.storage.term import highest_term


class Ticking(Clock):
    """Moves when somebody waits; then ``then`` is done, as by others in the meantime."""

    def __init__(self, then: Callable[[], Any] = lambda: None, faster: float = 1) -> None:
        self.time, self.then, self.faster = 0.0, then, faster

    def now(self) -> float:
        return self.time

    def pause(self, seconds: float) -> None:
        self.time += seconds * self.faster
        self.then()


def take(root: object, what: str = "one", then: Callable[[], Any] = lambda: None, **kinds: Any) -> Lease:
    return Lease.take(str(root), what, clock=kinds.pop("clock", None) or Ticking(then), renewing=False, **kinds)


def test_who_has_it_is_named_to_whoever_waits_in_vain(tmp_path: Path) -> None:
    owner, said, clock = take(tmp_path, "v2f train"), [], Ticking()
    clock.then = owner.renew
    with pytest.raises(HeldError, match=r"in use by v2f train \(process \d+ on .*\), which is running; wait for it"):
        take(tmp_path, "two", clock=clock, say=said.append)
    assert EXPIRY_S <= clock.time <= EXPIRY_S + 2
    (line,) = said
    assert "v2f train (process" in line
    assert "waiting up to 45 s for it to finish" in line
    with owner.holding():
        assert owner.lost is None


def test_waiting_can_be_interrupted_and_ends_with_the_owner(tmp_path: Path) -> None:
    owner, clock = take(tmp_path), Ticking()
    with pytest.raises(HeldError, match="the wait for it was interrupted"):
        take(tmp_path, "two", interrupted=lambda: True)
    clock.then = lambda: owner.end() if clock.time > 5 else owner.renew()
    assert take(tmp_path, "two", clock=clock).number == 2
    assert clock.time < 10


def test_a_lease_that_is_not_renewed_is_taken_and_its_owner_told(tmp_path: Path) -> None:
    owner, clock = take(tmp_path, "one"), Ticking()
    second = take(tmp_path, "two", clock=clock)
    assert EXPIRY_S <= clock.time <= 60
    assert second.number > owner.number
    for act in (owner.check, owner.renew, lambda: owner.holding().__enter__(), lambda: owner.put(f"{tmp_path}/x", b"")):
        with pytest.raises(LostError, match=r"two .* has taken over from one .*, which stops without writing more"):
            act()
    assert owner.lost is not None
    owner.end()  # which is not the second one's end
    second.check()
    assert highest_term(str(tmp_path)) is not None


def test_an_owner_that_lapsed_and_was_not_taken_goes_on(tmp_path: Path) -> None:
    owner, clock = take(tmp_path), Ticking()
    clock.time += 10 * EXPIRY_S
    with owner.holding():
        owner.put(str(tmp_path / "x"), b"content")
    assert (tmp_path / "x").read_bytes() == b"content"


def test_what_is_held_together_is_refused_to_everybody_else(tmp_path: Path) -> None:
    parts = [take(tmp_path, f"part {n}", share="a pack", member=str(n)) for n in range(3)]

    def renew() -> None:
        for part in parts:
            part.renew()

    for kinds in ({}, {"share": "another pack"}, {"share": "a pack", "member": "1"}):
        with pytest.raises(HeldError):
            take(tmp_path, "two", renew, **kinds)
    parts.pop(1).end()
    parts.append(take(tmp_path, "part 1", renew, share="a pack", member="1"))
    for part in parts:
        part.end()
    assert take(tmp_path, "alone").number == 5


def test_a_part_that_is_taken_over_leaves_the_others_alone(tmp_path: Path) -> None:
    parts = [take(tmp_path, f"part {n}", share="a pack", member=str(n)) for n in range(3)]
    again = take(tmp_path, "part 0 again", lambda: (parts[1].renew(), parts[2].renew()), share="a pack", member="0")
    for part in (parts[1], parts[2], again):
        part.check()
    with pytest.raises(LostError):
        parts[0].check()


@pytest.mark.parametrize("content", [b"", b"\0\xff", b"[]", b'{"number": 3}'])
def test_a_number_that_cannot_be_read_lapses(tmp_path: Path, content: bytes) -> None:
    store.write_bytes(str(tmp_path / "lease" / "00000003.json"), content)
    (tmp_path / "lease" / "notes.txt").write_text("somebody's own")
    clock = Ticking()
    assert take(tmp_path, clock=clock).number == 4
    assert EXPIRY_S <= clock.time <= 60


TAKES = "import os, sys; from v2f.storage.lease import Lease; Lease.take(sys.argv[1], 'gone'); os._exit(9)"


def test_what_a_dead_process_of_this_machine_held_is_taken_at_once(tmp_path: Path) -> None:
    assert subprocess.run([sys.executable, "-c", TAKES, str(tmp_path)]).returncode == 9
    before, clock = highest_term(str(tmp_path)), Ticking()
    assert before is not None
    assert (before.what, before.ended) == ("gone", False)
    assert take(tmp_path, clock=clock).number == 2
    assert clock.time == 0


@pytest.mark.parametrize("how", ["removed", "renamed"])
def test_a_folder_that_goes_is_not_made_anew(tmp_path: Path, how: str) -> None:
    root = tmp_path / "run"
    owner = take(root)
    shutil.rmtree(root) if how == "removed" else root.rename(tmp_path / "other")
    for act in (owner.renew, owner.check, lambda: owner.holding().__enter__()):
        with pytest.raises(LostError, match="removed or renamed while one"):
            act()
    owner.end()
    assert not root.exists()


def test_what_lies_in_a_folder_of_that_name_and_is_somebody_s_own_stays(tmp_path: Path) -> None:
    (tmp_path / "lease").mkdir()
    (tmp_path / "lease" / "contract.pdf").write_text("of a car")
    take(tmp_path, lasting=False).end()
    assert [path.name for path in (tmp_path / "lease").iterdir()] == ["contract.pdf"]


def test_numbers_that_stay_and_such_that_do_not(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        with take(tmp_path / "run") as owner:
            assert owner.number == number
    for _ in range(3):
        with take(tmp_path / "data", lasting=False) as owner:
            assert owner.number == 1
        assert list((tmp_path / "data").iterdir()) == []


def test_an_owner_s_other_process_may_commit_and_not_end_it(tmp_path: Path) -> None:
    owner = take(tmp_path, lasting=False)
    copy = pickle.loads(pickle.dumps(owner))  # noqa: S301 - made here
    copy.put(str(tmp_path / "x"), b"content")
    owner.end()
    with pytest.raises(LostError):
        copy.check()


def test_a_note_stays_with_the_next_owner(tmp_path: Path) -> None:
    with take(tmp_path, note=lambda before: {"slot": 3}) as owner:
        owner.keep({"slot": 7})
    with take(tmp_path, note=lambda before: {"slot": before.note["slot"] + 1 if before else 0}) as owner:
        assert owner.note == {"slot": 8}


def test_a_renewal_that_comes_late_does_not_write_over_a_later_owner(tmp_path: Path) -> None:
    """Numbers that do not stay begin anew, so that a later owner may have the very same one."""
    owner = take(tmp_path, "one", lasting=False)
    take(tmp_path, "two", lasting=False).end()
    third = take(tmp_path, "three", lasting=False)
    assert third.number == owner.number
    with pytest.raises(LostError, match=r"belongs to three .*, not to one"):
        owner.renew()
    third.check()


ACTION = st.tuples(
    st.sampled_from(["run", "run", "run", "pause", "wake", "late", "kill"]), st.integers(0, 2), st.integers(1, 12)
)


@pytest.mark.parametrize("kind", STORES)
@pytest.mark.parametrize("examples", [20, pytest.param(400, marks=pytest.mark.slow)])
def test_no_owner_commits_after_a_later_one(kind: str, examples: int, tmp_path: Path) -> None:
    """On a disk, at no moment are two of them at it; and what is left by who was killed is soon taken."""
    folders = itertools.count()

    @settings(max_examples=examples, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
    @given(st.lists(ACTION, max_size=20), st.booleans())
    def check(actions: list[tuple[str, int, int]], lasting: bool) -> None:
        root = str(tmp_path / str(next(folders))) if kind == "disk" else "s3://bucket/d"
        commits: list[int] = []
        inside: set[str] = set()

        def own(name: str) -> None:
            with Lease.take(root, name, lasting=lasting) as held:
                for _ in range(3):
                    with held.holding():
                        if kind == "disk":
                            assert not inside
                        inside.add(name)
                        try:
                            world.stop("write")
                            commits.append(held.number)
                        finally:
                            inside.discard(name)

        with World(kind, root) as world:
            for name in ("one", "two", "three"):
                world.start(name, functools.partial(own, name))
            world.play(actions)
            world.finish()
            for process in world.processes:
                assert process.error is None or isinstance(process.error, HeldError | LostError | Killed)
            if lasting and kind != "s3":  # there a commit is one request, which is made to depend on what it replaces
                assert commits == sorted(commits)
            last = world.alone("last", functools.partial(own, "last"))
            assert last.error is None
            assert last.waited is not None
            assert last.waited <= 60
            if kind == "disk" and not lasting:
                assert not (Path(root) / term.FOLDER).exists()

    check()


# ------------------------------------------------------------------------------------------------ a real store


def test_on_a_real_store_an_owner_is_waited_for_and_taken_over(s3_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, clock = take(s3_root), Ticking(faster=8)
    owner.renew()
    owner.keep({"slot": 5})
    with pytest.raises(HeldError, match=r"one \(process"):
        take(s3_root, "two", clock=Ticking(owner.renew, faster=8))
    second = take(s3_root, "two", clock=clock, note=lambda before: before.note if before else {})
    assert EXPIRY_S <= clock.time <= 80  # the last wait is for the store to settle
    assert second.note == {"slot": 5}
    with pytest.raises(LostError, match="two"):
        owner.check()
    second.put(f"{s3_root}/x", b"a")
    second.put(f"{s3_root}/x", b"b")
    assert store.read_bytes(f"{s3_root}/x") == b"b"
    second.end()
    term = json.loads(store.read_bytes(f"{s3_root}/lease/00000002.json"))
    assert term["ended"]


def test_on_a_real_store_of_two_that_come_at_once_one_owns_it(s3_root: str) -> None:
    """Its own clock, because what counts is that both have looked before either writes."""

    def contend(name: str) -> Lease | None:
        try:
            return Lease.take(s3_root, name, interrupted=lambda: True, lasting=False)
        except HeldError:
            return None

    with ThreadPoolExecutor(2) as pool:
        owners = [owner for owner in pool.map(contend, ["one", "two"]) if owner is not None]
    (owner,) = owners
    owner.check()
    owner.end()
    assert store.names(f"{s3_root}/lease") == []
