import asyncio
import gc

import pytest
from mitmproxy import addons as defaults
from mitmproxy import exceptions
from mitmproxy.test import taddons

from addons import engine
from addons.mitm import collector, dispatch, inlining, originals, trimming


@pytest.fixture(autouse=True)
def leave_no_trace():
    yield
    for part in (trimming, inlining, dispatch):
        part.uninstall()


@pytest.fixture
async def tctx():
    with taddons.context(loadcore=False) as tctx:
        tctx.master.addons.add(*defaults.default_addons())
        tctx.options.update(onboarding=False)
        yield tctx
        tctx.master._legacy_log_events.uninstall()


def replaced():
    return [
        dispatch.installed(),
        inlining.ConnectionHandler.server_event is inlining.server_event,
        "get" in trimming.http.Headers.__dict__,
    ]


async def test_everything_is_replaced_once(tctx):
    tctx.master.addons.add(engine.Engine())
    assert replaced() == [True] * 3
    tctx.master.addons.remove(tctx.master.addons.get("tollgate_engine"))
    tctx.master.addons.add(engine.Engine())  # the script was edited
    assert replaced() == [True] * 3


@pytest.mark.parametrize("part", engine.PARTS, ids=lambda p: p.__name__)
async def test_one_function_that_differs_leaves_all_of_mitmproxy_as_it_is(tctx, monkeypatch, caplog, part):
    function = next(iter(part.EXPECTED))
    monkeypatch.setattr(part, "EXPECTED", {**part.EXPECTED, function: "another text"})
    tctx.master.addons.add(engine.Engine())
    assert replaced() == [False] * 3
    assert f"{function.__qualname__} of mitmproxy is not the function of 12.2.3" in caplog.text
    assert [r.levelname for r in caplog.records if "engine:" in r.getMessage()] == ["WARNING"]  # an error would end it


async def test_another_version_leaves_mitmproxy_as_it_is(tctx, monkeypatch, caplog):
    monkeypatch.setattr(originals.version, "VERSION", "12.2.9")
    tctx.master.addons.add(engine.Engine())
    assert replaced() == [False] * 3
    assert "mitmproxy is 12.2.9, not 12.2.3" in caplog.text


async def test_an_option_of_an_addon_that_is_gone_is_refused(tctx):
    one = engine.Engine()
    tctx.master.addons.add(one)
    tctx.options.update(map_local=["|x|/etc"])
    tctx.options.update(map_local=[])
    assert tctx.master.addons.get("maplocal")
    one.running()
    assert tctx.master.addons.get("maplocal") is None
    one.done()
    with pytest.raises(exceptions.OptionsError, match="map_local has no effect any more"):
        tctx.options.update(map_local=["|x|/etc"])


async def test_the_collector_is_settled_after_the_start(tctx, monkeypatch):
    done = asyncio.Event()
    monkeypatch.setattr(engine, "SETTLED", 0.0)
    monkeypatch.setattr(collector, "settle", done.set)
    one = engine.Engine()
    tctx.master.addons.add(one)
    one.running()
    async with asyncio.timeout(5):
        await done.wait()


async def test_an_engine_that_goes_settles_nothing(tctx, monkeypatch):
    settled = []
    monkeypatch.setattr(engine, "SETTLED", 0.0)
    monkeypatch.setattr(collector, "settle", lambda: settled.append(1))
    one = engine.Engine()
    tctx.master.addons.add(one)
    one.running()
    one.done()
    await asyncio.sleep(0.01)
    assert not settled
    assert gc.isenabled()
