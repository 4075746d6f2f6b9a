"""`./run.sh web`: the same gateway in mitmweb, and no credential in what its interface shows."""

import json
import re
import urllib.request

import pytest
import yaml

from tests.e2e import client, gateway, policies

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def web(gateway_kubeconfig, tmp_path_factory):
    folder = tmp_path_factory.mktemp("web")
    (folder / "policy.yaml").write_text(policies.EVERYTHING)
    arguments = ["--kubeconfig", str(gateway_kubeconfig), "--policies", str(folder / "policy.yaml"),
                 "--web", f"127.0.0.1:{gateway.free_port()}"]  # fmt: skip
    with gateway.running(folder, *arguments, command="web") as one:
        yield one


def interface(web, path):
    """What mitmweb's own HTTP API says, with the token that it printed."""
    found = re.search(r"(http://127\.0\.0\.1:\d+)/\?token=(\w+)", web.log)
    assert found, web.log
    with urllib.request.urlopen(f"{found[1]}{path}?token={found[2]}", timeout=10) as answer:  # noqa: S310
        return answer.read().decode()


def test_no_credential_is_shown(web, agent_token, gateway_kubeconfig):
    path = "/api/v1/namespaces/shop/configmaps/settings"
    assert client.request(web.port, web.ca_file, "GET", path, token=agent_token).status == 200
    shown = interface(web, "/flows")
    assert path in shown
    assert "impersonate-user" in shown
    assert agent_token not in shown
    assert yaml.safe_load(gateway_kubeconfig.read_text())["users"][0]["user"]["token"] not in shown


def test_a_refused_request_shows_no_credential_either(web):
    client.request(web.port, web.ca_file, "GET", "/api/v1/refused", token="a-refused-token")
    assert "a-refused-token" not in interface(web, "/flows")


def test_the_list_has_room_for_verdicts(web):
    page = interface(web, "/")
    assert "col-comment" in page
    assert page.index("col-comment") < page.index("</head>")
    assert json.loads(interface(web, "/options"))["web_columns"]["value"][-1] == "comment"
