import io
import json
import logging

import pytest

from addons.net import apprising


@pytest.fixture(autouse=True)
def logs():
    yield
    logging.disable(logging.NOTSET)


def run(**asked):
    out = io.StringIO()
    return apprising.main(io.StringIO(json.dumps(asked)), out), out.getvalue()


def test_check_names_those_that_are_none():
    urls = ["json://127.0.0.1:9", "nothing://x", "words", "slack://", "mailto://user:pass@example.com"]
    assert run(check=urls) == (apprising.SENT, "[1, 2, 3]")


@pytest.mark.parametrize("url", ["nothing://x", "json://127.0.0.1:1"], ids=["unknown", "nobody listens"])
def test_not_sent(url):
    assert run(url=url, title="t", text="x", urgent=True) == (apprising.NOT_SENT, "")
