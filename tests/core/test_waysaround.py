import pytest

from addons.core import waysaround
from addons.core.doctor import Level
from addons.core.waysaround import Cluster

ACCOUNT = ("agents", "ci")
OWN = "system:serviceaccount:agents:ci"


def binding(role, *subjects, namespace=None):
    metadata = {"name": "b"} | ({"namespace": namespace} if namespace else {})
    return {"metadata": metadata, "roleRef": {"name": role}, "subjects": list(subjects)}


def user(name):
    return {"kind": "User", "name": name}


def group(name):
    return {"kind": "Group", "name": name}


THROUGH = binding("edit", user(f"tollgate:{OWN}"))


def test_agents_are_who_holds_rbac_under_the_gateways_names():
    bindings = [
        THROUGH,
        binding("view", group("tollgate:system:serviceaccounts:bots")),
        binding("view", user("oidc:ann"), user(OWN), group("tollgate:system:serviceaccounts")),
        {"metadata": {"name": "empty"}, "roleRef": {"name": "x"}},
    ]
    accounts = [("bots", "one"), ("bots", "two"), ("shop", "default")]
    cluster = Cluster(bindings, accounts)
    assert waysaround.agents(cluster) == [ACCOUNT, ("bots", "one"), ("bots", "two")]
    users, groups = waysaround.callers(cluster)
    assert users == [f"tollgate:{OWN}"] + [f"tollgate:system:serviceaccount:bots:{n}" for n in ("one", "two")]
    assert groups == [
        "tollgate:system:serviceaccounts",
        "tollgate:system:serviceaccounts:agents",
        "tollgate:system:serviceaccounts:bots",
    ]


@pytest.mark.parametrize(
    ("more", "roles"),
    [
        pytest.param(binding("edit", {"kind": "ServiceAccount", "name": "ci", "namespace": "agents"}), ["edit"],
                     id="by its kind"),
        pytest.param(binding("edit", {"kind": "ServiceAccount", "name": "ci"}, namespace="agents"), ["edit in agents"],
                     id="in its own namespace, unsaid"),
        pytest.param(binding("edit", user(OWN), namespace="shop"), ["edit in shop"], id="by its username"),
        pytest.param(binding("view", group("system:serviceaccounts:agents")), ["view"], id="by its namespace's group"),
        pytest.param(binding("view", group("system:serviceaccounts")), ["view"], id="with all ServiceAccounts"),
        pytest.param(binding("view", group("system:authenticated")), ["view"], id="with everybody"),
        pytest.param(binding("system:basic-user", group("system:authenticated")), [], id="what everybody has"),
        pytest.param(binding("system:discovery", user(OWN)), ["system:discovery"], id="the same, but for it alone"),
        pytest.param(binding("edit", {"kind": "ServiceAccount", "name": "ci", "namespace": "shop"}), [],
                     id="its name elsewhere"),
        pytest.param(binding("edit", user("ci"), group("agents")), [], id="similar names"),
    ],
)  # fmt: skip
def test_rbac_under_the_own_name(more, roles):
    assert waysaround.own_roles(ACCOUNT, [THROUGH, more]) == roles
    found = list(waysaround.findings(Cluster([THROUGH, more], [ACCOUNT], [], [])))
    assert [one.level for one in found] == [Level.PROBLEM if roles else Level.OK]
    if roles:
        assert f"ci in agents holds RBAC under its own name ({roles[0]})" in found[0].text


def pod(name="p", account="ci", namespace="agents", source=None, mounted=True, place="containers"):
    projected = {"serviceAccountToken": {"path": "token"} if source is None else source}
    mounts = [{"name": "token", "mountPath": "/t"}] if mounted else []
    spec = {"serviceAccountName": account, "volumes": [{"name": "token", "projected": {"sources": [projected]}}]}
    return {"metadata": {"name": name, "namespace": namespace}, "spec": {**spec, place: [{"volumeMounts": mounts}]}}


@pytest.mark.parametrize(
    ("one", "told"),
    [
        pytest.param(pod(), True, id="automounted"),
        pytest.param(pod(source={"audience": "tollgate", "path": "t"}), False, id="for the gateway"),
        pytest.param(pod(source={"audience": "vault", "path": "t"}), True, id="for another audience"),
        pytest.param(pod(mounted=False), False, id="a volume that nobody mounts"),
        pytest.param(pod(place="initContainers"), True, id="in an init container"),
        pytest.param(pod(account="other"), False, id="another ServiceAccount's"),
        pytest.param(pod(namespace="shop"), False, id="another namespace"),
        pytest.param({"metadata": {"name": "p", "namespace": "agents"}, "spec": {}}, False, id="the default account"),
    ],
)
def test_pods_that_mount_a_token(one, told):
    found = list(waysaround.findings(Cluster([THROUGH], [ACCOUNT], [one], [])))
    assert [f.level for f in found] == ([Level.WARNING, Level.OK] if told else [Level.OK])


def test_token_secrets():
    note = {"kubernetes.io/service-account.name": "ci"}
    secrets = [
        {"metadata": {"name": "old", "namespace": "agents", "annotations": note}},
        {"metadata": {"name": "elsewhere", "namespace": "shop", "annotations": note}},
        {"metadata": {"name": "plain", "namespace": "agents"}},
    ]
    warned, _ = waysaround.findings(Cluster([THROUGH], [ACCOUNT], [], secrets))
    assert "tokens without an end in Secrets: old" in warned.text


def test_a_token_of_one_that_has_rights_of_its_own_is_a_problem():
    own = binding("edit", user(OWN))
    found = list(waysaround.findings(Cluster([THROUGH, own], [ACCOUNT], [pod()], [])))
    assert [one.level for one in found] == [Level.PROBLEM, Level.PROBLEM]


@pytest.mark.parametrize(
    ("cluster", "words"),
    [
        pytest.param(Cluster(), ["could not be looked at"], id="nothing can be read"),
        pytest.param(Cluster([]), ["no ServiceAccount holds RBAC"], id="no agents"),
        pytest.param(Cluster([THROUGH], [ACCOUNT]), ["pods could not", "token Secrets could not", "none of 1 "],
                     id="bindings only"),
    ],
)  # fmt: skip
def test_what_could_not_be_seen_is_said(cluster, words):
    found = list(waysaround.findings(cluster))
    assert len(found) == len(words)
    for one, word in zip(found, words, strict=True):
        assert word in one.text
    assert found[0].level is Level.NOTE
