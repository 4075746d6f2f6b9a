"""Claims to identities: the mapping as the API server does it, and the names that nobody may have."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from addons.core import approvals, authconfig, claims
from addons.core.authconfig import CLAIMS, USER, ClaimRule, Issuer, Source, UserRule, cluster_default
from addons.core.cel import compile_expression
from addons.core.model import Identity
from addons.core.tokens import TokenError

TOKEN = "a.b.c"
GOOD = {"iss": "https://a.example", "aud": "tollgate", "sub": "alice", "iat": 1000, "exp": 2000, "jti": "j1"}
OWN = frozenset({"system:serviceaccount:tollgate:gateway", "kubernetes-admin"})


def expression(source, returns=None):
    return Source(program=compile_expression(source, CLAIMS, returns=returns))


def issuer(**fields):
    return Issuer(
        url="https://a.example", audiences=frozenset({"tollgate"}), **{"username": Source("sub", "a:"), **fields}
    )


def identify(changes=None, own=OWN, **fields):
    merged = {name: value for name, value in {**GOOD, **(changes or {})}.items() if value is not ...}
    return claims.identify(TOKEN, merged, issuer(**fields), own)


def refused(changes=None, **fields):
    with pytest.raises(TokenError) as e:
        identify(changes, **fields)
    return e.value.reason


def test_the_whole_identity():
    found = identify(
        {"groups": ["g1", "g2", "g1"], "oid": "u1", "team": "blue"},
        groups=Source("groups", "a:"),
        uid=Source("oid"),
        extra=(("example.com/team", compile_expression("claims.team", CLAIMS)),),
    )
    assert found == Identity(
        username="a:alice",
        uid="u1",
        groups=("a:g1", "a:g2"),
        extra={"example.com/team": ("blue",), claims.CREDENTIAL_ID: ("JTI=j1",)},
        issuer="https://a.example",
        credential_id="j1",
        issued_at=1000.0,
        expiry=2000.0,
        audiences=("tollgate",),
        auth_time=1000.0,
    )
    assert found.claims == {**GOOD, "groups": ["g1", "g2", "g1"], "oid": "u1", "team": "blue"}


def test_claims_are_neither_shown_nor_changed():
    found = identify({"secret": "canary"})
    assert "canary" not in repr(found)
    with pytest.raises(TypeError):
        found.claims["secret"] = "x"


APPROVER = approvals.AUDIENCE
BOTH = frozenset({"tollgate", APPROVER})


@pytest.mark.parametrize(
    ("aud", "listed", "audiences"),
    [
        pytest.param("tollgate", BOTH, ("tollgate",), id="an ordinary token"),
        pytest.param(APPROVER, BOTH, (APPROVER,), id="an approver's"),
        pytest.param([APPROVER, "tollgate", "x"], BOTH, ("tollgate", APPROVER), id="both, and one that is not ours"),
        pytest.param(["tollgate", APPROVER], {"tollgate"}, ("tollgate",), id="not listed for this issuer"),
    ],
)
def test_audiences(aud, listed, audiences):
    found = claims.identify(TOKEN, {**GOOD, "aud": aud}, replace(issuer(), audiences=frozenset(listed)), OWN)
    assert found.audiences == audiences


@pytest.mark.parametrize(
    ("changes", "seconds"),
    [
        pytest.param({}, 1000.0, id="none: the token's own age"),
        pytest.param({"auth_time": 400.0}, 400.0, id="logged in before the token was made"),
        pytest.param({"auth_time": None}, 0.0, id="null is no login"),
        pytest.param({"auth_time": "400"}, 0.0, id="nor is a text"),
        pytest.param({"auth_time": True}, 0.0, id="nor true"),
        pytest.param({"auth_time": -1.0}, 0.0, id="nor a time before there was one"),
        pytest.param({"auth_time": 1e300}, 0.0, id="nor after"),
        pytest.param({"iat": ...}, 0.0, id="nothing says when"),
    ],
)
def test_auth_time(changes, seconds):
    assert identify(changes).auth_time == seconds


@pytest.mark.parametrize(
    ("source", "changes", "name"),
    [
        pytest.param(Source("sub", "a:"), {}, "a:alice", id="claim and prefix"),
        pytest.param(Source("sub", ""), {}, "alice", id="no prefix"),
        pytest.param(Source("sub", "a:"), {"sub": 5}, None, id="a number"),
        pytest.param(Source("sub", "a:"), {"sub": ""}, None, id="empty"),
        pytest.param(Source("sub", "a:"), {"sub": ...}, None, id="missing"),
        pytest.param(Source("sub", "a:"), {"sub": ["alice"]}, None, id="a list"),
        pytest.param(Source("email", ""), {"email": "a@b.c"}, "a@b.c", id="email, not said whether verified"),
        pytest.param(Source("email", ""), {"email": "a@b.c", "email_verified": True}, "a@b.c", id="email verified"),
        pytest.param(Source("email", ""), {"email": "a@b.c", "email_verified": False}, None, id="email not verified"),
        pytest.param(Source("email", ""), {"email": "a@b.c", "email_verified": "true"}, None, id="verified a string"),
        pytest.param(Source("email", ""), {"email": "a@b.c", "email_verified": None}, None, id="verified null"),
        pytest.param(expression("'x:' + claims.sub", "string"), {}, "x:alice", id="expression"),
        pytest.param(expression("claims.sub", "string"), {"sub": 5}, None, id="expression gives a number"),
        pytest.param(expression("claims.none", "string"), {}, None, id="expression fails"),
        pytest.param(expression("claims.?none.orValue('')", "string"), {}, None, id="expression gives nothing"),
        pytest.param(
            expression("string(claims.id)", "string"), {"id": 1764028034.0}, "1.764028034e+09", id="number as in cel-go"
        ),
        pytest.param(expression("string(int(claims.id))", "string"), {"id": 1764028034.0}, "1764028034", id="digits"),
    ],
)
def test_username(source, changes, name):
    if name is None:
        assert refused(changes, username=source) == "claims"
    else:
        assert identify(changes, username=source).username == name


@pytest.mark.parametrize(
    ("source", "value", "groups"),
    [
        pytest.param(Source("g", "a:"), ["x", "y"], ("a:x", "a:y"), id="list"),
        pytest.param(Source("g", "a:"), "x", ("a:x",), id="string"),
        pytest.param(Source("g", "a:"), ..., (), id="missing"),
        pytest.param(Source("g", "a:"), None, (), id="null"),
        pytest.param(Source("g", "a:"), [1], None, id="number in the list"),
        pytest.param(Source("g", "a:"), {"x": 1}, None, id="object"),
        pytest.param(expression("claims.g"), ["x", ""], ("x",), id="expression gives a list"),
        pytest.param(expression("claims.g"), "x", ("x",), id="expression gives a string"),
        pytest.param(expression("claims.g"), "", (), id="expression gives an empty string"),
        pytest.param(expression("claims.g"), None, (), id="expression gives null"),
        pytest.param(expression("claims.g"), 5, None, id="expression gives a number"),
        pytest.param(expression("claims.g"), ..., None, id="expression fails"),
        pytest.param(expression("claims.g.split(',')"), "x,y", ("x", "y"), id="expression splits"),
    ],
)
def test_groups(source, value, groups):
    if groups is None:
        assert refused({"g": value}, groups=source) == "claims"
    else:
        assert identify({"g": value}, groups=source).groups == groups


@pytest.mark.parametrize(
    ("source", "uid"),
    [
        (Source("u"), "u1"),
        (expression("claims.u + '!'"), "u1!"),
        (Source("none"), None),
        (expression("claims.exp"), None),
    ],
)
def test_uid(source, uid):
    if uid is None:
        assert refused({"u": "u1"}, uid=source) == "claims"
    else:
        assert identify({"u": "u1"}, uid=source).uid == uid


@pytest.mark.parametrize(
    ("source", "values"),
    [("claims.none", None), ("claims.sub", ("alice",)), ("['a', '']", ("a",)), ("claims.exp", None), ("null", ())],
)
def test_extra(source, values):
    extra = (("example.com/x", compile_expression(source, CLAIMS)),)
    if values is None:
        assert refused(extra=extra) == "claims"
    else:
        assert identify(extra=extra).extra.get("example.com/x", ()) == values


@pytest.mark.parametrize(
    ("rule", "passes"),
    [
        pytest.param(ClaimRule("sub", "alice"), True, id="value"),
        pytest.param(ClaimRule("sub", "bob"), False, id="another value"),
        pytest.param(ClaimRule("none", ""), False, id="a missing claim is not empty"),
        pytest.param(ClaimRule("exp", "2000"), False, id="only strings"),
        pytest.param(ClaimRule(program=compile_expression("claims.exp - claims.iat <= 1000", CLAIMS)), True, id="true"),
        pytest.param(
            ClaimRule(program=compile_expression("claims.exp - claims.iat < 1000", CLAIMS)), False, id="false"
        ),
        pytest.param(ClaimRule(program=compile_expression("claims.none", CLAIMS)), False, id="fails"),
        pytest.param(ClaimRule(program=compile_expression("claims.sub", CLAIMS)), False, id="no boolean"),
    ],
)
def test_claim_rules(rule, passes):
    if passes:
        assert identify(claim_rules=(rule,))
    else:
        assert refused(claim_rules=(rule,)) in ("claim-rule", "claims")


@pytest.mark.parametrize(
    ("source", "passes"),
    [
        ("user.username == 'a:alice' && user.uid == '' && size(user.groups) == 0", True),
        ("user.extra['authentication.kubernetes.io/credential-id'] == ['JTI=j1']", True),
        ("!user.username.startsWith('a:')", False),
        ("user.groups[0] == 'x'", False),
        ("user.username", False),
    ],
)
def test_user_rules(source, passes):
    rules = (UserRule(compile_expression(source, USER)),)
    if passes:
        assert identify(user_rules=rules)
    else:
        assert refused(user_rules=rules) == "user-rule"


NEVER = [
    "system:masters",
    "system:nodes",
    "system:node:n1",
    "system:kube-controller-manager",
    "system:anonymous",
    "system:serviceaccount:a:b",
    "system:",
    "system：masters",
    "ｓystem:masters",
    "tollgate:system:serviceaccount:a:b",
    "tollgate:x",
    "kubernetes-admin",
]


@pytest.mark.parametrize("name", NEVER)
def test_names_that_no_other_issuer_may_give(name):
    assert refused({"sub": name}, username=Source("sub", "")) == "identity-reserved"
    assert refused({"g": ["fine", name]}, groups=Source("g", "")) == "identity-reserved"


def test_a_name_put_together_by_the_mapping_is_refused_too():
    assert refused({"sub": "tem:masters"}, username=Source("sub", "sys")) == "identity-reserved"
    assert refused({"g": "tem:masters"}, groups=expression("'sys' + claims.g")) == "identity-reserved"


def test_with_a_prefix_of_its_own_an_issuer_may_use_any_name():
    assert identify({"sub": "system:serviceaccount:a:b"}).username == "a:system:serviceaccount:a:b"


def test_a_username_with_another_issuers_prefix_is_refused():
    assert refused({"sub": "ci:bob"}, username=Source("sub", ""), foreign_prefixes=("ci:",)) == "identity-reserved"
    assert identify({"sub": "c:bob"}, username=Source("sub", ""), foreign_prefixes=("ci:",)).username == "c:bob"


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("alice\r\nImpersonate-Group: system:masters", id="line break"),
        pytest.param("alice ", id="space at the end"),
        pytest.param(" alice", id="space at the start"),
        pytest.param("alice\u00a0", id="no-break space"),
        pytest.param("al\0ice", id="NUL"),
        pytest.param("al\x7fice", id="delete"),
        pytest.param("al\u202eice", id="right-to-left override"),
        pytest.param("al\u2028ice", id="line separator"),
        pytest.param("al\ud800ice", id="half a surrogate pair"),
        pytest.param("a" * 2000, id="too long"),
    ],
)
def test_names_that_would_not_arrive_upstream_as_they_are(name):
    bare = {"username": Source("sub", "")}
    assert refused({"sub": name}, **bare) == "claims"
    assert refused({"g": [name]}, groups=Source("g", "")) == "claims"
    assert refused({"u": name}, uid=Source("u")) == "claims"


def test_names_of_other_languages_are_fine():
    assert identify({"sub": "Jürgen Łukasz 山田"}).username == "a:Jürgen Łukasz 山田"


def test_empty_groups_and_too_many_are_refused():
    assert refused({"g": ["x", ""]}, groups=Source("g", "")) == "claims"
    assert refused({"g": [str(i) for i in range(501)]}, groups=Source("g", "")) == "claims"


# The cluster's own tokens

OURS = cluster_default("https://kubernetes.default.svc")
SUB = "system:serviceaccount:shop:agent"
REVIEW = {
    "status": {
        "authenticated": True,
        "audiences": ["tollgate"],
        "user": {
            "username": SUB,
            "uid": "u1",
            "groups": ["system:serviceaccounts", "system:serviceaccounts:shop", "system:authenticated"],
            "extra": {"authentication.kubernetes.io/pod-name": ["p1"]},
        },
    }
}


def reviewed(status=None, user=None, sub=SUB, own=OWN, aud="tollgate"):
    review = {"status": {**REVIEW["status"], "user": {**REVIEW["status"]["user"], **(user or {})}, **(status or {})}}
    return claims.identify_reviewed(TOKEN, {**GOOD, "sub": sub, "aud": aud}, OURS, review, own)


def test_the_clusters_own_identity_is_prefixed():
    assert reviewed() == Identity(
        username="tollgate:system:serviceaccount:shop:agent",
        uid="u1",
        groups=("tollgate:system:serviceaccounts", "tollgate:system:serviceaccounts:shop"),
        extra={"authentication.kubernetes.io/pod-name": ("p1",)},
        issuer=OURS.url,
        credential_id="j1",
        issued_at=1000.0,
        expiry=2000.0,
        audiences=("tollgate",),
        auth_time=1000.0,
    )
    assert reviewed().claims == {**GOOD, "sub": SUB}


@pytest.mark.parametrize(
    ("aud", "confirmed", "audiences"),
    [
        pytest.param([APPROVER], [APPROVER], (APPROVER,), id="an approver's"),
        pytest.param([APPROVER, "tollgate"], ["tollgate", APPROVER], ("tollgate", APPROVER), id="both"),
        pytest.param(["tollgate"], ["tollgate", APPROVER], ("tollgate",), id="more is confirmed than it says"),
        pytest.param(["tollgate", APPROVER], ["tollgate"], ("tollgate",), id="less"),
        pytest.param(["tollgate", "x"], ["tollgate", "x", 5], ("tollgate",), id="others are not ours"),
        pytest.param(["tollgate"], [APPROVER], None, id="another one than it says"),
        pytest.param(["https://kubernetes.default.svc"], [APPROVER], None, id="it is for the API server"),
        pytest.param(None, ["tollgate"], None, id="it says none"),
    ],
)
def test_audiences_of_a_review(aud, confirmed, audiences):
    if audiences is None:
        with pytest.raises(TokenError):
            reviewed({"audiences": confirmed}, aud=aud)
    else:
        assert reviewed({"audiences": confirmed}, aud=aud).audiences == audiences


def test_auth_time_of_a_review():
    assert reviewed().auth_time == 1000.0


def test_no_group_but_the_service_accounts_own_is_kept():
    groups = ["system:masters", "system:serviceaccounts:kube-system", "x", 5]
    assert reviewed(user={"groups": groups}).groups == ()


@pytest.mark.parametrize(
    ("status", "user", "sub"),
    [
        pytest.param({"authenticated": False}, {}, SUB, id="not authenticated"),
        pytest.param({"authenticated": "true"}, {}, SUB, id="authenticated a string"),
        pytest.param({"audiences": []}, {}, SUB, id="no audience confirmed"),
        pytest.param({"audiences": None}, {}, SUB, id="an API server that knows no audiences"),
        pytest.param({"audiences": ["other"]}, {}, SUB, id="another audience"),
        pytest.param({}, {"username": "system:serviceaccount:shop:other"}, SUB, id="not who the token says"),
        pytest.param({}, {"username": "system:node:n1"}, "system:node:n1", id="a node"),
        pytest.param({}, {"username": "kubernetes-admin"}, "kubernetes-admin", id="a user"),
        pytest.param({}, {"username": "system:serviceaccount:a:b:c"}, "system:serviceaccount:a:b:c", id="five parts"),
        pytest.param({}, {"username": None}, SUB, id="nobody"),
        pytest.param({}, {"groups": "x"}, SUB, id="groups a string"),
        pytest.param(
            {},
            {"username": "system:serviceaccount:tollgate:gateway"},
            "system:serviceaccount:tollgate:gateway",
            id="the gateway itself",
        ),
    ],
)
def test_reviews_that_give_no_identity(status, user, sub):
    with pytest.raises(TokenError):
        reviewed(status, user, sub)


@pytest.mark.parametrize(
    "review", [None, [], {}, {"status": None}, {"status": {"authenticated": True, "audiences": ["tollgate"]}}]
)
def test_answers_that_are_no_review(review):
    with pytest.raises(TokenError):
        claims.identify_reviewed(TOKEN, {**GOOD, "sub": SUB}, OURS, review, OWN)


def test_the_clusters_own_claims_alone_give_no_identity():
    with pytest.raises(TokenError):
        claims.identify(TOKEN, {**GOOD, "sub": SUB}, OURS, OWN)


@given(st.text(max_size=20), st.lists(st.text(max_size=20), max_size=4))
def test_whatever_the_claims_say_no_reserved_name_comes_out(sub, groups):
    try:
        found = identify({"sub": sub, "g": groups}, username=Source("sub", ""), groups=Source("g", ""))
    except TokenError:
        return
    for name in (found.username, *found.groups):
        assert name.strip() == name
        assert name.isprintable() or " " in name or not name.isascii()
        assert not name.startswith((authconfig.SYSTEM_PREFIX, authconfig.CLUSTER_PREFIX))
