"""`./run.sh revoke` on a real state folder."""

import asyncio
import io
import json
import time

import pytest

from addons.cli import revoke
from addons.core.model import Identity
from addons.net import codec, store
from addons.net.mirror import REVOCATIONS
from addons.net.revoking import Register
from addons.net.store import Put, SqliteStore

AGENT = Identity("tollgate:system:serviceaccount:agents:ci-agent", credential_id="t1", issued_at=time.time() - 60)


@pytest.fixture
def state(tmp_path):
    SqliteStore(tmp_path / store.FILE).close()
    return tmp_path


@pytest.fixture
def run(state):
    def call(*arguments, at=state):
        out, err = io.StringIO(), io.StringIO()
        code = revoke.main([*arguments, "--state", str(at), "--operator", "carol"], out, err)
        return code, out.getvalue(), err.getvalue()

    return call


def refused(state, identity=AGENT):
    """What a gateway on this folder says."""

    async def ask():
        kept = SqliteStore(state / store.FILE)
        try:
            register = Register(kept)
            await register.look()
            return register.refuses(identity, agent=lambda _: True, owner_claim="")
        finally:
            kept.close()

    return asyncio.run(ask())


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        pytest.param(["--user", "system:serviceaccount:agents:ci-agent"], 403, id="user"),
        pytest.param(["--token-id", "t1"], 401, id="token"),
        pytest.param(["--issued-before", "now"], 401, id="issued before"),
        pytest.param(["--all-agents", "--for", "2h"], 403, id="agents, for a time"),
    ],
)
def test_revoke_list_and_lift(run, state, arguments, code):
    assert run("list") == (0, "", "nothing is revoked\n")
    done, out, _ = run(*arguments, "--reason", "what happened last night")
    name = out.split()[0]
    assert done == 0
    assert refused(state).code == code
    _, listed, _ = run("list")
    assert name in listed
    assert "operator:carol" in listed
    assert "what happened last night" in listed
    (item,) = json.loads(run("list", "-o", "json")[1])["items"]
    assert item["status"]["phase"] == "InForce"
    assert item["status"]["via"] == "operator"
    assert run("lift", name)[0] == 0
    assert refused(state) is None
    assert run("list")[2] == "nothing is revoked\n"
    assert "Lifted" in run("list", "--all")[1]
    again, _, why = run("lift", name)
    assert again == 1
    assert "not in force any more" in why


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        pytest.param([], 2, "names nobody", id="nobody"),
        pytest.param(["--user", "a", "--for", "2h", "--until", "now"], 2, "--for: goes not with --until", id="both"),
        pytest.param(["--user", "a", "--for", "soon"], 2, "--for: ", id="no duration"),
        pytest.param(["--user", "a", "--until", "soon"], 2, "--until: ", id="no time"),
        pytest.param(["--issued-before", "noon"], 2, "--issued-before: ", id="no moment"),
        pytest.param(["lift", "rev-none"], 1, "there is no revocation rev-none", id="lift nothing"),
    ],
)
def test_mistakes_are_one_sentence(run, state, arguments, code, says):
    got, out, err = run(*arguments)
    assert (got, out) == (code, "")
    assert says in err
    assert err.count("\n") == 1
    assert refused(state) is None


def test_a_folder_without_a_gateway_is_not_made_one(run, tmp_path):
    code, _, err = run("--all-agents", at=tmp_path / "mistyped")
    assert code == 1
    assert "is not the state folder" in err
    assert not (tmp_path / "mistyped").exists()


def test_one_that_cannot_be_read_is_shown_and_can_be_removed(run, state):
    async def spoil():
        kept = SqliteStore(state / store.FILE)
        await kept.apply([Put(REVOCATIONS, "rev-x", b"{")], time.time())
        kept.close()

    asyncio.run(spoil())
    assert refused(state) is not None
    code, _, err = run("list")
    assert code == 1
    assert "rev-x cannot be read" in err
    assert run("lift", "rev-x")[0] == 0
    assert refused(state) is None


def test_while_a_gateway_works_on_the_folder(run, state):
    async def both():
        kept = SqliteStore(state / store.FILE)
        try:
            name = (await asyncio.to_thread(run, "--user", "a"))[1].split()[0]
            (row,) = (await kept.since(0, REVOCATIONS)).objects
            assert row.name == name
            assert codec.revocation(row.data).requester.username == "operator:carol"
        finally:
            kept.close()

    asyncio.run(both())
