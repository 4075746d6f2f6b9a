"""Metrics, readiness and the log in JSON of a real gateway."""

import contextlib
import http.server
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from addons.core import auditevents, metrics
from addons.core.doctor import Level
from tests import canaries
from tests.e2e import client, gateway, policies
from tests.e2e.test_approvals import Stage

pytestmark = pytest.mark.e2e

PEOPLE = "tollgate:system:serviceaccounts:people"
POLICY = (
    policies.EVERYTHING.replace("rules:", f"people: '\"{PEOPLE}\" in identity.groups'\nrules:", 1)
    + """
- name: forbidden
  action: deny
  match: {resources: [configmaps], verbs: [delete]}
- name: asked
  action: hold
  match: {subjects: [agents], resources: [namespaces], verbs: [create]}
  approval: {groups: ["tollgate:system:serviceaccounts:people"], wait: 60s}
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


class Line:
    """The way to the API server, which a test can cut."""

    def __init__(self, port: int) -> None:
        self.far, self.cut = port, False
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port = self.server.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self.server.accept()
                if self.cut:
                    near.close()
                    continue
                far = socket.create_connection(("127.0.0.1", self.far))
                for one, other in ((near, far), (far, near)):
                    threading.Thread(target=self.copy, args=(one, other), daemon=True).start()

    def copy(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(65536):
                other.sendall(data)
        for end in (one, other):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="module")
def line(controlplane):
    one = Line(controlplane.port)
    yield one
    one.server.close()


@pytest.fixture(scope="module")
def running(gateway_kubeconfig, controlplane, line, collector, tmp_path_factory):
    folder = tmp_path_factory.mktemp("metrics")
    (folder / "policy.yaml").write_text(POLICY)
    text = gateway_kubeconfig.read_text()
    assert str(controlplane.port) in text
    own = folder / "gateway.kubeconfig"
    own.touch(0o600)
    own.write_text(text.replace(f":{controlplane.port}", f":{line.port}"))
    port = gateway.free_port()
    with gateway.running(
        folder,
        *("--kubeconfig", str(own)),
        *("--policies", str(folder / "policy.yaml")),
        *("--metrics", f"127.0.0.1:{port}"),
        *("--traces", f"http://127.0.0.1:{collector[0]}/v1/traces"),
        *("--log", "json"),
        *("--", "-s", str(gateway.ROOT / "tests" / "e2e" / "slowdisk.py")),
        environment={"TOLLGATE_TEST_SLOW_DISK": str(folder / "slow")},
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
    secret = "/api/v1/namespaces/shop/secrets/db-password"

    def send(method, path, token=agent_token, **more):
        return client.request(running.port, running.ca_file, method, path, token=token, **more).status

    before = scrape(running)
    assert send("GET", f"{maps}/settings", headers={"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}) == 200
    assert send("POST", maps, body=body) in (201, 409)
    assert send("DELETE", f"{maps}/settings") == 403
    assert send("GET", f"{maps}/settings", token="a.b.c") == 401
    assert send("GET", secret) == 200
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
    assert more("tollgate_masked_values_total") >= 1
    assert more("tollgate_budget_used_ratio", budget="everything/few") == 0.25
    assert value(after, "tollgate_policy_generation") >= 1
    assert value(after, "tollgate_ready") == 1
    assert 0 < value(after, "tollgate_credential_age_seconds") < 24 * 3600
    assert value(after, "tollgate_credential_expires_timestamp_seconds") > time.time()
    # Nobody's name and nothing of the cluster is in a label.
    text = client.plain("127.0.0.1", running.metrics_port, "/metrics", {}).body.decode()
    for word in ("ci-agent", "shop", "metered", "settings"):
        assert word not in text
    assert {name for m in metrics.METRICS.values() for name in m.exported if not m.labels} <= {k[0] for k in after}


def until(true, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return found


def names(expressions) -> set[str]:
    return {name for text in expressions for name in re.findall(r"\b(?:tollgate|process)_\w+", text)}


# What is 0 in a gateway with which all is well.
WELL = {
    "tollgate_record_trouble",
    "tollgate_policy_stale",
    "tollgate_credential_static",
    "tollgate_credential_cluster_admin",
}


def test_every_metric_moves(running, controlplane, line, agent_token, engineer_token):
    """Each is provoked, and is what the dashboard and the alert rules speak of."""
    stage = Stage(running, controlplane)
    maps, shop = "/api/v1/namespaces/shop/configmaps", "/api/v1/namespaces/shop"
    high: dict[str, float] = {}

    def send(method, path, token=agent_token, **more):
        return client.request(running.port, running.ca_file, method, path, token=token, **more)

    def seen():
        for key, found in scrape(running).items():
            high[key[0]] = max(high.get(key[0], 0.0), abs(found))
        return high

    assert send("POST", maps, body={"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "all"}}).status < 500
    assert send("DELETE", f"{maps}/settings").status == 403
    assert send("GET", maps, token="a.b.c").status == 401
    assert send("GET", f"{shop}/secrets/db-password").status == 200  # masked
    # Held, decided.
    with ThreadPoolExecutor() as pool:
        namespace = {"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": "asked-for"}}
        held = pool.submit(send, "POST", "/api/v1/namespaces", body=namespace, seconds=90)
        try:
            name = stage.pending("asked-for")["metadata"]["name"]
            assert seen()["tollgate_holds_waiting"] == high["tollgate_approvals_pending"] == 1
            # The disk stands still, and what is read meanwhile waits for it.
            slow = running.folder / "slow"
            slow.touch()
            try:

                def stands_still():
                    assert send("GET", f"{maps}/settings").status == 200  # a read waits for nothing
                    return seen()["tollgate_record_lag_seconds"] > 1.5 and high["tollgate_records_waiting"] >= 1

                until(stands_still)
            finally:
                slow.unlink()
            until(lambda: not value(scrape(running), "tollgate_records_waiting"))
            until(lambda: value(scrape(running), "tollgate_record_lag_seconds") < 1.5)
        finally:
            assert stage.decide(name, "Denied").status == 200
        assert held.result(60).status == 403
    until(lambda: value(scrape(running), "tollgate_decision_seconds_count", outcome="denied") == 1)
    # Cut off from the API server.
    line.cut = True
    try:
        assert send("GET", f"{maps}/settings").status == 502
        until(lambda: value(scrape(running), "tollgate_upstream_errors_total", kind="connect"))
        assert client.plain("127.0.0.1", running.metrics_port, "/readyz", {}).status == 200  # see docs/operations.md
    finally:
        line.cut = False
    revoked = subprocess.run(
        [
            *(sys.executable, "-m", "addons.cli", "revoke", "--user", "nobody", "--for", "1m"),
            *("--state", str(running.folder / "state")),
        ],
        env={**os.environ, "PYTHONPATH": str(gateway.ROOT)},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert revoked.returncode == 0, revoked.stderr
    until(lambda: seen()["tollgate_revocations_in_force"])
    until(lambda: value(scrape(running), "tollgate_doctor_looked_timestamp_seconds"))
    # A mistake in the policies, and then a rule that never matches.
    policy = running.folder / "policy.yaml"
    policy.write_text(POLICY + "nonsense: 1\n")
    until(lambda: value(scrape(running), "tollgate_policy_stale") == 1)
    assert b"doctor/policies problem" in client.plain("127.0.0.1", running.metrics_port, "/readyz?verbose", {}).body
    never = "- {name: never, action: allow, match: {resources: [configmaps], verbs: [delete]}}\n"
    policy.write_text(POLICY.replace("budgets:", never + "budgets:"))
    until(lambda: value(scrape(running), "tollgate_policy_stale") == 0 and seen()["tollgate_policy_warnings"])
    seen()
    exported = {name for metric in metrics.METRICS.values() for name in metric.exported}
    assert sorted(name for name in exported - WELL if not high.get(name)) == []
    assert high.keys() >= WELL
    folder = gateway.ROOT / "deploy" / "observability"
    rules = [
        rule["expr"] for g in yaml.safe_load((folder / "alerts.yaml").read_text())["groups"] for rule in g["rules"]
    ]
    panels = json.loads((folder / "dashboard.json").read_text())["panels"]
    spoken_of = names(rules) | names(target["expr"] for panel in panels for target in panel["targets"])
    assert spoken_of <= high.keys()
    for name in ("all", "metered"):
        controlplane.request("DELETE", f"{maps}/{name}")
    values = {
        label: {dict(key[1:])[label] for key in scrape(running) if label in dict(key[1:])}
        for metric in metrics.METRICS.values()
        for label in metric.labels
    }
    assert values["impact"] <= set(metrics.IMPACTS)
    assert values["verdict"] <= set(metrics.VERDICTS)
    assert values["phase"] <= set(metrics.PHASES)
    assert values["level"] <= {level.word for level in Level}
    assert values["issuer"] == {"cluster"}
    assert values["certificate"] == {"serving", "api-server"}
    assert max(map(len, values.values())) <= 30


def test_health(running):
    assert client.plain("127.0.0.1", running.metrics_port, "/healthz", {}).status == 200
    answer = client.plain("127.0.0.1", running.metrics_port, "/readyz", {})
    found = json.loads(answer.body)
    assert (answer.status, found["ready"]) == (200, True)
    assert {"authenticate", "approve", "record", "upstream", "listener"} <= found["parts"].keys()


def test_readiness_in_the_lines_of_kubernetes(running):
    """As docs/operations.md shows it: what the doctor found in words, and nothing that is nobody's business."""
    wanted = {"clock", "credential", "folders", "certificate", "upstream", "issuers", "policies", "rights"}

    def asked():
        answer = client.plain("127.0.0.1", running.metrics_port, "/readyz?verbose", {})
        assert answer.status == 200
        lines = answer.body.decode().splitlines()
        return lines if wanted <= {one.removeprefix("[+]doctor/").split(" ")[0] for one in lines} else None

    lines = until(asked)
    assert lines[-1] == "readyz check passed"
    assert "[+]authenticate ok" in lines
    assert "[+]doctor/clock ok" in lines
    for one in lines[:-1]:
        assert re.fullmatch(r"\[\+\][a-z-]+ ok|\[\+\]doctor/[a-z]+ (ok|(warning|problem), see the log)", one)


def test_the_log_is_json_with_the_id_of_the_request(controlplane, running, agent_token):
    path = "/api/v1/namespaces/shop/configmaps/settings"
    headers = {"User-Agent": "kubectl/v9 (test)", "Kubectl-Session": "5f0c1a9e"}
    answer = client.request(running.port, running.ca_file, "DELETE", path, token=agent_token, headers=headers)
    assert answer.status == 403
    # A token where a name and where a program's name belong.
    token = canaries.VALUES["github token"].decode()
    for where, agent in ((f"{path}-{token}", "x"), (path, f"agent/{token}")):
        client.request(running.port, running.ca_file, "DELETE", where, token=agent_token, headers={"User-Agent": agent})
    lines = [json.loads(line) for line in running.log.splitlines() if line.startswith("{")]
    refused = [line for line in lines if "refused 403" in line["message"]]
    assert refused
    assert all(line["request"] for line in refused)
    claimed = [one for one in lines if one.get("claimedSession") == "5f0c1a9e"]
    assert {one["claimedAgent"] for one in claimed} == {"kubectl/v9 (test)"}
    assert any("deny" in one["message"] for one in claimed)
    assert agent_token not in running.log
    assert token not in running.log
    assert sum(not line.startswith("{") for line in running.log.splitlines()) <= 2  # before it was told so
    # And in the record, under the same id.

    def recorded():
        return [
            event
            for file in (running.folder / "recordings").rglob("events.jsonl")
            for event in map(json.loads, file.read_text().splitlines())
            if event["auditID"] == claimed[0]["request"]
        ]

    until(recorded)  # refusals are written soon after
    (event,) = recorded()
    assert event["userAgent"] == "kubectl/v9 (test)"
    assert json.loads(event["annotations"][auditevents.OPERATION])["claimedSession"] == "5f0c1a9e"


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
