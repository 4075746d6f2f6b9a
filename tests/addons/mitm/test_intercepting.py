"""Stopping a request by hand, in a mitmproxy of this process."""

import asyncio

import pytest
from mitmproxy import http
from mitmproxy.addons import intercept
from mitmproxy.test import taddons, tflow

from addons.mitm import intercepting

intercepting.install()


class Screen:
    def __init__(self):
        self.shown = []

    def update(self, flows):
        self.shown += [flow.intercepted for flow in flows]


@pytest.fixture
def screen():
    return Screen()


@pytest.fixture
def stops(screen):
    addon = intercept.Intercept()
    with taddons.context(addon, screen) as context:
        context.configure(addon, intercept="~m DELETE")
        yield addon


def a_flow(method="DELETE") -> http.HTTPFlow:
    flow = tflow.tflow()
    flow.request.method = method
    return flow


@pytest.mark.parametrize(("method", "wanted"), [("DELETE", True), ("GET", False)])
def test_what_the_filter_names(stops, method, wanted):
    assert intercepting.is_wanted(a_flow(method)) is wanted


@pytest.mark.parametrize("hook", ["request", "response", "websocket_message"])
def test_mitmproxy_itself_stops_nothing(stops, hook):
    """It would do so after everything was judged."""
    flow = a_flow()
    getattr(stops, hook)(flow)
    assert not flow.intercepted


async def test_it_waits_and_is_shown_meanwhile(stops, screen):
    flow = a_flow()
    waiting = asyncio.create_task(intercepting.wait(flow))
    while not flow.intercepted:
        await asyncio.sleep(0)
    assert not waiting.done()
    flow.resume()
    await asyncio.wait_for(waiting, 5)
    assert screen.shown == [True]
