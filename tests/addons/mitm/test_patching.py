import pytest
from mitmproxy import version

from addons.mitm import patching


def test_installed_once():
    calls = []
    install = patching.patch(lambda: calls.append(1))
    install()
    install()
    assert calls == [1]


def test_refused_on_another_mitmproxy(monkeypatch):
    monkeypatch.setattr(version, "VERSION", "13.0.0")
    calls = []
    install = patching.patch(lambda: calls.append(1))
    with pytest.raises(patching.UnsupportedMitmproxy, match=r"mitmproxy 13\.0\.0 is not supported"):
        install()
    assert not calls
