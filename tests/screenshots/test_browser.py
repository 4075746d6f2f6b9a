"""Taking pictures of pages; without a browser, only that its lack is one sentence."""

import pytest

from tests.screenshots import __main__ as command
from tests.screenshots import browser

PAGE = "data:text/html,<title>t</title><body><p>before</p><script>document.body.innerText='after'</script>"
needs_browser = pytest.mark.skipif(not browser.program(), reason="this machine has no Chromium")


@needs_browser
async def test_a_picture(tmp_path):
    async with browser.page(tmp_path) as page:
        await page.size(320, 200)
        await page.open(PAGE)
        await page.until("document.body.innerText == 'after'")
        png = await page.picture()
        with pytest.raises(browser.BrowserError, match="nothing"):
            await page.run("nothing.at.all")
    assert png.startswith(b"\x89PNG")
    assert (int.from_bytes(png[16:20]), int.from_bytes(png[20:24])) == (320, 200)
    assert command.smaller(png).startswith(b"\x89PNG")


async def test_a_browser_that_leaves_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("TOLLGATE_BROWSER", "false")
    with pytest.raises(browser.BrowserError, match="the browser left with 1"):
        async with browser.page(tmp_path):
            pass


@pytest.fixture
def no_browser(monkeypatch):
    monkeypatch.delenv("TOLLGATE_BROWSER", raising=False)
    monkeypatch.setattr(browser, "PROGRAMS", ())


async def test_no_browser_is_one_sentence(tmp_path, no_browser):
    with pytest.raises(browser.BrowserError, match="no Chromium"):
        async with browser.page(tmp_path):
            pass


def test_the_command_says_so_before_it_starts_a_cluster(tmp_path, no_browser):
    with pytest.raises(SystemExit, match="no Chromium"):
        command.main(["--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
