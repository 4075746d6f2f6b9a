"""
What a decision costs: `python -m tests.bench.bench_policy`.

Median time of classify and of block's question to the policy, for requests that need no object;
with the shipped policy, with all packs, and with more and more rules. Prints a table, asserts nothing.
"""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from addons.core import policyfile
from addons.core.admission import NeedsObjects
from addons.core.classify import classify_raw
from addons.core.model import Identity, Operation
from addons.core.policy import PolicySet

POLICIES = Path(__file__).parents[2] / "policies"
AGENT = Identity("agent", groups=("bots", "system:serviceaccounts"))
ROUNDS = 3000
HEADERS = [
    (b"accept", b"application/json"),
    (b"user-agent", b"kubectl/v1.36.3 (linux/amd64)"),
    (b"kubectl-command", b"kubectl get"),
    (b"kubectl-session", b"5c2e9b0e-6d0c-4a6d-9a43-1b1d7a0f8a52"),
]
DEPLOYMENT = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "web", "labels": {"app": "web"}},
    "spec": {
        "replicas": 3,
        "selector": {"matchLabels": {"app": "web"}},
        "template": {
            "metadata": {"labels": {"app": "web"}},
            "spec": {
                "containers": [{"name": "c", "image": "registry.example/web:1", "ports": [{"containerPort": 80}]}]
            },
        },
    },
}
CONFIG_MAP = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "prices"}, "data": {"a": "b"}}
REQUESTS: list[tuple[str, str, str, Any]] = [
    ("get a pod", "GET", "/api/v1/namespaces/agent-a/pods/web-1", None),
    ("list pods", "GET", "/api/v1/namespaces/agent-a/pods?limit=500", None),
    ("get a Secret (denied)", "GET", "/api/v1/namespaces/agent-a/secrets/db", None),
    ("discovery", "GET", "/apis/apps/v1", None),
    ("create a ConfigMap", "POST", "/api/v1/namespaces/agent-a/configmaps", CONFIG_MAP),
    ("create a Deployment", "POST", "/apis/apps/v1/namespaces/agent-a/deployments", DEPLOYMENT),
    ("delete a pod", "DELETE", "/api/v1/namespaces/agent-a/pods/web-1", {"propagationPolicy": "Background"}),
]


def micros(do: Callable[[], object]) -> float:
    for _ in range(50):
        do()
    times = []
    for _ in range(ROUNDS):
        before = time.perf_counter_ns()
        do()
        times.append(time.perf_counter_ns() - before)
    return statistics.median(times) / 1000


def operation(method: str, target: str, body: Any) -> tuple[Operation, Callable[[], Operation]]:
    content = b"" if body is None else json.dumps(body).encode()
    fields = [*HEADERS, *([(b"content-type", b"application/json")] if content else [])]

    def do() -> Operation:
        return classify_raw(method, target, fields, content)

    return do(), do


def judged(policies: PolicySet, op: Operation) -> Callable[[], object]:
    def do() -> object:
        try:
            return policies.evaluate(AGENT, op)
        except NeedsObjects as e:
            return e.names

    return do


def many(count: int) -> PolicySet:
    """The shipped policy and so many denials, each of another name."""
    rules = [
        {
            "name": f"r{number}",
            "action": "deny",
            "match": {"resources": ["configmaps"], "resourceNames": [f"{number}-critical"], "verbs": ["delete"]},
            "when": "operation.verb == 'delete'",
        }
        for number in range(count)
    ]
    head = {"apiVersion": policyfile.API_VERSION, "kind": "Policy", "metadata": {"name": "many"}}
    contents = policyfile.read([POLICIES])
    return policyfile.parse({**contents, "many": json.dumps({**head, "rules": rules}).encode()})


def main() -> None:
    sets = {
        "default": policyfile.load([POLICIES]),
        "all packs": policyfile.load([POLICIES, POLICIES / "packs"]),
        "+10 rules": many(10),
        "+100": many(100),
        "+1000": many(1000),
    }
    print(f"{'p50 in µs':24}{'classify':>10}" + "".join(f"{name:>11}" for name in sets))
    requests = [*REQUESTS, ("delete a ConfigMap", "DELETE", "/api/v1/namespaces/agent-a/configmaps/c", None)]
    for name, method, target, body in requests:
        op, classify = operation(method, target, body)
        row = [micros(judged(policies, op)) for policies in sets.values()]
        print(f"{name:24}{micros(classify):10.1f}" + "".join(f"{value:11.1f}" for value in row))


if __name__ == "__main__":
    main()
