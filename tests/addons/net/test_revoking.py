"""The register of revocations over the real store, and the list of owners who have left."""

import asyncio
import logging
from dataclasses import replace

import pytest

from addons.core import revocations
from addons.core.approvals import Requester
from addons.core.model import Identity
from addons.core.revocations import Revocation, RevocationError, Target
from addons.net import codec, revoking, store
from addons.net.mirror import REVOCATIONS
from addons.net.revoking import OwnerList, Register, throw
from addons.net.store import Delete, Put, SqliteStore

NOW = 1_800_000_000.0
ALICE = Identity("alice", credential_id="t")


def revocation(name="rev-1", **target):
    return Revocation(name, name, Target(**(target or {"user": "alice"})), Requester("operator:x"), NOW)


@pytest.fixture
def opened(tmp_path):
    made = []

    def another():
        made.append(SqliteStore(tmp_path / "state" / store.FILE))
        return made[-1]

    yield another
    for one in made:
        one.close()


def refuses(register, identity=ALICE):
    return register.refuses(identity, agent=lambda _: True)


async def test_an_order_of_another_process_is_followed_within_a_second(opened, caplog):
    told = asyncio.Event()
    register = Register(opened(), lambda: NOW, lambda fresh: told.set() if fresh else None)
    register.start()
    try:
        other = opened()
        while not register.ready:
            await asyncio.sleep(0.01)
        assert refuses(register) is None
        with caplog.at_level(logging.WARNING):
            await throw(other, replace(revocation(), reason="why not"), NOW)
            await asyncio.wait_for(told.wait(), 1)
        assert refuses(register).code == 403
        assert refuses(register, Identity("bob")) is None
        assert "rev-1" in caplog.text
        assert "operator:x" in caplog.text
        assert "why not" in caplog.text
        assert register.in_force == 1
    finally:
        register.stop()


async def test_lifted_removed_and_expired(opened):
    now = [NOW]
    kept = opened()
    register = Register(kept, lambda: now[0])
    await throw(kept, revocation(), NOW)
    await register.look()
    assert refuses(register) is not None
    (row,) = (await kept.since(0, REVOCATIONS)).objects
    lifted = codec.encode(revocations.lift(codec.revocation(row.data), "bob", NOW))
    (revision,) = await kept.apply([Put(REVOCATIONS, "rev-1", lifted, row.revision)], NOW)
    await register.look()
    assert refuses(register) is None
    await kept.apply([Delete(REVOCATIONS, "rev-1", revision)], NOW)
    await throw(kept, replace(revocation("rev-2"), until=NOW + 5), NOW)
    await register.look()
    assert refuses(register) is not None
    now[0] = NOW + 5
    assert refuses(register) is None
    assert register.in_force == 0


async def test_those_from_before_the_start_count(opened):
    kept = opened()
    many = [revocation(f"rev-{number}", user=f"u{number}") for number in range(store.PAGE + 10)]
    await kept.apply([Put(REVOCATIONS, one.name, codec.encode(one)) for one in many], NOW)
    register = Register(kept, lambda: NOW)
    await register.look()
    assert refuses(register, Identity("u1")) is not None
    assert refuses(register, Identity(f"u{store.PAGE + 9}")) is not None


async def test_before_the_first_look_nobody_passes(opened):
    assert refuses(Register(opened(), lambda: NOW)) is revoking.UNKNOWN


async def test_without_a_store_nothing_is_revoked():
    register = Register(None, lambda: NOW)
    register.start()
    await register.look()
    assert register.ready
    assert refuses(register) is None


async def test_a_store_that_does_not_answer(opened, caplog, monkeypatch):
    kept = opened()
    register = Register(kept, lambda: NOW)
    await register.look()
    assert refuses(register) is None
    kept.close()
    with pytest.raises(store.StoreError):
        await register.look()
    assert refuses(register) is None  # for a moment, what was heard counts
    monkeypatch.setattr(revoking, "STALE", -1.0)
    assert refuses(register) is revoking.UNKNOWN
    assert not register.ready


async def test_the_loop_goes_on_when_the_store_fails(opened, caplog):
    kept = opened()
    register = Register(kept, lambda: NOW)
    await register.look()
    kept.close()
    register.start()
    try:
        for _ in range(100):
            if "nobody passes any more" in caplog.text:
                break
            await asyncio.sleep(0.01)
        assert "nobody passes any more" in caplog.text
    finally:
        register.stop()


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"{", id="no JSON"),
        pytest.param(codec.encode(revocation()).replace(b'"user"', b'"usrr"'), id="a field of a newer version"),
        pytest.param(codec.encode(revocation()).replace(b'"alice"', b'""'), id="names nobody"),
    ],
)
async def test_one_that_cannot_be_read_stops_everybody(opened, data, caplog):
    kept = opened()
    register = Register(kept, lambda: NOW)
    (revision,) = await kept.apply([Put(REVOCATIONS, "rev-x", data)], NOW)
    await register.look()
    assert refuses(register, Identity("bob")) is revoking.UNREADABLE
    assert "rev-x" in caplog.text
    await kept.apply([Delete(REVOCATIONS, "rev-x", revision)], NOW)
    await register.look()
    assert refuses(register, Identity("bob")) is None


async def test_removals_that_may_have_been_missed(opened):
    kept = opened()
    register = Register(kept, lambda: NOW)
    await throw(kept, revocation(), NOW)
    await register.look()
    (row,) = (await kept.since(0, REVOCATIONS)).objects
    await kept.apply([Delete(REVOCATIONS, "rev-1", row.revision)], NOW)
    # Long after, the store has forgotten that it was removed.
    await kept.apply([Put("k", "n", b"")], NOW + 2 * store.TOMBSTONES)
    assert (await kept.since(0, REVOCATIONS)).objects == ()
    await register.look()
    assert refuses(register) is None


# ----- owners -----


async def test_the_list_is_read_again(tmp_path, caplog):
    file = tmp_path / "departed"
    file.write_text("alice\n")
    owners = OwnerList(file)
    assert owners.owners == {"alice"}
    assert not await owners.look()
    other = tmp_path / "other"
    other.write_text("alice\nBob\n")
    other.replace(file)  # as a ConfigMap changes: by being another file
    assert await owners.look()
    assert owners.owners == {"alice", "bob"}


@pytest.mark.parametrize("content", [None, b"\xff", b"a\x00b"], ids=["gone", "no text", "no name"])
async def test_a_bad_list_keeps_the_one_before(tmp_path, caplog, content):
    file = tmp_path / "departed"
    file.write_text("alice\n")
    owners = OwnerList(file)
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    assert not await owners.look()
    assert not await owners.look()
    assert owners.owners == {"alice"}
    assert caplog.text.count("stays in force") == 1
    with pytest.raises(RevocationError, match="departed"):
        OwnerList(file)


def test_a_list_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(revoking, "MAX_FILE", 10)
    file = tmp_path / "departed"
    file.write_text("alice\n" * 3)
    with pytest.raises(RevocationError, match="bytes"):
        OwnerList(file)
