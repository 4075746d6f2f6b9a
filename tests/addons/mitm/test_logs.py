import logging

from mitmproxy.exceptions import OptionsError

from addons.mitm import logs


def logged(caplog, error):
    logs.tidy()
    logs.tidy()
    caplog.clear()
    try:
        raise error
    except type(error) as e:
        logging.getLogger("mitmproxy.addons.script").error("error in script x", exc_info=e)
    return caplog.text


def test_a_refused_configuration_is_one_sentence(caplog):
    text = logged(caplog, OptionsError("tollgate_policies: p.yaml:3: unknown field"))
    assert "p.yaml:3: unknown field" in text
    assert "Traceback" not in text
    assert text.count("\n") == 1


def test_a_bug_keeps_its_traceback(caplog):
    assert "Traceback" in logged(caplog, RuntimeError("a bug"))
