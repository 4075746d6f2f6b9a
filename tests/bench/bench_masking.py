"""
What masking costs: `python -m tests.bench.bench_masking [--profile]`.

5 MB of Secrets and of Pods, parsed, masked and written again, against parsing alone and against passing
them through (no work at all); a watch event; lines of a log. Prints a table, asserts nothing.
"""

import base64
import cProfile
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from addons.core import maskdetect, masking, maskpolicy
from addons.core.maskknown import Known
from addons.core.masktags import Place
from addons.core.masktext import TextMasker

KEY = bytes(range(32))
SIZE = 5_000_000  # bytes
CHUNK = 64 * 1024
SECRETS = Place("secrets")
PODS = Place("pods")
random_bytes = random.Random(7).randbytes  # noqa: S311 -- the same lists each time


def secret(number: int) -> dict[str, Any]:
    data = {name: base64.b64encode(random_bytes(size)).decode() for name, size in (("password", 24), ("tls.key", 1200))}
    applied = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": f"s-{number}"}, "data": data}
    return {
        "metadata": {
            "name": f"s-{number}",
            "namespace": "shop",
            "uid": f"5c2e9b0e-6d0c-4a6d-9a43-{number:012x}",
            "resourceVersion": str(number),
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "annotations": {masking.LAST_APPLIED: json.dumps(applied)},
            "managedFields": [
                {"manager": "kubectl", "operation": "Update", "fieldsV1": {"f:data": {"f:password": {}}}}
            ],
        },
        "type": "Opaque",
        "data": data,
    }


def pod(number: int, *, leaks: bool) -> dict[str, Any]:
    uid = f"5c2e9b0e-6d0c-4a6d-9a43-{number:012x}"
    env = [{"name": f"SETTING_{i}", "value": f"http://service-{i}.shop.svc.cluster.local:8080"} for i in range(12)]
    if leaks:
        env.append({"name": "DB_PASSWORD", "value": "hunter2"})
    fields = {"f:spec": {"f:containers": {'k:{"name":"app"}': {f"f:{word}": {} for word in ("env", "image", "ports")}}}}
    conditions = ("Initialized", "Ready", "ContainersReady", "PodScheduled")
    return {
        "metadata": {
            "name": f"web-7d9c8b6f5d-{number:05x}",
            "generateName": "web-7d9c8b6f5d-",
            "namespace": "shop",
            "uid": uid,
            "resourceVersion": str(number),
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {"app": "web", "pod-template-hash": "7d9c8b6f5d"},
            "annotations": {"prometheus.io/scrape": "true", "checksum/config": uid.replace("-", "") * 2},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-7d9c8b6f5d", "uid": uid}],
            "managedFields": [{"manager": "kube-controller-manager", "operation": "Update", "fieldsV1": fields}] * 3,
        },
        "spec": {
            "serviceAccountName": "default",
            "nodeName": f"node-{number % 50}",
            "volumes": [
                {"name": "kube-api-access", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}},
                {"name": "config", "configMap": {"name": "web", "defaultMode": 420}},
            ],
            "containers": [
                {
                    "name": name,
                    "image": f"registry.example/{name}@sha256:{uid.replace('-', '') * 2}",
                    "args": ["--listen=:8080", "--log-level=info", "--token-ttl", "30s"],
                    "env": env,
                    "ports": [{"containerPort": 8080, "protocol": "TCP"}],
                    "volumeMounts": [{"name": "config", "mountPath": "/etc/web", "readOnly": True}],
                    "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}},
                    "terminationMessagePath": "/dev/termination-log",
                }
                for name in ("app", "sidecar")
            ],
            "tolerations": [{"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute"}],
        },
        "status": {
            "phase": "Running",
            "podIP": "10.1.2.3",
            "conditions": [
                {"type": kind, "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"} for kind in conditions
            ],
            "containerStatuses": [
                {"name": name, "ready": True, "containerID": f"containerd://{uid.replace('-', '') * 2}"}
                for name in ("app", "sidecar")
            ],
        },
    }


def a_list(kind: str, make: Callable[[int], dict[str, Any]]) -> bytes:
    one = len(masking.dumps(make(0)))
    items = [make(number) for number in range(SIZE // one)]
    return (
        masking.dumps({"kind": kind, "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": items}) + b"\n"
    )


def millis(do: Callable[[], object], rounds: int = 7) -> float:
    do()
    times = []
    for _ in range(rounds):
        before = time.perf_counter_ns()
        do()
        times.append(time.perf_counter_ns() - before)
    return statistics.median(times) / 1e6


def log() -> bytes:
    lines = [
        f"2026-11-25T03:00:{i % 60:02}.{i:06}Z INFO controller pod=web-{i:x} uid=5c2e9b0e-6d0c-4a6d-9a43-{i:012x}"
        f" took {i % 90}ms path=/api/v1/namespaces/shop/pods token review ok"
        for i in range(SIZE // 150)
    ]
    return "\n".join(lines).encode() + b"\n"


def main() -> None:
    maskdetect.warm(None)
    lists = {
        "SecretList": (a_list("SecretList", secret), SECRETS),
        "PodList, nothing secret": (a_list("PodList", lambda n: pod(n, leaks=False)), PODS),
        "PodList, passwords in env": (a_list("PodList", lambda n: pod(n, leaks=True)), PODS),
    }
    if "--profile" in sys.argv:
        profile = cProfile.Profile()
        for raw, place in lists.values():
            profile.runcall(masking.mask_json, raw, place, KEY)
        profile.print_stats("tottime")
        return
    print(f"{'5 MB, median ms':28}{'json.loads':>11}{'mask':>9}{'all':>9}{'MB/s':>8}{'nobody masked':>15}")
    for name, (raw, place) in lists.items():
        content = json.loads(raw)
        parse = millis(lambda raw=raw: json.loads(raw))
        mask = millis(lambda content=content, place=place: masking.mask(content, place, KEY))
        both = millis(lambda raw=raw, place=place: masking.mask_json(raw, place, KEY))
        through = millis(lambda raw=raw, place=place: masking.mask_json(raw, place, KEY, maskpolicy.NOTHING))
        print(f"{name:28}{parse:11.0f}{mask:9.0f}{both:9.0f}{len(raw) / 1e3 / both:8.1f}{through:15.3f}")
    event = masking.dumps({"type": "MODIFIED", "object": pod(1, leaks=False)})
    one = millis(lambda: masking.mask_json(event, PODS, KEY), 500)
    print(f"\na watch event of a pod, {len(event)} bytes: {one * 1000:.0f} µs")
    event = masking.dumps({"type": "MODIFIED", "object": secret(1)})
    one = millis(lambda: masking.mask_json(event, SECRETS, KEY), 500)
    print(f"a watch event of a Secret, {len(event)} bytes: {one * 1000:.0f} µs")
    event = masking.dumps(
        {"type": "MODIFIED", "object": {"metadata": {"name": "c"}, "data": {"a": "x: y\n" * 200_000}}}
    )
    one = millis(lambda: masking.mask_json(event, Place("configmaps"), KEY), 9)
    print(f"a watch event of a ConfigMap, {len(event)} bytes: {one:.0f} ms, in a thread")
    text = log()
    known = Known(KEY)
    known.learn(base64.b64encode(random_bytes(30)))
    for name, memory in (("", None), (", with known values", known)):

        def stream(memory: Known | None = memory) -> None:
            masker = TextMasker(KEY, Place("pods/log"), b"n", memory)
            for at in range(0, len(text), CHUNK):
                masker.feed(text[at : at + CHUNK])
            masker.finish()

        print(f"a log{name}: {len(text) / 1e3 / millis(stream, 3):.1f} MB/s")
    masker = TextMasker(KEY, Place("pods/log"), b"n", known)
    line = text[: text.index(b"\n") + 1]
    print(f"one line of it: {millis(lambda: masker.feed(line), 2000) * 1000:.0f} µs")


if __name__ == "__main__":
    main()
