"""
Random bodies: trees of values that Kubernetes' objects are made of, written as JSON or YAML in all
the ways in which two readers could differ.

An object is a list of pairs, so that a key can be there twice; `Raw` is a text that is written as it is.
"""

import base64
import json
import random
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Raw:
    """Written as it is, in JSON and in YAML."""

    text: str


Pairs = list[tuple[Any, Any]]

ODD_NUMBERS = [
    *("9007199254740993", "9223372036854775807", "9223372036854775808", "-9223372036854775809", "1e400", "-0", "1.0"),
    *(
        "1e2",
        "00",
        "01",
        "+1",
        ".5",
        "1.",
        "0x10",
        "NaN",
        "Infinity",
        "1" * 40,
        "1E+2",
        "2.5e-400",
        "123456789012345678",
    ),
]
ODD_STRINGS = [
    *('"\\u0061"', '"\\ud800"', '"\\ud83d\\ude00"', '"\\u0000"', '"a\\/b"', '"\x7f"', '"\u2028"', '"\ufeff"', "'a'"),
    *('"tab\there"', '"\\x41"', '"', '"\\uD83D"', '"d\\u00e9"'),
]
WORDS = [
    *("yes", "no", "on", "off", "y", "n", "True", "NULL", "~", "null", "017", "0o17", "0x1F", "1_000", "1:30", "0b11"),
    *(
        ".inf",
        "-.Inf",
        ".NaN",
        "1e3",
        "1.",
        ".5",
        "+1",
        "2001-01-01",
        "2001-12-14t21:59:43.10-05:00",
        "=",
        "<<",
        "a: b",
    ),
    *(
        "@x",
        "`x",
        "%x",
        "!!str 5",
        "!x y",
        "&a x",
        "*a",
        "? a",
        "- a",
        "a #b",
        "a: b: c",
        "-",
        "--- a",
        "|",
        ">",
        "[a",
        "{a",
    ),
    *(
        "0.1",
        "00",
        "1e400",
        "123456789012345678901",
        "0",
        "-0",
        "a\u0085b",
        "a\u2028b",
        "'it''s'",
        '"q\\u0041"',
        '"\\x41"',
    ),
]


def maybe(rng: random.Random, chance: float) -> bool:
    return rng.random() < chance


# Kubernetes' objects


def metadata(rng: random.Random) -> Pairs:
    pairs: Pairs = []
    if maybe(rng, 0.8):
        pairs.append(("name", rng.choice(["o", "web-1", "O", "", "bootstrap-token-abcdef", "tollgate-x", None, 5])))
    if maybe(rng, 0.2):
        pairs.append(("generateName", rng.choice(["o-", "tollgate-", ""])))
    if maybe(rng, 0.4):
        pairs.append(("namespace", rng.choice(["x", "x", "y", "", None])))
    if maybe(rng, 0.4):
        pairs.append(("labels", [(rng.choice(["a", "b", "app"]), rng.choice(["1", "x", "", None, 1]))]))
    if maybe(rng, 0.3):
        key = rng.choice(["a", "kubernetes.io/service-account.name", "deprecated.deployment.rollback.to"])
        pairs.append(("annotations", [(key, rng.choice(["v", "deployer"]))]))
    if maybe(rng, 0.1):
        pairs.append(("finalizers", [rng.choice(["a/b", ""])]))
    if maybe(rng, 0.1):
        owner = [("apiVersion", "v1"), ("kind", "Pod"), ("name", "p"), ("uid", "u")]
        pairs.append(("ownerReferences", [owner]))
    return pairs or [("name", "o")]


def pod_spec(rng: random.Random) -> Pairs:
    container: Pairs = [("name", "c"), ("image", rng.choice(["nginx", "evil"]))]
    if maybe(rng, 0.2):
        source = rng.choice(["secretKeyRef", "configMapKeyRef"])
        container.append(("env", [[("name", "A"), ("valueFrom", [(source, [("name", "db"), ("key", "k")])])]]))
    if maybe(rng, 0.2):
        container.append(("envFrom", [[("secretRef", [("name", rng.choice(["db", "other"]))])]]))
    if maybe(rng, 0.2):
        container.append(("securityContext", [("privileged", rng.choice([True, False, None]))]))
    pairs: Pairs = [("containers", [container])]
    for key, values in (
        ("serviceAccountName", ["deployer", "default", "", None]),
        ("serviceAccount", ["deployer", "default", ""]),
        ("hostPID", [True, False]),
        ("hostNetwork", [True, False, None]),
        ("automountServiceAccountToken", [True, False, None]),
        ("nodeName", ["n1", ""]),
        ("priorityClassName", ["system-node-critical", "low"]),
        ("terminationGracePeriodSeconds", [0, 30, 2**62]),
    ):
        if maybe(rng, 0.2):
            pairs.append((key, rng.choice(values)))
    if maybe(rng, 0.3):
        kinds: list[Pairs] = [
            [("secret", [("secretName", "db")])],
            [("hostPath", [("path", "/")])],
            [("projected", [("sources", [[("secret", [("name", "db")])]])])],
            [("configMap", [("name", "c")])],
            [("emptyDir", Raw("{}"))],
        ]
        pairs.append(("volumes", [[("name", "v"), *rng.choice(kinds)]]))
    rng.shuffle(pairs)
    return pairs


def template(rng: random.Random) -> Pairs:
    return [("metadata", [("labels", [("a", "b")])]), ("spec", pod_spec(rng))]


KINDS = {
    "pods": ("v1", "Pod"),
    "secrets": ("v1", "Secret"),
    "configmaps": ("v1", "ConfigMap"),
    "namespaces": ("v1", "Namespace"),
    "services": ("v1", "Service"),
    "deployments": ("apps/v1", "Deployment"),
    "cronjobs": ("batch/v1", "CronJob"),
    "gizmos": ("example.com/v1", "Gizmo"),
}


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def content(rng: random.Random, resource: str) -> Pairs:
    """What an object of this resource has beside its metadata."""
    match resource:
        case "pods":
            return [("spec", pod_spec(rng))]
        case "deployments":
            spec: Pairs = [("selector", [("matchLabels", [("a", "b")])]), ("template", template(rng))]
            if maybe(rng, 0.5):
                spec.append(("replicas", rng.choice([0, 1, 3, None])))
            return [("spec", spec)]
        case "cronjobs":
            job = [("spec", [("template", template(rng))])]
            return [("spec", [("schedule", "* * * * *"), ("jobTemplate", job)])]
        case "secrets":
            kinds = ["Opaque", "kubernetes.io/service-account-token", "bootstrap.kubernetes.io/token", "", None]
            return [("data", [("password", encoded("guess"))]), ("type", rng.choice(kinds))]
        case "services":
            more: Pairs = [("externalIPs", rng.choice([["1.2.3.4"], [], None]))] if maybe(rng, 0.4) else []
            return [("spec", [("type", rng.choice(["ClusterIP", "LoadBalancer"])), *more])]
        case "namespaces":
            return [("spec", [("finalizers", ["kubernetes"])])]
        case "gizmos":
            return [("spec", [("Size", number(rng)), ("size", number(rng)), ("list", [1, "a", None, [], [[]]])])]
    return [("data", [("k", rng.choice(["v", "true", "017", ""]))])]


def number(rng: random.Random) -> Any:
    return rng.choice([0, 1, -1, 2**53, 2**53 + 1, 2**63 - 1, -(2**63), 1.5, 1e21, 1e300, 0.1])


def whole(rng: random.Random, resource: str) -> Pairs:
    version, kind = KINDS[resource]
    pairs: Pairs = []
    if maybe(rng, 0.9) or resource == "gizmos":
        pairs += [("apiVersion", version), ("kind", kind)]
    pairs.append(("metadata", metadata(rng)))
    pairs += content(rng, resource)
    if maybe(rng, 0.05):
        pairs.append((rng.choice(["status", "extra", "Spec", "Metadata"]), [("phase", "x")]))
    if maybe(rng, 0.2):
        rng.shuffle(pairs)
    return pairs


def delete_options(rng: random.Random) -> Pairs:
    pairs: Pairs = []
    if maybe(rng, 0.3):
        pairs.append(("kind", rng.choice(["DeleteOptions", "DeleteOptions", "Pod", "deleteOptions", ""])))
        pairs.append(("apiVersion", rng.choice(["v1", "meta.k8s.io/v1", "apps/v1", "v2", ""])))
    for key, values in (
        ("dryRun", [["All"], ["All"], [], ["All", "All"], ["all"], "All", None, [None], [["All"]], True]),
        ("propagationPolicy", ["Orphan", "Background", "Foreground", "orphan", "", None]),
        ("orphanDependents", [True, False, None, "true", 1]),
        ("gracePeriodSeconds", [0, 1, 30, -1, None, "0", 1.0, 2**63 - 1]),
        ("preconditions", [[("uid", "u")], [("uid", None)], [], None, [("UID", "u")], [("resourceVersion", "5")]]),
        ("deleteOptions", [[("dryRun", ["All"])]]),
    ):
        if maybe(rng, 0.4):
            pairs.append((key, rng.choice(values)))
    return pairs


def mutated(rng: random.Random, pairs: Pairs) -> Pairs:
    """One thing changed somewhere: a key doubled, in other letters, or with another value."""
    place = pairs
    while place and maybe(rng, 0.6):
        inner = [v for _, v in place if is_object(v)]
        inner += [item for _, v in place if isinstance(v, list) for item in v if is_object(item)]
        if not inner:
            break
        place = rng.choice(inner)
    if not place:
        place.append((rng.choice(["a", "", "Kind", "kind", "dryRun"]), rng.choice([1, "x", None, []])))
        return pairs
    at = rng.randrange(len(place))
    key, value = place[at]
    spelled = str(key)
    match rng.randrange(8):
        case 0:
            place.append((key, rng.choice(["other", None, [], ["All"], value])))
        case 1:
            place.insert(at, (key, rng.choice(["other", None, [], ["All"], value])))
        case 2:
            place[at] = (rng.choice([spelled.upper(), spelled.title(), spelled.lower(), spelled.swapcase()]), value)
        case 3:
            place.append((rng.choice([spelled.upper(), spelled.title(), spelled.swapcase()]), "other"))
        case 4:
            place[at] = (key, Raw(rng.choice(ODD_NUMBERS + ODD_STRINGS)))
        case 5:
            place[at] = (key, deep(rng.choice([2, 50, 99, 101, 2000]), rng.choice(["[]", "{}"])))
        case 6:
            place[at] = (Raw(rng.choice(['"\\u006bind"', '"k\\u0131nd"', '"\u212aind"', '"na\\u006de"'])), value)
        case _:
            place[at] = (key, rng.choice([None, True, 1, "", [], [[]], 1.5, "other"]))
    return pairs


def deep(levels: int, kind: str) -> Raw:
    if kind == "[]":
        return Raw("[" * levels + "]" * levels)
    return Raw('{"a":' * levels + "1" + "}" * levels)


def is_object(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, tuple) for one in value)


# Writing


def as_json(value: Any) -> str:
    if isinstance(value, Raw):
        return value.text
    if is_object(value):
        return "{" + ",".join(f"{as_json(k)}:{as_json(v)}" for k, v in value) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(as_json, value)) + "]"
    return json.dumps(value)


def as_yaml(rng: random.Random, value: Any, indent: int = 0) -> str:
    """Block style mostly; strings in all of YAML's styles. Ends with a line break."""
    if is_object(value) and maybe(rng, 0.9):
        lines = [f"{' ' * indent}{key(rng, k)}:{below(rng, v, indent)}" for k, v in value]
        return "".join(lines)
    if isinstance(value, list) and value and not is_object(value) and maybe(rng, 0.8):
        return "".join(f"{' ' * indent}-{below(rng, item, indent)}" for item in value)
    return f"{' ' * indent}{as_json(value)}\n"


def key(rng: random.Random, name: Any) -> str:
    if isinstance(name, Raw):
        return name.text
    return rng.choice([str(name), str(name), str(name), json.dumps(name), f"'{name}'"])


def below(rng: random.Random, value: Any, indent: int) -> str:
    anchor = " " + rng.choice(["&a", "!!map", "!!str", "!x"]) if maybe(rng, 0.01) else ""
    if isinstance(value, list) and value:
        return f"{anchor}\n{as_yaml(rng, value, indent + 2)}"
    if maybe(rng, 0.03):
        return f" {rng.choice(WORDS)}\n"
    if isinstance(value, str):
        return f"{anchor} {scalar(rng, value, indent)}\n"
    return f"{anchor} {as_json(value)}\n"


def scalar(rng: random.Random, text: str, indent: int) -> str:
    pad = " " * (indent + 2)
    if "\n" in text or not text:
        return json.dumps(text)
    styles = [text, json.dumps(text), f"'{text}'", f"|-\n{pad}{text}", f">-\n{pad}{text}", f"{text} # more"]
    return rng.choice(styles) if text[0].isalpha() else json.dumps(text)


def in_bytes(rng: random.Random, text: str, yaml: bool) -> bytes:
    """The text in an encoding, seldom another than UTF-8, seldom whole."""
    if maybe(rng, 0.8):
        return text.encode("utf-8", "surrogatepass")
    match rng.randrange(12):
        case 0:
            return b"\xef\xbb\xbf" + text.encode()
        case 1:
            return text.encode("utf-16")
        case 2:
            return text.encode(rng.choice(["utf-16-le", "utf-16-be", "utf-32"]))
        case 3:
            return text.encode() + rng.choice([b"{}", b" x", b"\0", b"\n---\nkind: Other\n", b"\n...\n", b",", b"#"])
        case 4:
            before = [
                b"---\n",
                b"%YAML 1.1\n---\n",
                b"# c\n",
                b"--- !!map\n",
                b"\n\n",
                b"\x0c",
                b"\xc2\xa0",
                b"{}\n---\n",
            ]
            return rng.choice(before) + text.encode()
        case 5:
            raw = text.encode()
            at = rng.randrange(len(raw) + 1)
            return raw[:at] + rng.choice([b"\xff", b"\0", b"\xc0\xaf", b"\xed\xa0\x80", b"\t", b"\r"]) + raw[at:]
        case 6:
            return text.encode()[: rng.randrange(len(text) + 1)]
        case 7:
            return text.replace(":", rng.choice([" :", "\t:", ":\n"]), 1).encode()
        case 8 if yaml:
            return text.replace("metadata:", "base: &b {name: evil}\nmetadata:\n  <<: *b", 1).encode()
        case 9:
            return text.replace("\n", "\r\n" if yaml else " ").encode()
        case 10:
            raw = bytearray(text.encode())
            if raw:
                raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
            return bytes(raw)
    return (rng.choice([" ", "\n", "\t", "\r\n"]) + text + rng.choice(["\n", " ", "\t\n"])).encode()
