"""Backup while a gateway works, and what a restore must not bring back."""

import sqlite3
import stat
from dataclasses import replace

import pytest

from addons.core import revocations
from addons.core.approvals import Phase, Requester
from addons.core.budgets import Budget, Charge
from addons.core.matching import Match
from addons.core.revocations import Revocation, Target
from addons.net import backups, codec, store
from addons.net.book import APPROVALS, GRANTS, REQUESTS, Book
from addons.net.mirror import REVOCATIONS
from addons.net.store import Put, SqliteStore, StoreError
from tests import records
from tests.records import NOW, approved, record


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "state"
    made.mkdir(0o700)
    return made


def revocation(name, user="eve", **more):
    return Revocation(name, name, Target(user=user), Requester("operator:x"), NOW, **more)


async def filled(folder, *revoked):
    """A state with one of everything that is open."""
    kept = SqliteStore(folder / store.FILE)
    entries = {
        (APPROVALS, "apr-pending"): replace(record("apr-pending")),
        (APPROVALS, "apr-approved"): approved(record("apr-approved")),
        (APPROVALS, "apr-used"): replace(record("apr-used"), phase=Phase.USED, ended=NOW),
        (REQUESTS, "acr-1"): replace(records.access_request(), name="acr-1"),
        (GRANTS, "grt-1"): replace(records.grant(), name="grt-1"),
        **{(REVOCATIONS, one.name): one for one in revoked},
    }
    puts = [Put(kind, name, codec.encode(entry)) for (kind, name), entry in entries.items()]
    await kept.apply(puts, NOW)
    return kept


async def seen(folder, now=NOW + 10):
    """What a gateway finds there."""
    kept = SqliteStore(folder / store.FILE)
    book = Book(kept, lambda: now)
    await book.start()
    found = {kind: {c.name: c.entry for c in book.all(kind)} for kind in (APPROVALS, REQUESTS, GRANTS, REVOCATIONS)}
    await book.stop()
    kept.close()
    return found


async def test_a_backup_of_a_working_gateway_approves_nothing_when_it_is_restored(folder, tmp_path):
    kept = await filled(folder, revocation("rev-old"))
    before = await kept.revision()
    backups.backup(folder, tmp_path / "backup")
    assert stat.S_IMODE((tmp_path / "backup").stat().st_mode) == 0o600
    assert sorted(p.name for p in tmp_path.iterdir()) == ["backup", "state"]
    with pytest.raises(StoreError, match="a gateway works on"):
        backups.restore(folder, tmp_path / "backup", NOW + 5)
    kept.close()
    done = backups.restore(folder, tmp_path / "backup", NOW + 5)
    assert (done.voided, done.ended, done.dropped, done.unread) == (3, 1, 0, False)
    found = await seen(folder)
    for kind, name in ((APPROVALS, "apr-pending"), (APPROVALS, "apr-approved"), (REQUESTS, "acr-1")):
        assert found[kind][name].phase is Phase.VOID
        assert found[kind][name].message.endswith(backups.WHY)
    assert found[APPROVALS]["apr-used"].phase is Phase.USED
    assert not found[GRANTS]["grt-1"].active(NOW + 6)
    assert found[REVOCATIONS]["rev-old"].in_force(NOW + 6)
    again = SqliteStore(folder / store.FILE)
    changes = await again.since(before)
    assert changes.horizon > before  # who was there before lists again
    again.close()


async def test_into_an_empty_folder(folder, tmp_path):
    (await filled(folder)).close()
    backups.backup(folder, tmp_path / "backup")
    done = backups.restore(tmp_path / "new", tmp_path / "backup", NOW)
    assert (done.voided, done.kept, done.unread) == (3, "", False)
    assert stat.S_IMODE((tmp_path / "new" / store.FILE).stat().st_mode) == 0o600
    assert (await seen(tmp_path / "new"))[APPROVALS]["apr-approved"].phase is Phase.VOID


async def test_what_was_revoked_since_stays_revoked(folder, tmp_path):
    lifted = revocations.lift(revocation("rev-lifted-then"), "x", NOW)
    kept = await filled(folder, revocation("rev-lifted-since"), lifted)
    backups.backup(folder, tmp_path / "backup")
    rows = {row.name: row for row in (await kept.since(0, REVOCATIONS)).objects}
    since = revocations.lift(codec.revocation(rows["rev-lifted-since"].data), "x", NOW)
    await kept.apply(
        [
            Put(REVOCATIONS, "rev-new", codec.encode(revocation("rev-new"))),
            Put(REVOCATIONS, "rev-lifted-since", codec.encode(since), rows["rev-lifted-since"].revision),
            Put(REVOCATIONS, "rev-broken", b"{"),
        ],
        NOW,
    )
    kept.close()
    assert backups.restore(folder, tmp_path / "backup", NOW).revocations == 2
    found = (await seen(folder))[REVOCATIONS]
    assert found["rev-new"].in_force(NOW)
    assert found["rev-lifted-since"].in_force(NOW)  # the stricter of the two
    assert not found["rev-lifted-then"].in_force(NOW)
    db = sqlite3.connect(folder / store.FILE)
    assert db.execute("SELECT data FROM objects WHERE name = 'rev-broken'").fetchone() == (b"{",)
    db.close()


async def test_what_was_spent_stays_spent(folder, tmp_path):
    kept = await filled(folder)
    charge = Charge(Budget("p", "b", Match(), 2, 600), "alice", 1)
    assert (await kept.reserve([charge], NOW)).id
    backups.backup(folder, tmp_path / "backup")
    assert (await kept.reserve([charge], NOW)).id
    kept.close()
    backups.restore(folder, tmp_path / "backup", NOW)
    again = SqliteStore(folder / store.FILE)
    assert (await again.reserve([charge], NOW)).over
    again.close()


async def test_over_a_damaged_state(folder, tmp_path):
    (await filled(folder)).close()
    backups.backup(folder, tmp_path / "backup")
    (folder / store.FILE).write_bytes(b"rubbish" * 1000)
    done = backups.restore(folder, tmp_path / "backup", NOW)
    assert done.unread
    assert done.kept
    assert (await seen(folder))[APPROVALS]["apr-pending"].phase is Phase.VOID


async def test_what_cannot_be_read_is_not_restored(folder, tmp_path):
    kept = await filled(folder)
    await kept.apply([Put(APPROVALS, "apr-x", b"{")], NOW)
    kept.close()
    backups.backup(folder, tmp_path / "backup")
    assert backups.restore(folder, tmp_path / "backup", NOW).dropped == 1
    assert "apr-x" not in (await seen(folder))[APPROVALS]


@pytest.mark.parametrize("content", [b"", b"rubbish" * 1000], ids=["empty", "rubbish"])
async def test_no_backup(folder, tmp_path, content):
    (await filled(folder)).close()
    (tmp_path / "backup").write_bytes(content)
    with pytest.raises(StoreError):
        backups.restore(folder, tmp_path / "backup", NOW)
    assert (await seen(folder))[APPROVALS]["apr-approved"].phase is Phase.APPROVED
    assert [p.name for p in folder.iterdir() if p.name.startswith(".")] == []


async def test_of_another_program(folder, tmp_path):
    (await filled(folder)).close()
    other = sqlite3.connect(tmp_path / "backup")
    other.execute("CREATE TABLE x (y)")
    other.commit()
    other.close()
    with pytest.raises(StoreError, match="is not the state of a gateway"):
        backups.restore(folder, tmp_path / "backup", NOW)


async def test_nothing_is_overwritten(folder, tmp_path):
    (await filled(folder)).close()
    (tmp_path / "backup").write_text("mine")
    with pytest.raises(StoreError, match="is there already"):
        backups.backup(folder, tmp_path / "backup")
    assert (tmp_path / "backup").read_text() == "mine"


@pytest.mark.parametrize("act", [backups.backup, lambda f, t: backups.restore(f, t, NOW)], ids=["backup", "restore"])
def test_nothing_there(tmp_path, act):
    with pytest.raises(StoreError):
        act(tmp_path / "nowhere", tmp_path / "nothing")


def test_a_folder_of_others(folder, tmp_path):
    folder.chmod(0o777)
    SqliteStore(None).close()
    (folder / store.FILE).write_bytes(b"")
    with pytest.raises(StoreError, match="can be written by others"):
        backups.backup(folder, tmp_path / "backup")
