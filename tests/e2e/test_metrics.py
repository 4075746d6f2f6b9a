"""Metrics, readiness and the log in JSON of a real gateway."""

import http.server
import json
import threading
import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

from addons.core import metrics
from tests.e2e import client, gateway, policies

pytestmark = pytest.mark.e2e

POLICY = (
    policies.EVERYTHING
    + """
- name: forbidden
  action: deny
  match: {resources: [configmaps], verbs: [delete]}
budgets:
- name: few
  match: {resources: [configmaps], verbs: [create]}
  limit: 4
  window: 10m
  per: identity
"""
)
TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture(scope="module")
def collector():
    """Takes OTLP and keeps it."""
    bodies = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port, bodies
    server.shutdown()


@pytest.fixture(scope="module")
def running(gateway_kubeconfig, collector, tmp_path_factory):
    folder = tmp_path_factory.mktemp("metrics")
    (folder / "policy.yaml").write_text(POLICY)
    port = gateway.free_port()
    with gateway.running(
        folder,
        *("--kubeconfig", str(gateway_kubeconfig)),
        *("--policies", str(folder / "policy.yaml")),
        *("--metrics", f"127.0.0.1:{port}"),
        *("--traces", f"http://127.0.0.1:{collector[0]}/v1/traces"),
        *("--log", "json"),
    ) as one:
        one.metrics_port = port
        yield one


def scrape(one):
    answer = client.plain("127.0.0.1", one.metrics_port, "/metrics", {})
    assert answer.status == 200
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.body.decode())
        for sample in family.samples
    }


def value(found, name, **labels):
    return sum(v for key, v in found.items() if key[0] == name and set(labels.items()) <= set(key[1:]))


def test_an_exchange_is_in_the_numbers(running, agent_token):
    maps = "/api/v1/namespaces/shop/configmaps"
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "metered"}}
    secret = "/api/v1/namespaces/shop/secrets/db"

    def send(method, path, token=agent_token, **more):
        return client.request(running.port, running.ca_file, method, path, token=token, **more).status

    before = scrape(running)
    assert send("GET", f"{maps}/settings", headers={"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}) == 200
    assert send("POST", maps, body=body) in (201, 409)
    assert send("DELETE", f"{maps}/settings") == 403
    assert send("GET", f"{maps}/settings", token="a.b.c") == 401
    send("GET", secret)
    after = scrape(running)

    def more(name, **labels):
        return value(after, name, **labels) - value(before, name, **labels)

    requests = "tollgate_requests_total"
    assert more(requests, verdict="allowed", impact="read", rule="everything/everything") == 1
    assert more(requests, verdict="denied", impact="delete", rule="everything/forbidden") == 1
    assert more(requests, verdict="unauthenticated") == 1
    assert more("tollgate_authentication_failures_total", reason="malformed") == 1
    assert more("tollgate_refusals_total", cause="unauthorized") == 1
    assert more("tollgate_upstream_responses_total", code="2xx") >= 2
    for phase in ("authenticate", "classify", "block", "approve", "mask", "upstream", "api-server", "answer"):
        assert more("tollgate_phase_seconds_count", phase=phase) >= 2, phase
    assert more("tollgate_added_seconds_count") >= 2
    assert value(after, "tollgate_budget_used_ratio", budget="everything/few") == 0.25
    assert value(after, "tollgate_policy_generation") >= 1
    assert value(after, "tollgate_ready") == 1
    assert 0 < value(after, "tollgate_credential_age_seconds") < 24 * 3600
    assert value(after, "tollgate_credential_expires_timestamp_seconds") > time.time()
    # Nobody's name and nothing of the cluster is in a label.
    text = client.plain("127.0.0.1", running.metrics_port, "/metrics", {}).body.decode()
    for word in ("ci-agent", "shop", "metered", "settings"):
        assert word not in text
    assert {name for m in metrics.METRICS.values() for name in m.exported if not m.labels} <= {k[0] for k in after}


def test_health(running):
    assert client.plain("127.0.0.1", running.metrics_port, "/healthz", {}).status == 200
    answer = client.plain("127.0.0.1", running.metrics_port, "/readyz", {})
    found = json.loads(answer.body)
    assert (answer.status, found["ready"]) == (200, True)
    assert {"authenticate", "approve", "listener"} <= found["parts"].keys()


def test_the_log_is_json_with_the_id_of_the_request(controlplane, running, agent_token):
    path = "/api/v1/namespaces/shop/configmaps/settings"
    assert client.request(running.port, running.ca_file, "DELETE", path, token=agent_token).status == 403
    lines = [json.loads(line) for line in running.log.splitlines() if line.startswith("{")]
    refused = [line for line in lines if "refused 403" in line["message"]]
    assert refused
    assert all(line["request"] for line in refused)
    assert agent_token not in running.log
    assert sum(not line.startswith("{") for line in running.log.splitlines()) <= 2  # before it was told so


def test_the_span_joins_the_clients_trace(running, collector, agent_token):
    path = "/api/v1/namespaces/shop/configmaps/settings"
    header = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}
    client.request(running.port, running.ca_file, "GET", path, token=agent_token, headers=header)
    deadline = time.monotonic() + 15
    while not any(bytes.fromhex(TRACE) in body for body in collector[1]):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    sent = b"".join(collector[1])
    assert b"get configmaps" in sent
    assert agent_token.encode() not in sent


def test_a_port_that_is_taken_is_one_sentence(running, gateway_kubeconfig, tmp_path):
    port = gateway.free_port()
    arguments = ["--kubeconfig", str(gateway_kubeconfig), "--metrics", f"127.0.0.1:{running.metrics_port}"]
    process = gateway.launch(tmp_path, arguments, port=port)
    assert process.wait(30) != 0
    assert "--metrics: cannot listen" in (tmp_path / "gateway.log").read_text()


def test_whatever_fails_in_it_the_exchanges_go_on(gateway_kubeconfig, agent_token, tmp_path):
    (tmp_path / "policy.yaml").write_text(POLICY)
    fault = tmp_path / "fault"
    hooks = ("requestheaders", "responseheaders", "response", "error")
    fault.write_text("\n".join(f"tollgate_metrics {hook}" for hook in hooks))
    with gateway.running(
        tmp_path / "gateway",
        *("--kubeconfig", str(gateway_kubeconfig), "--policies", str(tmp_path / "policy.yaml")),
        *("--metrics", f"127.0.0.1:{gateway.free_port()}"),
        *("--", "-s", str(gateway.ROOT / "tests" / "e2e" / "faults.py")),
        environment={"TOLLGATE_TEST_FAULT": str(fault)},
    ) as one:
        deadline = time.monotonic() + 10
        while not fault.with_suffix(".armed").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        maps = "/api/v1/namespaces/shop/configmaps/settings"
        assert client.request(one.port, one.ca_file, "GET", maps, token=agent_token).status == 200
        assert client.request(one.port, one.ca_file, "DELETE", maps, token=agent_token).status == 403
        assert "tollgate_metrics response" in fault.with_suffix(".fired").read_text()
