import asyncio

import pytest

from addons.core.admission import ServerRefusal
from addons.core.auditevents import MAX_IMAGES
from addons.net import beforeimages
from addons.net.objects import Had


class Fetches:
    """Answers by target; an event: never."""

    def __init__(self, **found):
        self.found = found

    async def get(self, target):
        had = self.found[target]
        if isinstance(had, asyncio.Event):
            await had.wait()
        return had


def an_object(name):
    return {"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": name}}


def a_list(count, more=""):
    items = [{"metadata": {"name": f"n{number}"}} for number in range(count)]
    return {"kind": "ConfigMapList", "apiVersion": "v1", "metadata": {"continue": more}, "items": items}


@pytest.mark.parametrize(
    ("had", "count", "complete", "trouble"),
    [
        pytest.param(Had(an_object("a")), 1, True, "", id="an object"),
        pytest.param(Had(a_list(3)), 3, True, "", id="a list"),
        pytest.param(Had(a_list(3, "more")), 3, False, "", id="a list that goes on"),
        pytest.param(Had(a_list(MAX_IMAGES + 1)), MAX_IMAGES, False, "", id="more than are kept"),
        pytest.param(Had({**an_object("a"), "x": "y" * 2_000_000}), 0, False, "", id="larger than is kept"),
        pytest.param(Had(refusal=ServerRefusal(404, b"")), 0, True, "", id="not there"),
        pytest.param(Had(refusal=ServerRefusal(403, b"")), 0, True, "the API server answers 403", id="not to be read"),
        pytest.param(Had(trouble="over 4 MiB"), 0, True, "over 4 MiB", id="not readable"),
        pytest.param(Had("text"), 0, True, "", id="no object"),
    ],
)
async def test_what_was_there(had, count, complete, trouble):
    found = await beforeimages.fetch(Fetches(t=had), ["t"])
    assert (len(found.objects), found.complete) == (count, complete)
    assert found.troubles == ((f"before: t: {trouble}",) if trouble else ())


async def test_items_say_what_they_are():
    found = await beforeimages.fetch(Fetches(t=Had(a_list(1))), ["t"])
    assert found.objects == (("t", {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "n0"}}),)


async def test_what_is_late_is_said_and_the_rest_is_kept():
    found = await beforeimages.fetch(Fetches(a=Had(an_object("a")), b=asyncio.Event()), ["a", "b"], seconds=0.05)
    assert len(found.objects) == 1
    assert len(found.troubles) == 1


async def test_nothing_to_read():
    assert await beforeimages.fetch(Fetches(), []) is beforeimages.NOTHING
