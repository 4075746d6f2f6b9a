"""The looks of a running gateway; what is looked at, against the real API server in tests/e2e/test_doctor.py."""

import asyncio
import datetime
import logging
import threading

import pytest

from addons.core.doctor import Finding, Level
from addons.net import certificates, checkups
from addons.net.checkups import Checkups, Seen, Subject
from tests.addons.net.test_ownlook import api  # noqa: F401 (a fixture)

NOW = datetime.datetime(2026, 11, 25, tzinfo=datetime.UTC)
NOBODY = Subject(None, (), None)


def levels(findings):
    return [(one.check, one.level) for one in findings]


def numbers(readings):
    return {(name, *labels): value for name, labels, value in readings}


@pytest.fixture
def machine(tmp_path):
    made = certificates.ensure(tmp_path / "state" / "tls", "127.0.0.1", NOW)
    (tmp_path / "state").chmod(0o700)
    return Subject(None, (("--state", tmp_path / "state"), ("--recordings", tmp_path / "absent")), made.combined)


async def test_this_machine(machine):
    doctor = Checkups(machine, lambda: NOW.timestamp())
    await doctor.look()
    assert levels(doctor.findings) == [
        ("folders", Level.OK), ("folders", Level.NOTE), ("certificate", Level.OK)
    ]  # fmt: skip
    found = numbers(doctor.readings)
    assert found["doctor_looked_timestamp_seconds",] == NOW.timestamp()
    lasts = found["certificate_expires_timestamp_seconds", "serving"] - NOW.timestamp()
    assert 390 * 86400 < lasts < 398 * 86400


async def test_a_certificate_that_is_about_to_expire(machine):
    doctor = Checkups(machine, lambda: NOW.timestamp() + 380 * 86400)
    await doctor.look()
    assert levels(doctor.findings)[-1] == ("certificate", Level.WARNING)


async def test_no_certificate(tmp_path):
    (tmp_path / "x").write_text("none")
    doctor = Checkups(Subject(None, (), tmp_path / "x"))
    await doctor.look()
    assert levels(doctor.findings) == [("certificate", Level.PROBLEM)]
    assert [name for name, *_ in doctor.readings] == ["doctor_looked_timestamp_seconds"]


async def test_a_folder_that_others_can_write(tmp_path):
    tmp_path.chmod(0o777)
    assert levels(checkups.folders([("--state", tmp_path)])) == [("folders", Level.PROBLEM)]


async def test_the_api_server(api):  # noqa: F811
    server, fake = api
    fake.answers["/version"] = {"gitVersion": "v1.36.3"}
    who = {"status": {"userInfo": {"username": "gateway"}}}
    fake.answers["/apis/authentication.k8s.io/v1/selfsubjectreviews"] = who
    fake.allowed.add(("*", "*", ""))
    doctor = Checkups(Subject(server, (), None))
    await doctor.look()
    found = numbers(doctor.readings)
    assert found["credential_cluster_admin",] == 1
    assert found["credential_static",] == 1
    assert abs(found["clock_skew_seconds",]) < 10
    assert found["certificate_expires_timestamp_seconds", "api-server"] > 0
    assert ("rights", Level.PROBLEM) in levels(doctor.findings)
    assert ("clock", Level.OK) in levels(doctor.findings)


async def test_an_api_server_that_is_not_there(api):  # noqa: F811
    server, _ = api
    doctor = Checkups(Subject(server, (), None))
    await doctor.look()  # nothing is allowed, and nobody says who we are
    assert levels(doctor.findings) == [("upstream", Level.OK), ("upstream", Level.PROBLEM)]
    assert "credential_cluster_admin" not in [name for name, *_ in doctor.readings]


async def test_an_api_server_that_takes_for_ever(api, monkeypatch):  # noqa: F811
    server, _ = api
    monkeypatch.setattr(checkups, "LIMIT", 0.01)

    async def slow(*_args, **_more):
        await asyncio.sleep(60)

    monkeypatch.setattr(checkups, "upstream", slow)
    doctor = Checkups(Subject(server, (), None))
    await doctor.look()
    assert levels(doctor.findings) == [("upstream", Level.WARNING)]


async def test_a_disk_that_hangs_takes_one_thread(monkeypatch):
    monkeypatch.setattr(checkups, "DISK_LIMIT", 0.01)
    release, begun = threading.Event(), []

    def hang(_named):
        begun.append(1)
        release.wait(60)
        return []

    monkeypatch.setattr(checkups, "folders", hang)
    doctor = Checkups(NOBODY)
    for _ in range(3):
        await doctor.look()
        assert levels(doctor.findings) == [("folders", Level.PROBLEM)]
    assert len(begun) <= 1
    release.set()
    await asyncio.wait((doctor._disk,))
    await doctor.look()
    assert doctor.findings == ()


async def test_a_look_that_fails_is_a_finding_and_the_next_one_comes(monkeypatch, caplog):
    looks = iter([RuntimeError("odd"), Seen([Finding("clock", Level.OK, "fine")])])
    done = asyncio.Event()

    async def look(_self, _now):
        found = next(looks)
        if isinstance(found, Exception):
            raise found
        done.set()
        return found

    monkeypatch.setattr(Checkups, "_look", look)
    monkeypatch.setattr(checkups, "PERIOD", 0.001)
    doctor = Checkups(NOBODY)
    task = asyncio.get_running_loop().create_task(doctor.keep_looking())
    async with asyncio.timeout(20):
        await done.wait()
    task.cancel()
    assert "a look failed" in caplog.text


async def test_the_log_has_it_when_it_comes_and_when_it_is_over(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    bad = [Finding("clock", Level.WARNING, "5 s apart", "set the clock"), Finding("upstream", Level.OK, "there")]
    worse = [Finding("clock", Level.PROBLEM, "50 s apart")]
    looks = iter([bad, [Finding("clock", Level.WARNING, "6 s apart")], worse, [Finding("clock", Level.OK, "agree")]])

    async def look(_self, _now):
        return Seen(next(looks))

    monkeypatch.setattr(Checkups, "_look", look)
    doctor = Checkups(NOBODY)
    for _ in range(4):
        await doctor.look()
    assert [record.getMessage() for record in caplog.records if record.name == "addons.net.checkups"] == [
        "doctor: clock: 5 s apart; set the clock",
        "doctor: clock: 50 s apart",
        "doctor: clock: nothing to complain about any more",
    ]
