import base64
import io
import json

import pytest

from addons.cli import classify


def run(*lines):
    out = io.StringIO()
    code = classify.run([line if isinstance(line, str) else json.dumps(line) for line in lines], out, "tollgate")
    return code, [json.loads(line) for line in out.getvalue().split("\n")[:-1]]


def test_an_operation():
    url = "/apis/apps/v1/namespaces/x/deployments?dryRun=All&fieldManager=me"
    spec = {"serviceAccountName": "a", "volumes": [{"secret": {"secretName": "s"}}], "hostPID": True}
    body = {"kind": "Deployment", "metadata": {"name": "d"}, "spec": {"template": {"spec": spec}}}
    headers = {"Kubectl-Command": "kubectl apply", "Kubectl-Session": "1"}
    assert run({"method": "POST", "url": url, "body": body, "headers": headers}) == (
        0,
        [
            {
                "verb": "create",
                "apiPrefix": "apis",
                "apiGroup": "apps",
                "apiVersion": "v1",
                "namespace": "x",
                "resource": "deployments",
                "subresource": "",
                "name": "d",
                "parts": ["deployments"],
                "isResourceRequest": True,
                "path": "/apis/apps/v1/namespaces/x/deployments",
                "fieldSelector": "",
                "labelSelector": "",
                "impact": ["read"],
                "dryRun": True,
                "uses": {
                    "serviceAccounts": ["a"],
                    "secrets": ["s"],
                    "configMaps": [],
                    "host": ["hostPID"],
                    "token": True,
                    "unknown": False,
                },
                "kind": "Deployment",
                "mediaType": "application/json",
                "upgrade": "",
                "command": "kubectl apply",
                "session": "1",
            }
        ],
    )


def test_the_worst_impact_comes_first():
    _, [answer] = run({"method": "DELETE", "url": "/api/v1/nodes/n"})
    assert answer["impact"] == ["escalate", "mass-delete", "delete"]
    assert answer["uses"] is None


def test_a_refusal_is_an_answer():
    code, [answer] = run({"method": "GET", "url": "//"})
    assert code == 0
    assert (answer["refused"], answer["cause"]) == (400, "path-not-canonical")
    assert answer["message"].startswith("url: ")


@pytest.mark.parametrize(
    "body",
    [
        pytest.param({"metadata": {"name": "c"}}, id="object"),
        pytest.param('{"metadata":{"name":"c"}}', id="text"),
        pytest.param({"base64": base64.b64encode(b'{"metadata":{"name":"c"}}').decode()}, id="bytes"),
    ],
)
def test_body(body):
    _, [answer] = run({"method": "POST", "url": "/api/v1/namespaces/x/configmaps", "body": body})
    assert answer["name"] == "c"


@pytest.mark.parametrize(
    ("line", "error"),
    [
        pytest.param("x", "line: ", id="no json"),
        pytest.param("[]", "line: ", id="a list"),
        pytest.param('{"method":"GET","method":"PUT","url":"/"}', "line: ", id="key twice"),
        pytest.param("{}", "method: ", id="no method"),
        pytest.param('{"method":"GET"}', "url: ", id="no url"),
        pytest.param('{"method":"GET","url":1}', "url: ", id="url is a number"),
        pytest.param('{"method":"GET","url":"/","header":{}}', "header: unknown", id="unknown field"),
        pytest.param('{"method":"GET","url":"/","headers":[]}', "headers: ", id="headers are a list"),
        pytest.param('{"method":"GET","url":"/","headers":{"a":1}}', "headers: ", id="a header is a number"),
        pytest.param('{"method":"GET","url":"/","body":1}', "body: ", id="body is a number"),
        pytest.param('{"method":"GET","url":"/","body":{"base64":"*"}}', "body.base64: ", id="no base64"),
        pytest.param('{"method":"GET","url":"/","body":{"base64":1}}', "body.base64: ", id="base64 is a number"),
    ],
)
def test_a_bad_line_is_reported_and_the_rest_goes_on(line, error):
    code, answers = run(line, "", {"method": "GET", "url": "/api"})
    assert code == 1
    assert answers[0]["error"].startswith(error)
    assert answers[1]["impact"] == ["meta"]


def test_help(capsys):
    with pytest.raises(SystemExit) as e:
        classify.main(["--help"])
    assert e.value.code == 0
    assert "base64" in capsys.readouterr().out


def test_main(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO('{"method":"DELETE","url":"/api/v1/namespaces/gate/pods/p"}\n'))
    assert classify.main(["--own-namespace", "gate"]) == 0
    assert json.loads(capsys.readouterr().out)["impact"] == ["escalate", "delete"]
