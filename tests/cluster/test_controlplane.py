"""The cluster that the other tests trust: that it starts, and that its pods answer."""

import base64
import contextlib
import http.client
import json
import os
import ssl
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from tests.cluster import build
from tests.cluster.controlplane import POD_GREETING, ControlPlane, ControlPlaneError, encode, free_ports, request_info
from tests.e2e import audit, client

pytestmark = pytest.mark.e2e

AGENT = "tollgate:system:serviceaccount:agents:ci-agent"
AGENT_GROUPS = ["system:authenticated", "tollgate:system:serviceaccounts", "tollgate:system:serviceaccounts:agents"]


@pytest.fixture(params=["ours", "this machine's"])
def kubectl(request: pytest.FixtureRequest, controlplane: ControlPlane) -> str:
    program = controlplane.kubectl if request.param == "ours" else controlplane.kubectl_old
    if not program:
        pytest.skip("this machine has no kubectl")
    return program


@pytest.fixture
def pod(controlplane: ControlPlane) -> str:
    return controlplane.pods("shop", "app=web")[0]


def whoami(controlplane: ControlPlane, *args: str, kubeconfig: Path | None = None) -> dict:
    result = controlplane.run_kubectl("auth", "whoami", "-o", "json", *args, kubeconfig=kubeconfig)
    return json.loads(result.stdout)["status"]["userInfo"]


def test_admin(controlplane):
    assert whoami(controlplane)["groups"] == ["system:masters", "system:authenticated"]


@pytest.mark.parametrize(("namespace", "count"), [("shop", 3), ("billing", 2), ("prod-web", 3)])
def test_pods_run(controlplane, namespace, count):
    assert len(controlplane.pods(namespace)) == count


def test_gateway_may_be_its_users(controlplane):
    review = json.dumps({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}).encode()
    told = [
        ("Authorization", f"Bearer {controlplane.token('tollgate', 'gateway', audience=None)}"),
        ("User-Agent", audit.THIEF),
        ("Content-Type", "application/json"),
        ("Content-Length", str(len(review))),
        ("Impersonate-User", AGENT),
        *(("Impersonate-Group", group) for group in AGENT_GROUPS),
    ]
    context = ssl.create_default_context(cafile=controlplane.ca_file)
    with contextlib.closing(
        http.client.HTTPSConnection("127.0.0.1", controlplane.port, timeout=30, context=context)
    ) as connection:
        connection.putrequest("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews")
        for name, value in told:
            connection.putheader(name, value)
        connection.endheaders(review)
        user = json.loads(connection.getresponse().read())["status"]["userInfo"]
    assert (user["username"], user["groups"]) == (AGENT, AGENT_GROUPS)


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        pytest.param("/api/v1/namespaces/shop/secrets", {}, id="nothing as itself"),
        pytest.param(
            "/api/v1/pods", {"Impersonate-User": AGENT, "Impersonate-Group": "system:masters"}, id="no masters"
        ),
    ],
)
def test_gateway_may_nothing_else(controlplane, path, headers):
    token = controlplane.token("tollgate", "gateway", audience=None)
    told = {**headers, "User-Agent": audit.THIEF}
    answer = client.request(controlplane.port, controlplane.ca_file, "GET", path, token=token, headers=told)
    assert (answer.status, json.loads(answer.body)["reason"]) == (403, "Forbidden")


def test_agent_may_everything_as_the_gateways_user_only(controlplane, tmp_path):
    direct = controlplane.token("agents", "ci-agent", audience=None)
    config = controlplane.kubeconfig(tmp_path / "config", controlplane.url, controlplane.ca_file, token=direct)
    assert controlplane.run_kubectl("auth", "can-i", "*", "*", f"--as={AGENT}").stdout == "yes\n"
    assert controlplane.run_kubectl("auth", "can-i", "get", "pods", kubeconfig=config, check=False).stdout == "no\n"


def test_token_is_for_its_audience_only(controlplane):
    token = controlplane.token("agents", "ci-agent")
    claims = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
    assert (claims["aud"], claims["iss"]) == (["tollgate"], controlplane.issuer)
    assert controlplane.request("GET", "/api", token=token)[0] == 401


@pytest.mark.parametrize("path", ["/.well-known/openid-configuration", "/openid/v1/jwks"])
def test_issuer_is_public(controlplane, path):
    assert controlplane.request("GET", path, token="")[0] == 200


def test_logs(controlplane, kubectl, pod):
    result = controlplane.run_kubectl("logs", "-n", "shop", pod, "--tail=1", program=kubectl)
    assert result.stdout == controlplane.pod_log.read_text().splitlines(keepends=True)[-1]


def test_logs_follow(controlplane, kubectl, pod):
    command = [kubectl, "logs", "-n", "shop", pod, "--follow"]
    with subprocess.Popen(command, env=controlplane.kubectl_env(), stdout=subprocess.PIPE, text=True) as process:
        try:
            for line in controlplane.pod_log.read_text().splitlines():
                assert process.stdout.readline() == f"{line}\n"
            with controlplane.pod_log.open("a") as log:
                log.write("written while it is followed\n")
            assert process.stdout.readline() == "written while it is followed\n"
        finally:
            process.kill()


def test_exec(controlplane, kubectl, pod):
    command = ["sh", "-c", "cat; echo $HOSTNAME; echo wrong >&2; exit 3"]
    args = ["exec", "-i", "-n", "shop", pod, "--", *command]
    result = controlplane.run_kubectl(*args, input="typed\n", program=kubectl, check=False)
    assert (result.returncode, result.stdout) == (3, f"typed\n{pod}\n")
    # Not at the start: kubectl 1.32 at times complains first of a message that came too early.
    assert "wrong\n" in result.stderr


def test_copy(controlplane, kubectl, pod, tmp_path):
    (tmp_path / "there").write_text("a file\n")
    inside = controlplane.pod_files / "copied"
    controlplane.run_kubectl("cp", "-n", "shop", str(tmp_path / "there"), f"{pod}:{inside}", program=kubectl)
    controlplane.run_kubectl("cp", "-n", "shop", f"{pod}:{inside}", str(tmp_path / "back"), program=kubectl)
    assert (tmp_path / "back").read_text() == "a file\n"


def test_attach(controlplane, kubectl, pod):
    args = ["attach", "-i", "-n", "shop", pod]
    assert controlplane.run_kubectl(*args, input="repeated\n", program=kubectl).stdout == "repeated\n"


def test_port_forward(controlplane, kubectl, pod):
    (port,) = free_ports(1)
    command = [kubectl, "port-forward", "-n", "shop", f"pod/{pod}", f"{port}:8080"]
    with subprocess.Popen(command, env=controlplane.kubectl_env(), stdout=subprocess.PIPE) as process:
        try:
            process.stdout.readline()  # it listens
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as answer:
                assert answer.read() == POD_GREETING
        finally:
            process.kill()


def test_audit_shows_what_arrived(controlplane):
    since = controlplane.audit_position()
    controlplane.run_kubectl("get", "configmap", "settings", "-n", "shop")
    event = controlplane.wait_for_audit(lambda e: e.get("objectRef", {}).get("name") == "settings", since=since)
    assert (event["verb"], event["user"]["username"], event["level"]) == ("get", "admin", "Request")


def test_restart_keeps_everything(controlplane):
    before = controlplane.pods("shop")
    controlplane.stop_apiserver()
    with pytest.raises(OSError, match="refused"):
        controlplane.request("GET", "/readyz")
    controlplane.start_apiserver()
    assert controlplane.pods("shop") == before


def test_deployment_replaces_a_pod(controlplane):
    before = set(controlplane.pods("prod-web"))
    controlplane.run_kubectl("delete", "pod", "-n", "prod-web", min(before))
    controlplane.wait_for_pods()
    after = set(controlplane.pods("prod-web"))
    assert len(after) == 3
    assert len(after - before) == 1


def test_ends_with_the_process_that_started_it(tmp_path):
    script = f"""
import os, signal
from pathlib import Path
from tests.cluster.controlplane import ControlPlane
cluster = ControlPlane.start(Path({str(tmp_path / "cluster")!r}))
print(*(server._process.pid for server in cluster._servers.values()), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    env = os.environ | {"PYTHONPATH": str(build.HERE.parents[1])}
    result = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=120)
    pids = result.stdout.split()
    assert len(pids) == 5
    deadline = time.monotonic() + 10
    while remaining := [pid for pid in pids if runs(pid)]:
        assert time.monotonic() < deadline, remaining
        time.sleep(0.05)


def runs(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_start_fails_with_the_reason(tmp_path):
    with pytest.raises(
        ControlPlaneError, match=r"kube-apiserver ended with code 1; .*\n.*unknown flag: --no-such-flag"
    ):
        ControlPlane.start(tmp_path / "cluster", apiserver_flags=["--no-such-flag"])


def test_authentication_config(tmp_path):
    config = tmp_path / "authentication.yaml"
    config.write_text(
        "apiVersion: apiserver.config.k8s.io/v1\n"
        "kind: AuthenticationConfiguration\n"
        "anonymous: {enabled: true, conditions: [{path: /version}]}\n"
    )
    with ControlPlane.start(tmp_path / "cluster", authentication_config=config, kwok=False, audit=False) as cluster:
        assert cluster.request("GET", "/version", token="")[0] == 200
        assert cluster.request("GET", "/livez", token="")[0] == 401
        assert whoami(cluster)["username"] == "admin"


@pytest.mark.parametrize(
    ("method", "url", "expected"),
    [
        pytest.param("GET", "/api/v1/pods?watch=1", {"verb": "watch", "resource": "pods"}, id="watch"),
        pytest.param(
            "DELETE",
            "/apis/apps/v1/namespaces/shop/deployments",
            {"verb": "deletecollection", "apiGroup": "apps", "namespace": "shop", "name": ""},
            id="collection",
        ),
        pytest.param(
            "GET",
            "/api/v1/namespaces/shop%2Fsecrets/x",
            {"namespace": "shop", "resource": "secrets", "name": "x"},
            id="an escaped slash separates",
        ),
        pytest.param("GET", "/healthz", {"isResourceRequest": False, "path": "/healthz"}, id="no resource"),
        pytest.param("GET", "/%zz", {"error": 'request line: parse "/%zz": invalid URL escape "%zz"'}, id="unreadable"),
    ],
)
def test_request_info(method, url, expected):
    (answer,) = request_info([{"method": method, "url": url}])
    assert expected.items() <= answer.items()


def test_request_info_of_bytes_that_are_no_text():
    target = base64.b64encode(b"/api/v1/pods/\xff").decode()
    (answer,) = request_info([{"method": "GET", "target": target}])
    assert answer["name"] == "\ufffd"


def test_request_info_is_fast_enough_for_property_tests():
    requests = [{"method": "GET", "url": f"/api/v1/namespaces/n{i}/pods/p{i}/log"} for i in range(50_000)]
    started = time.monotonic()
    answers = request_info(requests)
    assert time.monotonic() - started < 20  # seconds; 1 is usual
    assert [a["name"] for a in answers] == [f"p{i}" for i in range(50_000)]


def test_encode():
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "stringData": {"a": "b"}}
    options = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Foreground"}
    first, second = (base64.b64decode(line) for line in encode([secret, options]))
    assert first.startswith(b"k8s\0\n\x0c\n\x02v1\x12\x06Secret")
    assert second.startswith(b"k8s\0")
    assert b"Foreground" in second


def test_encode_refuses_a_field_that_the_type_does_not_have():
    with pytest.raises(ControlPlaneError, match='unknown field "oops"'):
        encode([{"apiVersion": "v1", "kind": "Secret", "oops": 1}])
