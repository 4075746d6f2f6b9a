import pytest
from mitmproxy import addons, ctx
from mitmproxy.test import taddons

from addons.mitm import options


@pytest.fixture
def opts(tmp_path):
    with taddons.context(loadcore=False) as tctx:
        tctx.master.addons.add(*addons.default_addons())
        safe = {k: v for k, v in options.REQUIRED.items() if v is not None}
        tctx.options.update(
            confdir=str(tmp_path), mode=["reverse:https://a:6443"], body_size_limit="3m", rawtcp=False, **safe
        )
        yield ctx.options


def test_what_the_launcher_sets_is_enough(opts):
    assert not options.violations(opts, allow_spdy=False)


def test_every_required_option_exists_in_this_mitmproxy(opts):
    assert [name for name in options.REQUIRED if name not in opts] == []


@pytest.mark.parametrize("name", ["config.yaml", "config.yml"])
def test_a_configuration_file_beats_the_command_line_and_is_refused(opts, tmp_path, name):
    (tmp_path / name).write_text("ssl_insecure: true\n")
    assert "must not exist" in options.violations(opts, allow_spdy=False)[0]


def test_rawtcp_only_with_spdy(opts):
    opts.update(rawtcp=True)
    assert options.violations(opts, allow_spdy=False)
    assert not options.violations(opts, allow_spdy=True)
