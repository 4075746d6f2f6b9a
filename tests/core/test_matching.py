import pytest
from hypothesis import given
from hypothesis import strategies as st

from addons.core.matching import Glob, Kind, Match, ResourcePattern, UsesMatch, creates
from addons.core.model import Impact, Operation, RequestInfo, Uses

GROUPS = {"deployments": "apps", "roles": "rbac.authorization.k8s.io", "widgets": "example.com"}


def operation(verb="get", resource="pods", namespace="shop", name="web", **more):
    """`resource` may be `pods/exec`; the group is that of the table above."""
    resource, _, subresource = resource.partition("/")
    info = RequestInfo(
        verb=verb,
        path="/x",
        is_resource_request=True,
        api_group=more.pop("group", GROUPS.get(resource, "")),
        api_version="v1",
        namespace=namespace,
        resource=resource,
        subresource=subresource,
        name=name,
    )
    impact = {"get": Impact.READ, "list": Impact.READ, "watch": Impact.READ, "delete": Impact.DELETE}
    more.setdefault("impacts", frozenset({impact.get(verb, Impact.WRITE)}))
    return Operation(info=info, method="X", name=name, **more)


def page(path, verb="get"):
    return Operation(
        info=RequestInfo(verb=verb, path=path), method=verb.upper(), impacts=frozenset({Impact.REVEAL, Impact.READ})
    )


def match(**fields):
    made = {
        key: Glob(value) if key in ("resource_names", "namespaces", "non_resource_urls", "commands") else value
        for key, value in fields.items()
    }
    if "resources" in made:
        made["resources"] = tuple(map(ResourcePattern, made["resources"]))
    if "verbs" in made:
        made["verbs"] = frozenset(made["verbs"])
    if "impacts" in made:
        made["impacts"] = frozenset(made["impacts"])
    return Match(**made)


def allows(rule, op):
    return rule.covers_kind(Kind(op)) and rule.covers(op)


def forbids(rule, op):
    return rule.reaches_kind(Kind(op)) and rule.reaches(op)


# The heart of it: what an allow rule and what a deny or hold rule makes of the same words.
@pytest.mark.parametrize(
    ("rule", "op", "allowed", "forbidden"),
    [
        # names
        pytest.param(match(resource_names=["web"]), operation(), True, True, id="name"),
        pytest.param(match(resource_names=["db"]), operation(), False, False, id="another name"),
        pytest.param(match(resource_names=["web"]), operation("list", name=""), False, True, id="list has no name"),
        pytest.param(
            match(resource_names=["*"]), operation("list", name=""), True, True, id="star covers an open name"
        ),
        pytest.param(match(resource_names=["**"]), operation("list", name=""), False, True, id="two stars do not"),
        pytest.param(match(resource_names=["web"]), operation("create", name=""), False, True, id="generateName"),
        pytest.param(
            match(resource_names=["web"]), operation("deletecollection"), False, True, id="a selector is no name"
        ),
        pytest.param(match(resource_names=["w?b"]), operation(), True, True, id="pattern"),
        pytest.param(match(resource_names=["WEB"]), operation(), False, False, id="case matters"),
        # namespaces
        pytest.param(match(namespaces=["shop"]), operation(), True, True, id="namespace"),
        pytest.param(match(namespaces=["sh*"]), operation(namespace="agents"), False, False, id="another namespace"),
        pytest.param(match(namespaces=["shop"]), operation("list", namespace=""), False, True, id="all namespaces"),
        pytest.param(
            match(namespaces=["*"]), operation("list", namespace=""), True, True, id="star covers all of them"
        ),
        pytest.param(
            match(namespaces=["shop"]), operation(resource="nodes", namespace=""), False, True, id="no namespace"
        ),
        pytest.param(
            match(namespaces=["shop"]),
            operation(resource="namespaces", name="shop"),
            False,
            True,
            id="Namespace object",
        ),
        pytest.param(
            match(namespaces=["*"]),
            operation(resource="namespaces", name="shop"),
            True,
            True,
            id="any Namespace object",
        ),
        pytest.param(
            match(namespaces=["shop"]),
            operation("create", "namespaces", namespace="", name="other"),
            False,
            False,
            id="another Namespace object",
        ),
        pytest.param(
            match(namespaces=["shop"]),
            operation("update", "namespaces/finalize", name="shop"),
            False,
            True,
            id="Namespace subresource",
        ),
        pytest.param(
            match(namespaces=["shop"]), operation("list", "namespaces", "", ""), False, True, id="all Namespace objects"
        ),
        # resources
        pytest.param(match(resources=["pods"]), operation(), True, True, id="resource"),
        pytest.param(match(resources=["pods"]), operation(resource="pods/log"), False, True, id="subresource"),
        pytest.param(match(resources=["pods/log"]), operation(resource="pods/log"), True, True, id="named subresource"),
        pytest.param(match(resources=["pods/log"]), operation(), False, False, id="subresource is not its resource"),
        pytest.param(match(resources=["pods/*"]), operation(resource="pods/log"), True, True, id="any subresource"),
        pytest.param(match(resources=["pods/*"]), operation(), False, False, id="any subresource is not the resource"),
        pytest.param(match(resources=["*"]), operation(resource="widgets/scale"), True, True, id="star, as in RBAC"),
        pytest.param(match(resources=["*/scale"]), operation(resource="deployments/scale"), True, True, id="any scale"),
        pytest.param(match(resources=["deployments.apps"]), operation(resource="deployments"), True, True, id="group"),
        pytest.param(match(resources=["*.apps"]), operation(resource="deployments"), True, True, id="all of a group"),
        pytest.param(match(resources=["*.apps"]), operation(), False, False, id="not of another group"),
        pytest.param(
            match(resources=["*.apps"]), operation(resource="deployments/scale"), False, True, id="scale of a group"
        ),
        pytest.param(match(resources=["deployments"]), operation(resource="deployments"), False, True, id="no group"),
        pytest.param(match(resources=["*.ex*"]), operation(resource="widgets"), True, True, id="group pattern"),
        pytest.param(
            match(resources=["events"]), operation(resource="events", group="events.k8s.io"), False, True, id="events"
        ),
        pytest.param(
            match(resources=["events.events.k8s.io"]), operation(resource="events"), False, True, id="events, other way"
        ),
        pytest.param(match(resources=["pods/binding"]), operation("create", "bindings"), False, True, id="bindings"),
        # verbs
        pytest.param(match(verbs=["get"]), operation(), True, True, id="verb"),
        pytest.param(match(verbs=["*"]), operation("deletecollection"), True, True, id="any verb"),
        pytest.param(match(verbs=["get"]), operation("list"), False, True, id="list gets"),
        pytest.param(match(verbs=["get"]), operation("watch"), False, True, id="watch gets"),
        pytest.param(match(verbs=["list"]), operation("watch"), False, True, id="watch lists"),
        pytest.param(match(verbs=["watch"]), operation("list"), False, False, id="list is no watch"),
        pytest.param(
            match(verbs=["delete"]), operation("deletecollection"), False, True, id="deletecollection deletes"
        ),
        pytest.param(match(verbs=["deletecollection"]), operation("delete"), False, False, id="delete is of one"),
        pytest.param(match(verbs=["delete"]), operation("create", "pods/eviction"), False, True, id="eviction deletes"),
        pytest.param(
            match(verbs=["delete"], resources=["pods"]),
            operation("create", "pods/eviction"),
            False,
            True,
            id="delete pods covers eviction",
        ),
        pytest.param(match(verbs=["update"]), operation("patch", "deployments/scale"), False, True, id="patch updates"),
        pytest.param(match(verbs=["patch"]), operation("update", "pods/status"), False, True, id="update patches"),
        pytest.param(
            match(verbs=["update"]),
            operation("patch", "pods/ephemeralcontainers"),
            False,
            True,
            id="ephemeral containers",
        ),
        # exec and its like
        pytest.param(match(verbs=["get"]), operation(resource="pods/exec"), False, True, id="exec is not reading"),
        pytest.param(match(verbs=["create"]), operation(resource="pods/exec"), True, True, id="exec over WebSocket"),
        pytest.param(match(verbs=["create"]), operation("create", "pods/exec"), True, True, id="exec over SPDY"),
        pytest.param(
            match(verbs=["get"]), operation("create", "pods/exec"), False, True, id="both are forbidden by either"
        ),
        pytest.param(match(verbs=["get"]), operation(resource="pods/proxy"), False, True, id="proxy is not reading"),
        pytest.param(
            match(verbs=["delete"]), operation(resource="nodes/proxy"), False, True, id="proxy may do anything"
        ),
        pytest.param(match(verbs=["get", "create"]), operation(resource="pods/proxy"), True, True, id="proxy, allowed"),
        pytest.param(
            match(verbs=["get"], resources=["*"]),
            operation(resource="widgets/console", impacts=frozenset({Impact.READ, Impact.EXECUTE})),
            False,
            True,
            id="unknown subresource is not reading",
        ),
        # impacts
        pytest.param(match(impacts=[Impact.READ]), operation(), True, True, id="impact"),
        pytest.param(
            match(impacts=[Impact.READ]),
            operation(impacts=frozenset({Impact.READ, Impact.REVEAL})),
            False,
            True,
            id="all impacts must be allowed",
        ),
        pytest.param(
            match(impacts=[Impact.DELETE]),
            operation("delete", "secrets", impacts=frozenset({Impact.DELETE, Impact.REVEAL})),
            False,
            True,
            id="one of two impacts",
        ),
        pytest.param(
            match(impacts=[Impact.REVEAL]),
            operation(impacts=frozenset({Impact.READ, Impact.REVEAL})),
            True,
            True,
            id="reveal includes read",
        ),
        pytest.param(
            match(impacts=[Impact.DELETE]),
            operation("deletecollection", impacts=frozenset({Impact.MASS_DELETE})),
            False,
            True,
            id="a mass delete deletes",
        ),
        pytest.param(match(impacts=[Impact.WRITE]), operation("delete"), False, True, id="a delete writes"),
        pytest.param(
            match(impacts=[Impact.WRITE]),
            operation(resource="pods/exec", impacts=frozenset({Impact.READ, Impact.EXECUTE})),
            False,
            True,
            id="a shell writes",
        ),
        pytest.param(match(impacts=[Impact.META]), operation(), False, False, id="another impact"),
        # what the gateway serves itself is in no namespace, and about none
        pytest.param(
            match(namespaces=["prod"]),
            operation("create", "approvals", "", group="tollgate.dev"),
            False,
            False,
            id="own",
        ),
        pytest.param(
            match(namespaces=["*"]),
            operation("create", "approvals", "", group="tollgate.dev"),
            True,
            True,
            id="own, all",
        ),
        pytest.param(match(namespaces=["prod"]), operation("create", "nodes", ""), False, True, id="cluster-wide"),
        # non-resource requests
        pytest.param(match(non_resource_urls=["/metrics*"]), page("/metrics/x"), True, True, id="page"),
        pytest.param(match(non_resource_urls=["/metrics"]), page("/metrics/x"), False, False, id="another page"),
        pytest.param(match(non_resource_urls=["*"]), operation(), False, False, id="a resource is no page"),
        pytest.param(match(resources=["*"]), page("/metrics"), False, False, id="a page is no resource"),
        pytest.param(match(namespaces=["*"]), page("/metrics"), False, False, id="a page has no namespace"),
        pytest.param(match(verbs=["get"]), page("/metrics", "head"), False, True, id="head is a get"),
        # claims
        pytest.param(
            match(commands=["kubectl *"]), operation(claimed_command="kubectl apply"), False, True, id="claim"
        ),
        pytest.param(match(commands=["kubectl *"]), operation(), False, False, id="no claim"),
    ],
)
def test_asymmetry(rule, op, allowed, forbidden):
    assert (allows(rule, op), forbids(rule, op)) == (allowed, forbidden)


@pytest.mark.parametrize(
    ("verb", "resource", "media_type", "made"),
    [
        pytest.param("patch", "pods", "application/apply-patch+yaml", True, id="server-side apply"),
        pytest.param("patch", "pods", "application/apply-patch+cbor", True, id="apply in CBOR"),
        pytest.param("patch", "pods", "", True, id="who knows"),
        pytest.param("patch", "pods", "application/merge-patch+json", False, id="merge patch"),
        pytest.param("patch", "pods/status", "application/apply-patch+yaml", False, id="subresources exist already"),
        pytest.param("update", "services", "application/json", True, id="PUT of a Service"),
        pytest.param("update", "pods", "application/json", False, id="PUT of a pod"),
        pytest.param("update", "widgets", "application/json", True, id="PUT of a custom resource"),
        pytest.param("create", "pods", "application/json", False, id="POST says so itself"),
    ],
)
def test_creates(verb, resource, media_type, made):
    op = operation(verb, resource, media_type=media_type)
    assert creates(op) is made
    if verb != "create":
        # To allow both must be named; a rule against creating is not bypassed.
        assert allows(match(verbs=[verb]), op) is not made
        assert allows(match(verbs=[verb, "create"]), op)
        assert forbids(match(verbs=["create"]), op) is made


def uses(**lists):
    return UsesMatch(**{key: Glob(value) for key, value in lists.items()})


A, B = Uses(service_accounts=frozenset({"a"}), secrets=frozenset({"s"})), Uses(service_accounts=frozenset({"a", "b"}))


@pytest.mark.parametrize(
    ("rule", "used", "allowed", "forbidden"),
    [
        pytest.param(uses(service_accounts=["a"]), A, True, True, id="in the list"),
        pytest.param(uses(service_accounts=["a"]), B, False, True, id="one of two"),
        pytest.param(uses(service_accounts=["c"]), B, False, False, id="none"),
        pytest.param(uses(service_accounts=["*"]), B, True, True, id="any"),
        pytest.param(uses(secrets=["*"]), B, True, False, id="uses none"),
        pytest.param(uses(service_accounts=["a"], secrets=["x"]), A, False, False, id="each given list"),
        pytest.param(uses(host=["*"]), Uses(host=frozenset({"hostPath"})), True, True, id="host"),
        pytest.param(uses(config_maps=["c"]), Uses(config_maps=frozenset({"d"})), False, False, id="config maps"),
        pytest.param(uses(service_accounts=["*"]), Uses(unknown=True), False, True, id="cannot be read"),
        pytest.param(uses(service_accounts=["*"]), None, False, False, id="no pod template"),
    ],
)
def test_uses(rule, used, allowed, forbidden):
    assert (rule.covers(used), rule.reaches(used)) == (allowed, forbidden)


@pytest.mark.parametrize(
    ("rule", "used", "forbidden"),
    [
        pytest.param(uses(service_accounts_not_in=["a"]), A, False, id="listed"),
        pytest.param(uses(service_accounts_not_in=["a"]), B, True, id="one is not"),
        pytest.param(uses(secrets_not_in=["a*"]), A, True, id="secret"),
        pytest.param(uses(config_maps_not_in=["a"]), A, False, id="uses none"),
        pytest.param(uses(host_not_in=["hostPort"]), Uses(host=frozenset({"hostPort", "hostPath"})), True, id="host"),
        pytest.param(uses(service_accounts_not_in=["*"]), Uses(unknown=True), True, id="cannot be read"),
        pytest.param(uses(service_accounts_not_in=["a"]), None, False, id="no pod template"),
    ],
)
def test_uses_not_in(rule, used, forbidden):
    assert rule.reaches(used) is forbidden


@pytest.mark.parametrize(
    ("words", "text", "found"),
    [
        (["a", "b"], "b", True),
        (["a*"], "a", True),
        (["a*"], "ba", False),
        (["*a", "b?"], "bc", True),
        (["?"], "", False),
        (["[ab]"], "a", False),
        (["[*]"], "[x]", True),
        (["a.c"], "abc", False),
        (["a"], "a\n", False),
        (["a*"], "a\nb", True),
    ],
)
def test_glob(words, text, found):
    assert Glob(words).matches(text) is found


@given(st.text(alphabet="ab", max_size=400))
def test_glob_takes_linear_time(text):
    assert Glob(["*a*b*a*b*a*b*c"]).matches(text * 5) is False
