"""AuthenticationConfiguration: what is accepted, what each mistake is told, and who may share a cluster."""

import pytest
import yaml

from addons.core import authconfig
from addons.core.authconfig import AuthConfigError, constant_prefix, load

HEAD = "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\n"


def entry(url="https://a.example", **changes):
    result = {
        "issuer": {"url": url, "audiences": ["tollgate"]},
        "claimMappings": {"username": {"claim": "sub", "prefix": "a:"}},
    }
    result.update(changes)
    return result


def text(*entries, **top):
    return yaml.safe_dump(
        {"apiVersion": authconfig.API_VERSIONS[0], "kind": authconfig.KIND, "jwt": list(entries), **top}
    )


def mistakes(document):
    with pytest.raises(AuthConfigError) as e:
        load(document)
    return str(e.value)


def issuer(**fields):
    return entry(issuer={"url": "https://a.example", "audiences": ["tollgate"], **fields})


def mapped(**mappings):
    return entry(claimMappings={"username": {"claim": "sub", "prefix": "a:"}, **mappings})


@pytest.mark.parametrize("version", authconfig.API_VERSIONS)
def test_a_whole_file(version):
    config = load(f"""
apiVersion: {version}
kind: AuthenticationConfiguration
anonymous: {{enabled: false}}
jwt:
- issuer:
    url: https://a.example/realm
    discoveryURL: https://internal.example/.well-known/openid-configuration
    audiences: [tollgate, other]
    audienceMatchPolicy: MatchAny
  claimMappings:
    username: {{expression: "'a:' + claims.email"}}
    groups: {{expression: "claims.roles.split(',')"}}
    uid: {{claim: oid}}
    extra:
    - {{key: example.com/team, valueExpression: claims.team}}
  claimValidationRules:
  - {{claim: hd, requiredValue: example.com}}
  - {{expression: claims.email_verified == true, message: the address is not verified}}
  userValidationRules:
  - {{expression: "!user.username.startsWith('a:root')", message: no root}}
""")
    found = config.by_url["https://a.example/realm"]
    assert found.audiences == {"tollgate", "other"}
    assert found.discovery == "https://internal.example/.well-known/openid-configuration"
    assert found.constant_prefix == "a:"
    assert [key for key, _ in found.extra] == ["example.com/team"]
    assert [rule.message for rule in found.claim_rules] == ["", "the address is not verified"]
    assert found.user_rules[0].message == "no root"


def test_the_default_is_the_clusters_own_issuer():
    own = authconfig.cluster_default("https://kubernetes.default.svc")
    assert (own.cluster, own.audiences, own.username.prefix) == (True, {"tollgate", "tollgate-approver"}, "tollgate:")
    assert own.discovery == "https://kubernetes.default.svc/.well-known/openid-configuration"


def test_issuers_without_approvers():
    both = {"url": "https://b.example", "audiences": ["tollgate", "tollgate-approver"]}
    config = load(
        text(
            issuer(url="https://a.example"),
            entry(
                issuer={**both, "audienceMatchPolicy": "MatchAny"},
                claimMappings={"username": {"claim": "sub", "prefix": "b:"}},
            ),
        )
    )
    assert authconfig.without_approvers(config) == ("https://a.example",)


def test_an_empty_configuration_knows_no_issuer():
    assert not authconfig.AuthConfig().by_url


EXPRESSION = {"expression": "'a:' + claims.sub"}


@pytest.mark.parametrize(
    ("document", "says"),
    [
        pytest.param("", "the file is empty", id="empty"),
        pytest.param("a: [", "not YAML", id="not YAML"),
        pytest.param("--- {}\n--- {}\n", "not YAML", id="two documents"),
        pytest.param("[]", "must hold a mapping", id="a list"),
        pytest.param(HEAD.replace("/v1", "/v1alpha1") + "jwt: []", "apiVersion: must be", id="version"),
        pytest.param(HEAD.replace("Authentication", "Authorization"), "kind: must be", id="kind"),
        pytest.param(HEAD + "jwt: []", "jwt: at least one issuer", id="no issuers"),
        pytest.param(HEAD + "jwt: 1", "jwt: must be a list", id="jwt no list"),
        pytest.param(HEAD + "jwt: [{}]\njwt: []", "jwt: given twice, again on line 4", id="duplicate key"),
        pytest.param(
            HEAD + "jwt: [{issuer: {url: a, url: b}}]", "jwt[0].issuer.url: given twice", id="duplicate nested key"
        ),
        pytest.param(text(entry(), anonymous={"enabled": True}), "anonymous.enabled: must be false", id="anonymous"),
        pytest.param(text(*[entry()] * 65), "more than 64", id="too many issuers"),
        pytest.param(
            text(issuer(audience=["x"])), "issuer.audience: unknown field; did you mean audiences?", id="typo"
        ),
        pytest.param(text(entry(frobnicate=1)), "jwt[0].frobnicate: unknown field; known here: issuer", id="unknown"),
        pytest.param(text(issuer(url="")), "jwt[0].issuer.url: is required", id="no url"),
        pytest.param(text(issuer(url=5)), "jwt[0].issuer.url: must be a string, not a number", id="url a number"),
        pytest.param(text(issuer(url="http://a")), "url: must begin with https://", id="http"),
        pytest.param(text(issuer(url="https://")), "url: must name a host", id="no host"),
        pytest.param(text(issuer(url="https://u@a")), "must not contain a username", id="userinfo"),
        pytest.param(text(issuer(url="https://a?x=1")), "must not contain a query", id="query"),
        pytest.param(text(issuer(url="https://a#x")), "must not contain a fragment", id="fragment"),
        pytest.param(text(issuer(url="https://a b")), "printable ASCII", id="space"),
        pytest.param(text(issuer(url="https://kubernetes.default.svc.cluster.local")), "the cluster's own", id="own"),
        pytest.param(text(issuer(discoveryURL="https://a.example/")), "discoveryURL: must differ", id="same discovery"),
        pytest.param(text(issuer(discoveryURL="http://b")), "discoveryURL: must begin with https", id="discovery http"),
        pytest.param(text(issuer(certificateAuthority="x")), "certificateAuthority: must be cert", id="CA"),
        pytest.param(text(issuer(audiences=[])), "audiences: at least one", id="no audience"),
        pytest.param(text(issuer(audiences=[""])), "audiences[0]: must be a string that", id="empty audience"),
        pytest.param(text(issuer(audiences=["a", "a"])), "audiences[1]: is given twice", id="audience twice"),
        pytest.param(text(issuer(audiences=["a", "b"])), "audienceMatchPolicy: must be MatchAny", id="two audiences"),
        pytest.param(text(issuer(audienceMatchPolicy="All")), "must be MatchAny or left out", id="match policy"),
        pytest.param(text(issuer(egressSelectorType="cluster")), "egressSelectorType: is not supported", id="egress"),
        pytest.param(text(entry(claimMappings={})), "username: claim or expression is required", id="no username"),
        pytest.param(text(entry(claimMappings={"username": {"claim": "sub"}})), "prefix: is required", id="no prefix"),
        pytest.param(
            text(entry(claimMappings={"username": {"claim": "sub", "prefix": "", **EXPRESSION}})),
            "username: claim and expression can't both be set",
            id="both",
        ),
        pytest.param(
            text(entry(claimMappings={"username": {"prefix": "a", **EXPRESSION}})),
            "prefix: may not be set with expression",
            id="prefix with expression",
        ),
        pytest.param(
            text(entry(claimMappings={"username": {"expression": "1"}})), "gives a int, not a string", id="type"
        ),
        pytest.param(
            text(entry(claimMappings={"username": {"expression": "clams.sub"}})),
            "username.expression: line 1, column 6: undeclared reference to 'clams.sub'\n | clams.sub\n | .....^",
            id="caret",
        ),
        pytest.param(
            text(entry(claimMappings={"username": {"expression": "user.username"}})),
            "reference to 'user",
            id="user here",
        ),
        pytest.param(
            text(entry(claimMappings={"username": {"expression": "'a' + claims.s.find('x')"}})),
            "find is of Kubernetes' CEL; Tollgate does not have it",
            id="missing function",
        ),
        pytest.param(
            text(entry(claimMappings={"username": {"expression": "claims.a__dot__b"}})), "escaped names", id="escaped"
        ),
        pytest.param(
            text(entry(claimMappings={"username": {"expression": "'a:' + claims.email"}})),
            "claims.email_verified must be used",
            id="email",
        ),
        pytest.param(
            text(entry(claimMappings={"username": {"expression": "'a:' + claims[?'email'].orValue('')"}})),
            "claims.email_verified must be used",
            id="email by index",
        ),
        pytest.param(
            text(entry(claimMappings={"username": {"claim": "sub", "prefix": "system:"}})),
            "username.prefix: must not begin with system:",
            id="system prefix",
        ),
        pytest.param(
            text(entry(claimMappings={"username": {"expression": "'tollgate:' + claims.sub"}})),
            "username.expression: must not begin with tollgate:",
            id="the cluster's prefix",
        ),
        pytest.param(
            text(mapped(groups={"claim": "g", "prefix": "system:x"})), "groups.prefix: must not begin", id="groups"
        ),
        pytest.param(
            text(mapped(groups={"prefix": "x"})), "groups.prefix: may not be set without claim", id="prefix only"
        ),
        pytest.param(text(mapped(uid={"claim": "a", "expression": "b"})), "uid: claim and expression", id="uid both"),
        *(
            pytest.param(
                text(mapped(extra=[{"key": key, "valueExpression": "claims.a"}])),
                f"extra[0].key: {says}",
                id=f"key {key}",
            )
            for key, says in [
                ("", "is required"),
                ("team", "must be a domain-prefixed path"),
                ("a.b/", "must be a domain-prefixed path"),
                ("A.b/c", "must be lower case"),
                ("a_b/c", "must be a DNS name"),
                ("a.b/c d", "must be a DNS name"),
                ("k8s.io/a", "k8s.io, kubernetes.io and"),
                ("x.kubernetes.io/a", "k8s.io, kubernetes.io and"),
            ]
        ),
        pytest.param(
            text(mapped(extra=[{"key": "a.b/c", "valueExpression": "claims.a"}] * 2)),
            "extra[1].key: is given",
            id="key twice",
        ),
        pytest.param(text(mapped(extra=[{"key": "a.b/c"}])), "valueExpression: is required", id="no value"),
        pytest.param(
            text(entry(claimValidationRules=[{}])), "Rules[0]: claim or expression is required", id="empty rule"
        ),
        pytest.param(
            text(entry(claimValidationRules=[{"claim": "a", "message": "m"}])), "message: may not be set", id="message"
        ),
        pytest.param(
            text(entry(claimValidationRules=[{"expression": "true", "requiredValue": "m"}])),
            "requiredValue: may not be set",
            id="required value",
        ),
        pytest.param(
            text(entry(claimValidationRules=[{"claim": "a"}] * 2)), "Rules[1].claim: is given", id="rule twice"
        ),
        pytest.param(
            text(entry(claimValidationRules=[{"expression": "'a'"}])), "gives a string, not a bool", id="rule type"
        ),
        pytest.param(
            text(entry(userValidationRules=[{}])), "userValidationRules[0].expression: is req", id="user rule"
        ),
        pytest.param(
            text(entry(userValidationRules=[{"expression": "user.name == 'x'"}])),
            "undefined field 'name'",
            id="user field",
        ),
        pytest.param(text(entry(), entry()), "jwt[1].issuer.url: is given twice", id="issuer twice"),
        pytest.param(
            text(issuer(discoveryURL="https://d"), issuer(url="https://b", discoveryURL="https://d")),
            "jwt[1].issuer.discoveryURL: is given twice",
            id="discovery twice",
        ),
    ],
)
def test_mistakes(document, says):
    assert says in mistakes(document)


def test_every_mistake_is_told_at_once():
    found = mistakes(text(issuer(url="http://a", audiences=[]), entry("https://b", claimMappings={})))
    assert [line.split(": ")[0] for line in found.split("\n")] == [
        "jwt[0].issuer.url",
        "jwt[0].issuer.audiences",
        "jwt[1].claimMappings.username",
    ]


@pytest.mark.parametrize(
    ("first", "second", "apart"),
    [
        pytest.param({"claim": "sub", "prefix": "a:"}, {"claim": "sub", "prefix": "b:"}, True, id="own prefixes"),
        pytest.param({"claim": "sub", "prefix": "a:"}, {"claim": "email", "prefix": "a:"}, False, id="one prefix"),
        pytest.param({"claim": "sub", "prefix": ""}, {"claim": "sub", "prefix": "b:"}, True, id="one without"),
        pytest.param({"claim": "sub", "prefix": ""}, {"expression": "claims.sub"}, False, id="both without"),
        pytest.param({"expression": "'a:' + claims.sub"}, {"expression": '"b:" + claims.sub'}, True, id="expressions"),
        pytest.param({"expression": "'a:' + claims.sub"}, {"claim": "sub", "prefix": "a:"}, False, id="mixed, same"),
    ],
)
def test_two_issuers_may_not_map_to_one_username(first, second, apart):
    document = text(
        entry("https://a", claimMappings={"username": first}), entry("https://b", claimMappings={"username": second})
    )
    if apart:
        assert len(load(document).issuers) == 2
    else:
        assert "jwt[1].claimMappings.username: could give the same usernames as jwt[0]" in mistakes(document)


def test_a_shorter_prefix_knows_the_longer_one_of_another_issuer():
    config = load(
        text(
            entry("https://a", claimMappings={"username": {"claim": "sub", "prefix": ""}}),
            entry("https://b", claimMappings={"username": {"claim": "sub", "prefix": "ci:"}}),
        )
    )
    assert [issuer.foreign_prefixes for issuer in config.issuers] == [("ci:",), ()]


@pytest.mark.parametrize(
    ("source", "prefix"),
    [
        ("'a:' + claims.sub", "a:"),
        ('"a:" + claims.sub + ":" + claims.x', "a:"),
        ("'a:' // comment\n + claims.sub", "a:"),
        ("'a:' + (claims.x ? 'y' : 'z')", "a:"),
        ("'a:' + claims.?x.orValue('b')", "a:"),
        ("'a:' + claims.x == 'b' ? claims.x : claims.y", ""),
        ("'a:' + claims.x in claims.y ? claims.x : ''", ""),
        ("('a:' + claims.sub)", ""),
        ("claims.sub + 'a:'", ""),
        ("'a:'.replace('a', 'b') + claims.sub", ""),
        ("r'a:' + claims.sub", ""),
        ("b'a:' + claims.sub", ""),
        ("'''a:''' + claims.sub", ""),
        (r"'a\x3a' + claims.sub", "a"),
        ("'a:'", ""),
        ("claims.x ? 'a:' + claims.sub : 'b'", ""),
    ],
)
def test_constant_prefix(source, prefix):
    assert constant_prefix(source) == prefix
