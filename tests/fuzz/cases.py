"""
Random requests for the comparison with the API server's own parsers: targets, options in query and
body, objects in JSON, YAML and protobuf, patches of all four types.

The same seed gives the same requests, so a number is all that has to be kept of a difference.
"""

import base64
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from tests.fuzz import trees
from tests.fuzz.trees import maybe

JSON_TYPES = ["application/json", "application/json", "application/json", None, "", "application/json; charset=utf-8"]
ODD_TYPES = [
    *("APPLICATION/JSON", "application/json;", "application/json ; charset=utf-8", "application/json; charset=utf-16"),
    *("application/json;v=1;charset=utf-8", "text/json", "application/yaml", "application/json, application/yaml"),
    *("application/vnd.kubernetes.protobuf", "application/cbor", 'application/json; charset="utf-8"', "*/*", "json"),
    *("application/json; q=0.5", "application/json;stream=watch", "application/merge-patch+json", "text/yaml"),
]
PATCH_TYPES = {
    "json": "application/json-patch+json",
    "merge": "application/merge-patch+json",
    "strategic": "application/strategic-merge-patch+json",
    "apply": "application/apply-patch+yaml",
}
PATCH_PARAMETERS = ["; charset=utf-8", ";charset=UTF-8", ";", "; q=1", " ; charset=utf-8", "; type=merge", ";;", "\t"]


@dataclass(frozen=True)
class Case:
    """One request. `onto`: the object that a patch is laid on, as JSON text."""

    method: str
    url: str
    content_type: str | None = None
    body: bytes = b""
    onto: str = ""
    name: str = ""  # of the kept ones

    def question(self, onto: str | None = None) -> dict[str, Any]:
        """As the Go program reads it."""
        asked: dict[str, Any] = {"method": self.method, "url": self.url}
        if self.content_type is not None:
            asked["contentType"] = self.content_type
        if self.body:
            asked["body"] = base64.b64encode(self.body).decode()
        if on := self.onto if onto is None else onto:
            asked["onto"] = json.loads(on)
        return asked

    def line(self) -> str:
        """As it is kept in tests/corpus."""
        kept = {"name": self.name, **self.question()}
        if self.body and (text := self.body.decode("utf-8", "replace")).encode() == self.body:
            kept["body"], kept["text"] = None, text
        return json.dumps({k: v for k, v in kept.items() if v is not None})


def kept(line: str) -> Case:
    """A case of tests/corpus."""
    read = json.loads(line)
    body = read["text"].encode() if "text" in read else base64.b64decode(read.get("body", ""))
    onto = json.dumps(read["onto"]) if "onto" in read else ""
    return Case(read["method"], read["url"], read.get("contentType"), body, onto, read["name"])


# Targets

SEGMENTS = [
    *("api", "apis", "v1", "apps", "batch", "namespaces", "default", "pods", "p1", "exec", "status", "finalize"),
    *("proxy", "watch", "nodes", "secrets", "log", "scale", "token", "a%20b", "system:x", "%3A", "%C3%A4", "services"),
    *("https:svc:443", "healthz", "version", "openapi", "v3", "Namespaces", "deployments", "ephemeralcontainers"),
    *("..", ".", "", "%2e%2e", "a%2Fb", "a;b", "%00", "%70ods", "pods%20", "eviction", "binding", "tokenreviews"),
]
STARTS = [
    *(
        "/api/v1",
        "/apis/apps/v1",
        "/api/v1/namespaces/ns",
        "/api/v1/watch",
        "/api/v1/proxy",
        "/apis/g/v1/namespaces/ns",
    ),
    *(
        "/apis",
        "/api",
        "/api/v1/namespaces/ns/pods/p/proxy",
        "/apis/apps/v1/watch/namespaces",
        "",
        "//api/v1",
        "/API/v1",
    ),
]
LISTS = ["watch", "labelSelector", "fieldSelector", "limit", "timeoutSeconds", "resourceVersion", "sendInitialEvents"]
VALUES: dict[str, Sequence[str]] = {
    "watch": ["", "0", "1", "false", "FALSE", "true", "no", "00", " false", "fal\u017fe", "FAL\u017fE", "t", "False"],
    "labelSelector": [
        *(
            "a",
            "a=b",
            "a==b",
            "a!=b",
            "!a",
            "!a=b",
            "a in (b,c)",
            "a notin ()",
            "a in (,b)",
            "a in (b c)",
            "in in (in)",
        ),
        *("a>1", "a<x", "a,", ",a", "a/b=c", "A/b", "a b", "a=b,c in (d)", "\u00e4=b", "a=\u00e4"),
    ],
    "fieldSelector": [
        *("metadata.name=x", "metadata.name==x", "metadata.name!=x", "metadata.name=", "metadata.name=a/b", "a=b", "a"),
        *("metadata.name=..", "metadata.name=%", "metadata.name=b,metadata.name=a", "metadata.name=a\\,b", ","),
        *("metadata.name=a\\=b", "metadata.name=a\\x", "metadata.name=a=b", "metadata.namespace=x", "Metadata.Name=x"),
    ],
    "limit": ["1", "-1", "+1", "", "x", "1_0", "9223372036854775807", "9223372036854775808", "1.0", " 1", "0x1"],
    "timeoutSeconds": ["1", "", "x", "-9223372036854775808", "1e3"],
    "resourceVersion": ["", "0", "5", "x"],
    "sendInitialEvents": ["true", "false", "", "1"],
    "dryRun": ["All", "All", "All", "", "all", "None", "All,All", " All", "[All]"],
    "propagationPolicy": ["Orphan", "Background", "Foreground", "", "orphan"],
    "gracePeriodSeconds": ["0", "1", "-1", "", "x", "1.0", "00"],
    "orphanDependents": ["true", "false", "", "1", "0", "False", "no"],
    "fieldManager": ["x", "", "kubectl"],
    "fieldValidation": ["Strict", "Ignore", "Warn", "strict", ""],
    "force": ["true", "false", ""],
    "pretty": ["true", "1"],
    "foo": ["x", ""],
}
DELETES = ["dryRun", "propagationPolicy", "gracePeriodSeconds", "orphanDependents"]
WRITES = ["dryRun", "fieldManager", "fieldValidation", "pretty"]


def query(rng: random.Random, keys: Sequence[str]) -> str:
    """A query of a few of these, seldom with a key twice, in other letters, or escaped in odd ways."""
    parts = []
    for key in rng.sample([*keys, "foo"], rng.randint(0, 3)):
        name, value = key, quote(rng.choice(VALUES[key]), safe="")
        if maybe(rng, 0.03):
            name = rng.choice(
                [key.upper(), key.capitalize(), key[0] + "%" + key[1:2].encode().hex() + key[2:], f"{key}[]"]
            )
        if maybe(rng, 0.02):
            value = rng.choice(["%zz", "%", "+All", "All;x", "%C0%AF", "%00", value + "#", "All%20"])
        parts.append(name if maybe(rng, 0.03) else f"{name}={value}")
        if maybe(rng, 0.03):
            parts.append(f"{key}={quote(rng.choice(VALUES[key]), safe='')}")
    if not parts:
        return "?" if maybe(rng, 0.02) else ""
    return "?" + rng.choice(["&", "&", "&", "&", "&&", ";"] if maybe(rng, 0.05) else ["&"]).join(parts)


def target(rng: random.Random) -> Case:
    path = "/".join([rng.choice(STARTS), *(rng.choice(SEGMENTS) for _ in range(rng.randint(0, 5)))])
    keys = rng.choice([LISTS, LISTS, DELETES, WRITES, list(VALUES)])
    method = rng.choice(["GET", "GET", "GET", "HEAD", "DELETE", "POST", "PUT", "PATCH"])
    if maybe(rng, 0.01):
        method = rng.choice(["get", "OPTIONS", "TRACE", "Delete", "PROPFIND"])
    return Case(method, (path or "/") + query(rng, keys))


# Bodies


def place(rng: random.Random, resource: str, named: bool) -> str:
    version = trees.KINDS[resource][0]
    prefix = f"/apis/{version}" if "/" in version else f"/api/{version}"
    where = "" if resource == "namespaces" else f"/namespaces/{rng.choice(['x', 'x', 'x', 'kube-system'])}"
    name = "/" + rng.choice(["o", "web-1"]) if named else ""
    return f"{prefix}{where}/{resource}{name}"


def written(rng: random.Random, pairs: Any) -> tuple[str | None, bytes]:
    """Content type and body."""
    yaml = maybe(rng, 0.45)
    kind: str | None = "application/yaml" if yaml else rng.choice(JSON_TYPES)
    if maybe(rng, 0.05):
        kind = rng.choice(ODD_TYPES)
    text = trees.as_yaml(rng, pairs) if yaml and maybe(rng, 0.9) else trees.as_json(pairs)
    return kind, trees.in_bytes(rng, text, yaml)


def delete(rng: random.Random) -> Case:
    resource = rng.choice(list(trees.KINDS))
    url = place(rng, resource, maybe(rng, 0.7)) + query(rng, DELETES)
    if maybe(rng, 0.35):
        return Case("DELETE", url)
    options = trees.delete_options(rng)
    if maybe(rng, 0.3):
        options = trees.mutated(rng, options)
    kind, body = written(rng, options if options else trees.Raw(rng.choice(["{}", "{}", "null", "", "[]", " "])))
    return Case("DELETE", url, kind, body)


def eviction(rng: random.Random) -> Case:
    """A delete with the options inside."""
    pairs: trees.Pairs = [
        ("kind", "Eviction"),
        ("apiVersion", rng.choice(["policy/v1", "policy/v1", "policy/v1beta1"])),
    ]
    pairs.append(("metadata", [("name", "web-1")]))
    if maybe(rng, 0.8):
        options = trees.delete_options(rng) or trees.Raw("{}")
        pairs.append((rng.choice(["deleteOptions"] * 6 + ["DeleteOptions", "deleteoptions"]), options))
    if maybe(rng, 0.2):
        pairs.append(("dryRun", ["All"]))
    if maybe(rng, 0.3):
        pairs = trees.mutated(rng, pairs)
    kind, body = written(rng, pairs)
    return Case("POST", place(rng, "pods", True) + "/eviction" + query(rng, WRITES), kind, body)


def write(rng: random.Random) -> Case:
    resource = rng.choice(list(trees.KINDS))
    create = maybe(rng, 0.6)
    pairs = trees.whole(rng, resource)
    for _ in range(rng.choice([0, 0, 1, 1, 2])):
        pairs = trees.mutated(rng, pairs)
    kind, body = written(rng, pairs)
    return Case("POST" if create else "PUT", place(rng, resource, not create) + query(rng, WRITES), kind, body)


# Patches. The Secret's value is what two of them differ in: what is told apart, is told.

SECRET = "canary-{}-Xq9zKw"


def onto(resource: str, variant: str = "one") -> str:
    version, kind = trees.KINDS[resource]
    stored: dict[str, Any] = {
        "apiVersion": version,
        "kind": kind,
        "metadata": {
            "name": "o",
            "namespace": "x",
            "labels": {"a": "b", "a/b": "c"},
            "annotations": {"n": "v", "t~x": "y"},
        },
    }
    spec = {"serviceAccountName": "deployer", "containers": [{"name": "c", "image": "nginx", "env": [
        {"name": "A", "value": "b"}]}], "volumes": [{"name": "v", "secret": {"secretName": "db"}}]}  # fmt: skip
    inside = {"metadata": {"labels": {"a": "b"}}, "spec": spec}
    match resource:
        case "pods":
            stored["spec"] = spec
        case "deployments":
            stored["spec"] = {"replicas": 3, "selector": {"matchLabels": {"a": "b"}}, "template": inside}
        case "cronjobs":
            stored["spec"] = {"schedule": "* * * * *", "jobTemplate": {"spec": {"template": inside}}}
        case "secrets":
            stored["type"] = "Opaque"
            stored["data"] = {"password": trees.encoded(SECRET.format(variant)), "a/b": "Yg==", "a~b": "Yw=="}
        case "services":
            stored["spec"] = {"type": "ClusterIP", "ports": [{"port": 80}]}
        case "gizmos":
            stored["spec"] = {"size": 1, "list": [1, 2, {"a": "b"}]}
        case _:
            stored["data"] = {"k": "v"}
    return json.dumps(stored)


POINTERS = [
    *(
        "",
        "/",
        "/spec",
        "/spec/replicas",
        "/spec/template",
        "/spec/template/spec",
        "/spec/template/spec/serviceAccountName",
    ),
    *(
        "/spec/template/spec/containers/0/image",
        "/spec/template/spec/containers/-",
        "/spec/serviceAccountName",
        "/data",
    ),
    *(
        "/spec/containers/0",
        "/spec/containers/0/image",
        "/data/password",
        "/data/a~1b",
        "/data/a~0b",
        "/metadata/labels",
    ),
    *("/metadata/labels/a", "/metadata/labels/a~1b", "/metadata/annotations/n", "/metadata/annotations/t~0x", "/type"),
    *("/metadata/name", "/metadata", "/kind", "/spec/jobTemplate/spec/template/spec/volumes/0", "/spec/list/-"),
    *(
        "/spec/jobTemplate",
        "/spec/externalIPs",
        "/metadata/finalizers",
        "/metadata/ownerReferences/0",
        "/spec/list/2/a",
    ),
    *("/data/a~01b", "/data/a~2b", "/data/a~", "data/password", "/data/", "//data", "/Data/password", "/spec/list/00"),
    *(
        "/spec/list/+1",
        "/spec/list/-1",
        "/spec/list/01",
        "/spec/list/1e0",
        "/d%61ta/password",
        "/spec/template/",
        "/status",
    ),
    *("/metadata/labels/pod-security.kubernetes.io~1enforce", "/stringData/password", "/spec/template/spec/volumes/-1"),
    *("/data/~0", "/~0data", "/data/password/x", "/spec/ephemeralContainers", "/spec/ephemeralContainers/-"),
]
PATCHED_VALUES: list[Any] = [
    *("v", "deployer", 0, 5, None, True, [], [("a", "b")], ["1.2.3.4"], [("name", "c"), ("image", "evil")]),
    *(
        trees.encoded(SECRET.format("one")),
        trees.encoded("guess"),
        [("serviceAccountName", "root")],
        [("password", None)],
    ),
]


SECRET_POINTERS = [
    *(
        "/data/password",
        "/data",
        "/data/password",
        "/type",
        "/metadata/labels/a",
        "/metadata/annotations/n",
        "",
        "/data/a~1b",
    ),
    *("/metadata/annotations", "/stringData", "/metadata/labels", "/data/new", "/metadata/name"),
]


def json_patch(rng: random.Random, resource: str) -> Any:
    steps = []
    near = resource == "secrets" and maybe(rng, 0.7)
    pointers = SECRET_POINTERS if near else POINTERS
    values = [trees.encoded(SECRET.format("one")), "v", None] if near else PATCHED_VALUES
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        kind = rng.choice(["add", "remove", "replace", "copy", "move", "test"])
        step: trees.Pairs = [("op", kind), ("path", rng.choice(pointers))]
        if kind in ("add", "replace", "test"):
            step.append(("value", rng.choice(values)))
        if kind in ("copy", "move") or maybe(rng, 0.03):
            step.append(("from", rng.choice(pointers)))
        if maybe(rng, 0.05):
            step = trees.mutated(rng, step)
        if maybe(rng, 0.03):
            step[0] = ("op", rng.choice(["Add", "ADD", "increment", "", None, 1, ["add"], " add"]))
        rng.shuffle(step)
        steps.append(step)
    return steps


def part(rng: random.Random, resource: str) -> trees.Pairs:
    """A part of an object, for patches."""
    pairs = [pair for pair in trees.whole(rng, resource) if maybe(rng, 0.5)]
    if maybe(rng, 0.2):
        directive = rng.choice(["$patch", "$retainKeys", "$setElementOrder/containers", "$deleteFromPrimitiveList/x"])
        pairs.append((directive, rng.choice(["replace", "delete", "merge", ["spec"]])))
    if maybe(rng, 0.1):
        where = rng.choice(["spec", "data", "metadata"])
        pairs = [pair for pair in pairs if pair[0] != where] + [
            (where, rng.choice([None, [("$patch", "replace")], []]))
        ]
    if resource == "secrets" and maybe(rng, 0.4):
        pairs = [("metadata", [("labels", [("a", "b")])])]
    return pairs


def patch(rng: random.Random) -> Case:
    resource = rng.choice([*trees.KINDS, "secrets", "secrets"])
    kind = rng.choice(list(PATCH_TYPES))
    tree = json_patch(rng, resource) if kind == "json" else part(rng, resource)
    if kind == "apply":
        tree = trees.whole(rng, resource)
    if kind != "json" and maybe(rng, 0.3):
        tree = trees.mutated(rng, tree)
    media: str | None = PATCH_TYPES[kind]
    if maybe(rng, 0.1):
        media = f"{media}{rng.choice(PATCH_PARAMETERS)}"
    elif maybe(rng, 0.04):
        media = rng.choice([media.upper(), "application/json", None, "", "application/yaml", *PATCH_TYPES.values()])
    yaml = kind == "apply"
    text = trees.as_yaml(rng, tree) if yaml and maybe(rng, 0.7) else trees.as_json(tree or trees.Raw("{}"))
    body = trees.in_bytes(rng, text, yaml) or b"{}"
    url = place(rng, resource, True).replace("/web-1", "/o") + query(rng, [*WRITES, "force"])
    return Case("PATCH", url, media, body, onto(resource))


def protobuf(rng: random.Random, encoded: Sequence[tuple[str, bytes]]) -> Case:
    """An object as client-go encodes it, seldom with bytes changed."""
    resource, body = rng.choice(encoded)
    raw = bytearray(body)
    for _ in range(rng.choice([0, 0, 1, 1, 2, 4])):
        at = rng.randrange(len(raw))
        match rng.randrange(4):
            case 0:
                raw[at] ^= 1 << rng.randrange(8)
            case 1:
                del raw[at]
            case 2:
                raw[at:at] = bytes(rng.choices(range(256), k=rng.randint(1, 3)))
            case _:
                raw += raw[at:]
    url = place(rng, resource, False) + query(rng, WRITES)
    return Case("POST", url, "application/vnd.kubernetes.protobuf", bytes(raw))


def case(rng: random.Random, encoded: Sequence[tuple[str, bytes]]) -> Case:
    chosen = rng.random()
    if chosen < 0.35:
        return target(rng)
    if chosen < 0.47:
        return delete(rng)
    if chosen < 0.50:
        return eviction(rng)
    if chosen < 0.72:
        return write(rng)
    if chosen < 0.76 and encoded:
        return protobuf(rng, encoded)
    return patch(rng)
