import pytest
from mitmproxy import addons as defaults
from mitmproxy.addons import clientplayback, dumper, readfile
from mitmproxy.test import taddons

from addons.mitm import options, unused


@pytest.fixture
async def master():
    """As mitmdump has it, with the options of the launcher."""
    with taddons.context(loadcore=False) as tctx:
        tctx.master.addons.add(*defaults.default_addons(), dumper.Dumper(), readfile.ReadFileStdin())
        tctx.options.update(
            **{k: v for k, v in options.REQUIRED.items() if k in tctx.options and v != getattr(tctx.options, k)},
            flow_detail=0,
        )
        yield tctx.master
        tctx.master._legacy_log_events.uninstall()


async def test_all_of_them_are_there_and_go(master):
    assert set(unused.remove(master)) == set(unused.UNUSED)
    assert unused.remove(master) == []
    assert unused.missed(master) == []


STAY = [
    "core",
    "proxyserver",
    "tlsconfig",
    "nextlayer",
    "scriptloader",
    "block",
    "updatealtsvc",
    "disableh2c",
    "clientplayback",
]


async def test_what_the_gateway_runs_on_stays(master):
    unused.remove(master)
    assert all(master.addons.get(name) for name in STAY)
    assert isinstance(master.addons.get("clientplayback"), clientplayback.ClientPlayback)  # it cannot be taken out


async def test_commands_go_with_them_and_no_others(master):
    before = set(master.commands.commands)
    unused.remove(master)
    gone = before - set(master.commands.commands)
    assert {"browser.start", "save.file"} <= gone
    assert not {name for name in gone if name.split(".")[0] not in ("browser", "save", "replay", "readfile")}


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        pytest.param("save", "save_stream_file", "/tmp/flows", id="a file to save to"),
        pytest.param("dumper", "flow_detail", 1, id="flows to print"),
        pytest.param("blocklist", "block_list", [":~u x:404"], id="a list to block"),
    ],
)
async def test_one_that_is_asked_for_stays(master, name, option, value):
    master.options.update(**{option: value})
    assert set(unused.UNUSED) - set(unused.remove(master)) == {name}
    assert unused.missed(master) == []


@pytest.mark.parametrize(("name", "option", "value"), [("save", "save_stream_file", "/tmp/flows")])
async def test_one_that_is_asked_for_too_late_is_missed(master, name, option, value):
    unused.remove(master)
    master.options.update(**{option: value})
    (said,) = unused.missed(master)
    assert option in said
    assert name in said
    assert "--without engine" in said


def test_each_has_a_reason_and_what_is_off_is_what_the_guard_demands():
    for entry in unused.UNUSED.values():
        assert entry.why
        for option, off in entry.off.items():
            assert options.REQUIRED.get(option, off) == off
