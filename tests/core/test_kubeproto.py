import base64
import json
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from addons.core import kubeproto
from addons.core.status import Refused

# What client-go 0.36 sends for the objects beside them (`encode` of tests/cluster).
FIXTURES = {
    "namespace": (
        "azhzAAoPCgJ2MRIJTmFtZXNwYWNlEhwKFAoEc2hvcBIAGgAiACoAMgA4AEIAEgAaAgoAGgAiAA==",
        {"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": "shop"}, "spec": {}, "status": {}},
    ),
    "labelled namespace": (
        "azhzAAoPCgJ2MRIJTmFtZXNwYWNlEk4KRgoEc2hvcBIAGgAiACoAMgA4AEIAWjAKInBvZC1zZWN1cml0eS5rdWJlcm5ldGVzLmlv"
        "L2VuZm9yY2USCnByaXZpbGVnZWQSABoCCgAaACIA",
        {
            "kind": "Namespace",
            "apiVersion": "v1",
            "metadata": {"name": "shop", "labels": {"pod-security.kubernetes.io/enforce": "privileged"}},
            "spec": {},
            "status": {},
        },
    ),
    "secret": (
        "azhzAAoMCgJ2MRIGU2VjcmV0EjEKEgoBcxIAGgF4IgAqADIAOABCABITCghwYXNzd29yZBIHaHVudGVyMhoGT3BhcXVlGgAiAA==",
        {
            "kind": "Secret",
            "apiVersion": "v1",
            "metadata": {"name": "s", "namespace": "x"},
            "data": {"password": "aHVudGVyMg=="},
            "type": "Opaque",
        },
    ),
    "token secret": (
        "azhzAAoMCgJ2MRIGU2VjcmV0EmgKQQoBdBIAGgAiACoAMgA4AEIAYi4KImt1YmVybmV0ZXMuaW8vc2VydmljZS1hY2NvdW50Lm5h"
        "bWUSCGRlcGxveWVyGiNrdWJlcm5ldGVzLmlvL3NlcnZpY2UtYWNjb3VudC10b2tlbhoAIgA=",
        {
            "kind": "Secret",
            "apiVersion": "v1",
            "metadata": {"name": "t", "annotations": {"kubernetes.io/service-account.name": "deployer"}},
            "type": "kubernetes.io/service-account-token",
        },
    ),
    "deployment": (
        "azhzAAoVCgdhcHBzL3YxEgpEZXBsb3ltZW50ErUCCh8KA3dlYhIAGgAiACoAMgA4AEIAWgoKA2FwcBIDd2ViEoMCCAISDAoKCgNh"
        "cHASA3dlYhroAQocCgASABoAIgAqADIAOABCAFoKCgNhcHASA3dlYhLHAQoMCgF2EgcyBQoDdGxzCgoKAWgSBQoDCgEvEoMBCgFj"
        "EgVuZ2lueCoAMgoKABAAGFAiACoAOhIKAUESABoLIgkKBAoCZGISAWtCDwoNCgNjcHUSBgoENTAwbVIhChUSEwoBLxIKCAEQABoE"
        "aHR0cBoAIgAQABgAIAAoADAAagByAIABAIgBAJABAJoBEAoAEgwKCgoIc2V0dGluZ3OiAQAaADIAQghkZXBsb3llckoAUgBYAWAA"
        "aACCAQCKAQCaAQCoAQDCAQAiAgoAKAA4ABoMCAAQABgAIAAoADgAGgAiAA==",
        {
            "kind": "Deployment",
            "apiVersion": "apps/v1",
            "metadata": {"name": "web", "labels": {"app": "web"}},
            "spec": {
                "replicas": 2,
                "selector": {"matchLabels": {"app": "web"}},
                "template": {
                    "metadata": {"labels": {"app": "web"}},
                    "spec": {
                        "volumes": [
                            {"name": "v", "secret": {"secretName": "tls"}},
                            {"name": "h", "hostPath": {"path": "/"}},
                        ],
                        "containers": [
                            {
                                "name": "c",
                                "image": "nginx",
                                "ports": [{"containerPort": 80}],
                                "env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "db", "key": "k"}}}],
                                "resources": {"limits": {"cpu": "500m"}},
                                "livenessProbe": {"httpGet": {"path": "/", "port": "http"}},
                                "envFrom": [{"configMapRef": {"name": "settings"}}],
                            }
                        ],
                        "serviceAccountName": "deployer",
                        "hostNetwork": True,
                        "automountServiceAccountToken": False,
                    },
                },
                "strategy": {},
            },
            "status": {},
        },
    ),
    "delete options": (
        "azhzAAoTCgJ2MRINRGVsZXRlT3B0aW9ucxITCAAiCkJhY2tncm91bmQqA0FsbBoAIgA=",
        {
            "kind": "DeleteOptions",
            "apiVersion": "v1",
            "gracePeriodSeconds": 0,
            "propagationPolicy": "Background",
            "dryRun": ["All"],
        },
    ),
    "eviction": (
        "azhzAAoVCglwb2xpY3kvdjESCEV2aWN0aW9uEhwKEwoCcDESABoBeCIAKgAyADgAQgASBSoDQWxsGgAiAA==",
        {
            "kind": "Eviction",
            "apiVersion": "policy/v1",
            "metadata": {"name": "p1", "namespace": "x"},
            "deleteOptions": {"dryRun": ["All"]},
        },
    ),
    "self review": (
        "azhzAAoyChdhdXRob3JpemF0aW9uLms4cy5pby92MRIXU2VsZlN1YmplY3RBY2Nlc3NSZXZpZXcSNgoQCgASABoAIgAqADIAOABC"
        "ABIYChYKAXgSA2dldBoAIgAqBHBvZHMyADoAGggIABIAGgAgABoAIgA=",
        {
            "kind": "SelfSubjectAccessReview",
            "apiVersion": "authorization.k8s.io/v1",
            "metadata": {},
            "spec": {"resourceAttributes": {"namespace": "x", "verb": "get", "resource": "pods"}},
            "status": {"allowed": False},
        },
    ),
    "lease": (
        "azhzAAofChZjb29yZGluYXRpb24uazhzLmlvL3YxEgVMZWFzZRIkChEKAWwSABoAIgAqADIAOABCABIPIgsI2YPisQYQgJTvOigDGgAiAA==",
        {
            "kind": "Lease",
            "apiVersion": "coordination.k8s.io/v1",
            "metadata": {"name": "l"},
            "spec": {"renewTime": "2024-05-06T07:08:09.123456Z", "leaseTransitions": 3},
        },
    ),
    "service": (
        "azhzAAoNCgJ2MRIHU2VydmljZRJZChkKAXMSABoAIgAqADIAOABCCAjZg+KxBhAAEjgKEQoAEgAYUCIHCAAQkD8aACgAChMKABIA"
        "GFEiCQgBEAAaA3dlYigAGgAiADoAQgBSAFoAYABoABoCCgAaACIA",
        {
            "kind": "Service",
            "apiVersion": "v1",
            "metadata": {"name": "s", "creationTimestamp": "2024-05-06T07:08:09Z"},
            "spec": {"ports": [{"port": 80, "targetPort": 8080}, {"port": 81, "targetPort": "web"}]},
            "status": {"loadBalancer": {}},
        },
    ),
    "csr": (
        "azhzAAozChZjZXJ0aWZpY2F0ZXMuazhzLmlvL3YxEhlDZXJ0aWZpY2F0ZVNpZ25pbmdSZXF1ZXN0EjIKEQoBYxIAGgAiACoAMgA4"
        "AEIAEhsKAXgSABoAMgsKAWsSBgoBdgoBdzoFYS5iL2MaABoAIgA=",
        {
            "kind": "CertificateSigningRequest",
            "apiVersion": "certificates.k8s.io/v1",
            "metadata": {"name": "c"},
            "spec": {"request": "eA==", "extra": {"k": ["v", "w"]}, "signerName": "a.b/c"},
            "status": {},
        },
    ),
    "revision": (
        "azhzAAodCgdhcHBzL3YxEhJDb250cm9sbGVyUmV2aXNpb24SOAoRCgFyEgAaACIAKgAyADgAQgASIQofeyJzcGVjIjogeyJhIjog"
        "WzEsIDIuNSwgbnVsbF19fRgEGgAiAA==",
        {
            "kind": "ControllerRevision",
            "apiVersion": "apps/v1",
            "metadata": {"name": "r"},
            "data": {"spec": {"a": [1, 2.5, None]}},
            "revision": 4,
        },
    ),
}


def body(name):
    return base64.b64decode(FIXTURES[name][0])


def varint(value):
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number, content):
    """A field of bytes."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def envelope(raw, api_version="v1", kind="ConfigMap", rest=b""):
    meta = field(1, api_version.encode()) + field(2, kind.encode())
    return kubeproto.MAGIC + field(1, meta) + field(2, raw) + rest


def refused(data):
    with pytest.raises(Refused) as e:
        kubeproto.decode(data)
    assert e.value.refusal.code == 415
    assert "JSON" in e.value.refusal.message
    return e.value.refusal.message


@pytest.mark.parametrize("name", FIXTURES)
def test_fixture(name):
    assert kubeproto.decode(body(name)) == FIXTURES[name][1]


def test_plain_map():
    assert kubeproto.decode(envelope(field(2, field(1, b"k") + field(2, b"v")))) == {
        "kind": "ConfigMap",
        "apiVersion": "v1",
        "data": {"k": "v"},
    }


@pytest.mark.parametrize(
    ("data", "why"),
    [
        pytest.param(b"", "begin", id="empty"),
        pytest.param(b"{}", "begin", id="json"),
        pytest.param(kubeproto.MAGIC, "envelope lacks", id="no envelope"),
        pytest.param(kubeproto.MAGIC + field(2, b""), "envelope lacks", id="no type"),
        pytest.param(envelope(b"", kind="Gizmo"), "kind", id="unknown kind"),
        pytest.param(envelope(b"", kind=""), "kind", id="no kind"),
        pytest.param(envelope(b"", kind="SecretList"), "kind", id="list"),
        pytest.param(envelope(b"", rest=field(3, b"gzip")), "encoding", id="encoded"),
        pytest.param(envelope(b"", rest=field(4, b"application/json")), "encoding", id="other content type"),
        pytest.param(envelope(b"", rest=field(9, b"")), "unknown", id="unknown field of the envelope"),
        pytest.param(envelope(b"", rest=field(2, b"")), "twice", id="two objects"),
        pytest.param(envelope(field(1, b"") + field(1, b"")), "twice", id="metadata twice: protobuf would merge them"),
        pytest.param(envelope(field(1, field(1, b"a") + field(1, b"b"))), "twice", id="name twice: the last would win"),
        pytest.param(envelope(field(2, field(1, b"k")) * 2), "key twice", id="map key twice"),
        pytest.param(envelope(field(99, b"")), "unknown", id="unknown field"),
        pytest.param(envelope(b"\x08\x01"), "another type", id="number for a message"),
        pytest.param(envelope(field(4, b"\x01")), "another type", id="bytes for a bool"),
        pytest.param(envelope(b"\x0b\x0c"), "another type", id="group"),
        pytest.param(envelope(b"\x0d\x00\x00\x00\x00"), "another type", id="fixed32"),
        pytest.param(envelope(b"\x0a\x05a"), "cut off", id="cut off"),
        pytest.param(envelope(b"\x0a"), "cut off", id="cut off before the length"),
        pytest.param(envelope(b"\x0a" + b"\xff" * 11), "too long", id="endless number"),
        pytest.param(envelope(field(1, field(1, b"\xff"))), "UTF-8", id="name is not utf-8"),
        pytest.param(
            envelope(field(1, field(8, varint(1 << 3) + varint(2**62)))), "out of range", id="a time far away"
        ),
        pytest.param(envelope(field(2, b"") * 200_001), "", id="too many fields"),
    ],
)
def test_refused(data, why):
    assert why in refused(data)


def test_too_many_fields():
    finalizers = field(14, b"") * 200_001
    assert "too many" in refused(envelope(field(1, finalizers)))


def test_nested_too_deeply():
    schema = b""
    for _ in range(150):
        schema = field(28, schema)  # JSONSchemaProps.not
    version = field(4, field(1, schema))
    crd = envelope(field(2, field(7, version)), "apiextensions.k8s.io/v1", "CustomResourceDefinition")
    assert "deeply" in refused(crd)


def test_a_refusal_quotes_nothing():
    assert "hunter2" not in refused(body("secret") + b"\x00hunter2")


@given(st.sampled_from(sorted(FIXTURES)), st.integers(0, 500), st.integers(0, 255), st.booleans())
def test_changed_bytes_are_read_or_refused(name, at, byte, cut):
    data = bytearray(body(name))
    at %= len(data)
    data = data[:at] if cut else data[:at] + bytes([byte]) + data[at + 1 :]
    try:
        found = kubeproto.decode(bytes(data))
    except Refused:
        return
    json.dumps(found)


@given(st.binary(max_size=100), st.sampled_from(["Pod", "Secret", "Service", "Event"]))
def test_any_bytes_are_read_or_refused(raw, kind):
    try:
        found = kubeproto.decode(envelope(raw, kind=kind))
    except Refused:
        return
    json.dumps(found)


@pytest.mark.e2e
def test_agrees_with_kubernetes():
    from tests.cluster import controlplane

    objects = [expected for _, expected in FIXTURES.values()]
    for encoded, expected in zip(controlplane.encode(objects), objects, strict=True):
        assert kubeproto.decode(base64.b64decode(encoded)) == expected


@pytest.mark.e2e
def test_the_schema_is_that_of_kubernetes():
    from tests.cluster import build

    go, _ = build.find_go(build.cache_folder())
    module = Path(build.__file__).with_name("protoschema")
    made = subprocess.run([go, "run", "."], cwd=module, check=True, capture_output=True, timeout=600).stdout
    committed = Path(kubeproto.__file__).with_name("kubernetes_schema.json").read_bytes()
    assert json.loads(made) == json.loads(committed)
