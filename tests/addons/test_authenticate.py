"""Authenticate as an addon: what it takes from the request, what it stamps, when a stream ends."""

import asyncio
import json
import logging
from dataclasses import replace

import pytest
from mitmproxy import connection, http
from mitmproxy.exceptions import OptionsError
from mitmproxy.test import taddons, tflow

from addons import authenticate
from addons.core import facts
from addons.core.approvals import Requester
from addons.core.model import Identity
from addons.core.revocations import Revocation, Target
from addons.core.tokens import TokenError
from addons.mitm import cutting, people
from addons.net import apiserver, revoking
from addons.net.issuers import IssuerError

NOW = 1_800_000_000.0
ALICE = Identity(username="a:alice", issuer="https://a", expiry=NOW + 60)
NAME = "tollgate_authenticate"

KUBECONFIG = """
apiVersion: v1
kind: Config
current-context: a
contexts: [{name: a, context: {cluster: a, user: a}}]
clusters: [{name: a, cluster: {server: "https://127.0.0.1:1"}}]
users: [{name: a, user: {token: x}}]
"""

AUTH = """
apiVersion: apiserver.config.k8s.io/v1
kind: AuthenticationConfiguration
jwt:
- issuer: {url: https://a.example, audiences: [tollgate]}
  claimMappings: {username: {claim: sub, prefix: "a:"}}
"""


class FakeAuthenticator:
    """Knows one token; may be slow, refuse, or be unable to tell."""

    def __init__(self, outcome=ALICE, cached=None):
        self.outcome = outcome
        self.cached = cached
        self.asked = []

    def remembered(self, digest, now):
        return self.cached

    async def identify(self, token, digest, now):
        self.asked.append((token, now))
        await asyncio.sleep(0)
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome

    def start(self):
        self.started = True

    def stop(self):
        self.stopped = True


@pytest.fixture
def addon():
    addon = authenticate.Authenticate()
    addon.clock = lambda: NOW
    addon.authenticator, addon.started = FakeAuthenticator(), True
    addon.register = revoking.Register(None)
    return addon


def flow_with(*fields):
    flow = tflow.tflow()
    flow.request.headers = http.Headers([(b"Host", b"x"), *fields])
    return flow


BEARER = (b"Authorization", b"Bearer a.b.c")


async def head(addon, flow):
    """As mitmproxy calls it: what can be awaited is."""
    rest = addon.requestheaders(flow)
    if rest is not None:
        await rest


async def test_a_good_token_becomes_an_identity_and_leaves_the_request(addon):
    flow = flow_with(BEARER)
    await head(addon, flow)
    known = facts.of(flow)
    assert known.identity is ALICE
    assert known.passed == {(NAME, "requestheaders")}
    assert flow.request.headers.fields == ((b"Host", b"x"),)
    assert addon.authenticator.asked == [("a.b.c", NOW)]
    assert flow.response is None


async def test_a_remembered_token_is_not_looked_into_again(addon):
    addon.authenticator = FakeAuthenticator(cached=ALICE)
    flow = flow_with(BEARER)
    assert addon.requestheaders(flow) is None  # at once: nobody waits for it
    assert facts.of(flow).identity is ALICE
    assert addon.authenticator.asked == []


@pytest.mark.parametrize(
    ("fields", "outcome", "code"),
    [
        pytest.param([], ALICE, 401, id="no credential"),
        pytest.param([(b"Authorization", b"Basic eDp5")], ALICE, 401, id="basic"),
        pytest.param([BEARER, BEARER], ALICE, 401, id="twice"),
        pytest.param([BEARER], TokenError("signature", "is by none of the keys"), 401, id="not believed"),
        pytest.param([BEARER], IssuerError("the issuer is down"), 503, id="nobody can tell"),
    ],
)
async def test_refused(addon, caplog, fields, outcome, code):
    addon.authenticator = FakeAuthenticator(outcome)
    flow = flow_with(*fields)
    with caplog.at_level(logging.INFO):
        await head(addon, flow)
    known = facts.of(flow)
    assert (flow.response.status_code, known.answered_by, known.identity) == (code, NAME, None)
    assert not known.passed
    assert "authorization" not in flow.request.headers
    # The log knows why, the client learns what to do.
    assert "a.b.c" not in caplog.text
    message = json.loads(flow.response.content)["message"]
    assert len(message) < 500
    if code == 401:
        assert message == authenticate.UNAUTHORIZED.message
        assert flow.response.headers["WWW-Authenticate"] == "Bearer"
    if isinstance(outcome, Exception):
        assert str(outcome) in caplog.text
        assert str(outcome) not in message


async def test_the_bearer_subprotocol_leaves_the_request(addon):
    protocols = b"v5.channel.k8s.io, base64url.bearer.authorization.k8s.io.YS5iLmM"
    flow = flow_with((b"Upgrade", b"websocket"), (b"Sec-WebSocket-Protocol", protocols))
    await head(addon, flow)
    assert flow.request.headers["Sec-WebSocket-Protocol"] == "v5.channel.k8s.io"
    assert addon.authenticator.asked == [("a.b.c", NOW)]


async def test_a_refused_subprotocol_is_not_kept(addon):
    flow = flow_with((b"Sec-WebSocket-Protocol", b"v5, base64url.bearer.authorization.k8s.io.YS5iLmM"))
    await head(addon, flow)
    assert flow.response.status_code == 401
    assert b"YS5iLmM" not in bytes(flow.request.headers)


async def test_not_configured(addon):
    addon.authenticator = None
    flow = flow_with(BEARER)
    await head(addon, flow)
    assert (flow.response.status_code, facts.of(flow).passed) == (503, set())


async def test_configured_but_not_running(addon):
    addon.started = False
    flow = flow_with(BEARER)
    await head(addon, flow)
    assert flow.response.status_code == 503


async def test_an_unexpected_error_leaves_no_stamp_and_no_credential(addon):
    addon.authenticator = FakeAuthenticator(RuntimeError("a mistake of ours"))
    flow = flow_with(BEARER)
    with pytest.raises(RuntimeError):
        await head(addon, flow)
    assert not facts.of(flow).passed
    assert "authorization" not in flow.request.headers


async def test_the_first_answer_stands(addon):
    flow = flow_with(BEARER)
    facts.of(flow).answered_by = "tollgate_guard"
    await head(addon, flow)
    addon.request(flow)
    assert flow.response is None
    assert facts.of(flow).identity is None
    assert not facts.of(flow).passed


@pytest.mark.parametrize(("now", "code"), [(NOW + 59.9, None), (NOW + 60, 401)])
def test_an_identity_that_ended_while_the_body_came(addon, now, code):
    flow = flow_with()
    facts.of(flow).identity = ALICE
    addon.clock = lambda: now
    addon.request(flow)
    assert (flow.response and flow.response.status_code) == code
    assert facts.of(flow).passed == (set() if code else {(NAME, "request")})


def test_a_request_without_an_identity_is_not_passed(addon):
    flow = flow_with()
    with pytest.raises(facts.NotAuthenticated):
        addon.request(flow)
    assert not facts.of(flow).passed


# Streams


@pytest.fixture
def cuts(monkeypatch):
    done = []
    monkeypatch.setattr(cutting, "cut", lambda flow, refusal: done.append((flow, refusal.cause)))
    return done


def streaming(status_code=200, released=True):
    flow = tflow.tflow(resp=True)
    flow.response.status_code = status_code
    facts.of(flow).identity, facts.of(flow).released = ALICE, released
    return flow


def test_a_stream_ends_with_its_identity(addon, cuts):
    flow = streaming()
    addon.responseheaders(flow)
    addon.sweep(NOW + 59.9)
    assert cuts == []
    addon.sweep(NOW + 60)
    addon.sweep(NOW + 61)
    assert cuts == [(flow, "token-expired")]


@pytest.mark.parametrize("end", ["response", "error", "websocket_end"])
def test_what_is_over_is_not_cut(addon, cuts, end):
    flow = streaming()
    addon.responseheaders(flow)
    getattr(addon, end)(flow)
    addon.sweep(NOW + 60)
    assert cuts == []


def test_an_upgrade_has_only_begun_with_its_response(addon, cuts):
    flow = streaming(101)
    addon.responseheaders(flow)
    addon.response(flow)
    addon.sweep(NOW + 60)
    assert cuts == [(flow, "token-expired")]


def test_an_upgrade_to_spdy_has_only_begun_though_the_guard_withholds_its_answer(addon, cuts):
    flow = streaming(101)
    addon.responseheaders(flow)
    facts.of(flow).answer, flow.response = flow.response, http.Response.make(502)
    addon.response(flow)
    addon.sweep(NOW + 60)
    assert cuts == [(flow, "token-expired")]


def test_a_client_that_is_gone_is_forgotten(addon, cuts):
    flow = streaming(101)
    addon.responseheaders(flow)
    flow.client_conn.state = connection.ConnectionState.CLOSED
    addon.sweep(NOW)
    assert not addon.open
    assert not addon.tokens


def test_an_answer_of_our_own_is_not_watched(addon, cuts):
    addon.responseheaders(streaming(released=False))
    addon.sweep(NOW + 60)
    assert cuts == []


async def test_the_sweeper_survives_an_error(addon, monkeypatch, caplog):
    monkeypatch.setattr(authenticate, "SWEEP", 0)
    calls = []

    def sweep(now):
        calls.append(now)
        if len(calls) == 1:
            raise RuntimeError("a mistake of ours")

    addon.sweep = sweep
    task = asyncio.create_task(addon.keep_sweeping())
    async with asyncio.timeout(5):
        while len(calls) < 3:
            await asyncio.sleep(0)
    task.cancel()
    assert "cutting expired streams" in caplog.text


@pytest.mark.parametrize("hook", ["websocket_message", "tcp_message"])
@pytest.mark.parametrize(("now", "judged"), [(NOW + 59.9, {NAME}), (NOW + 60, set())])
def test_frames_pass_while_the_identity_does(addon, hook, now, judged):
    flow = tflow.twebsocketflow() if hook == "websocket_message" else tflow.ttcpflow()
    facts.of(flow).identity = ALICE
    addon.clock = lambda: now
    getattr(addon, hook)(flow)
    assert facts.of(flow).judged == judged


def test_a_frame_of_nobody_is_not_judged(addon):
    flow = tflow.twebsocketflow()
    with pytest.raises(facts.NotAuthenticated):
        addon.websocket_message(flow)
    assert not facts.of(flow).judged


# Options


@pytest.fixture
def files(tmp_path):
    apiserver.shared.cache_clear()
    (tmp_path / "kubeconfig").write_text(KUBECONFIG)
    (tmp_path / "auth.yaml").write_text(AUTH)
    (tmp_path / "typo.yaml").write_text(AUTH.replace("audiences", "audience"))
    return tmp_path


def configured(files, **changes):
    addon = authenticate.Authenticate()
    values = {"tollgate_kubeconfig": str(files / "kubeconfig"), **changes}
    with taddons.context(addon) as context:
        context.configure(addon, **values)
    return addon.authenticator


@pytest.mark.parametrize(
    ("changes", "listed", "cluster"),
    [
        pytest.param({}, [], True, id="default: the cluster's own"),
        pytest.param({"tollgate_auth": "auth.yaml"}, ["https://a.example"], False, id="a file says it all"),
        pytest.param(
            {"tollgate_auth": "auth.yaml", "tollgate_cluster_tokens": "on"}, ["https://a.example"], True, id="both"
        ),
    ],
)
async def test_which_issuers(files, changes, listed, cluster):
    if "tollgate_auth" in changes:
        changes = {**changes, "tollgate_auth": str(files / changes["tollgate_auth"])}
    found = configured(files, **changes)
    assert (list(found.issuers), found.cluster_keys is not None, found.max_lifetime) == (listed, cluster, 86400)


@pytest.mark.parametrize(
    ("audiences", "said"),
    [
        pytest.param("[tollgate]", 1, id="approvers have no audience"),
        pytest.param("[tollgate, tollgate-approver], audienceMatchPolicy: MatchAny", 0, id="they have"),
    ],
)
async def test_an_issuer_without_approvers_is_named_once(files, caplog, audiences, said):
    (files / "auth.yaml").write_text(AUTH.replace("[tollgate]", audiences))
    addon = authenticate.Authenticate()
    with caplog.at_level(logging.INFO), taddons.context(addon) as context:
        options = {"tollgate_kubeconfig": str(files / "kubeconfig"), "tollgate_auth": str(files / "auth.yaml")}
        context.configure(addon, **options)
        context.configure(addon, **options)  # the same again
    assert caplog.text.count("nobody from https://a.example can decide approvals") == said


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        pytest.param({"tollgate_auth": "absent.yaml"}, "tollgate_auth: .*absent.yaml", id="no file"),
        pytest.param({"tollgate_auth": "typo.yaml"}, "tollgate_auth: .*audience: unknown field", id="typo"),
        pytest.param({"tollgate_cluster_tokens": "off"}, "tollgate_cluster_tokens: .*nobody", id="nobody"),
        pytest.param({"tollgate_token_lifetime": 0}, "tollgate_token_lifetime: must be", id="no lifetime"),
        pytest.param({"tollgate_kubeconfig": "absent"}, "tollgate_kubeconfig: ", id="no kubeconfig"),
    ],
)
def test_a_wrong_option_lets_nobody_in(files, changes, says):
    paths = {n: str(files / v) if n in ("tollgate_auth", "tollgate_kubeconfig") else v for n, v in changes.items()}
    addon = authenticate.Authenticate()
    with taddons.context(addon) as context, pytest.raises(OptionsError, match=says):
        context.configure(addon, **{"tollgate_kubeconfig": str(files / "kubeconfig"), **paths})
    # mitmproxy has gone back to the default by now, which would have let the cluster's own tokens in.
    assert addon.authenticator is None


async def test_a_wrong_change_keeps_what_was(files):
    addon = authenticate.Authenticate()
    with taddons.context(addon) as context:
        context.configure(addon, tollgate_kubeconfig=str(files / "kubeconfig"), tollgate_auth=str(files / "auth.yaml"))
        before = addon.authenticator
        with pytest.raises(OptionsError):
            context.configure(addon, tollgate_auth=str(files / "typo.yaml"))
        assert addon.authenticator is before


async def test_running_starts_what_is_configured_and_a_change_after_it(files):
    addon = authenticate.Authenticate()
    addon.authenticator = first = FakeAuthenticator()
    addon.running()
    assert first.started
    with taddons.context(addon) as context:
        context.configure(addon, tollgate_kubeconfig=str(files / "kubeconfig"))
    assert first.stopped
    assert addon.authenticator is not first
    assert addon.authenticator._tasks
    addon.done()
    assert not addon.authenticator._tasks


@pytest.mark.parametrize(
    ("outcome", "cut"),
    [
        pytest.param(ALICE, False, id="still good"),
        pytest.param(TokenError("review", "the account is gone"), True, id="no longer accepted"),
        pytest.param(IssuerError("the API server is away"), False, id="nobody can tell now"),
    ],
)
async def test_the_tokens_of_open_streams_are_asked_about_again(addon, monkeypatch, outcome, cut):
    flow, ended = tflow.tflow(), []
    monkeypatch.setattr(authenticate.cutting, "cut", lambda flow, refusal: ended.append((flow, refusal)))
    addon.authenticator, addon.started = FakeAuthenticator(outcome), True
    addon.open[flow], addon.tokens[flow] = float("inf"), "its-token"
    await addon.review()
    assert addon.authenticator.asked[0][0] == "its-token"
    assert ended == ([(flow, authenticate.REVOKED)] if cut else [])
    assert (flow in addon.open) is not cut


def test_a_token_is_kept_only_while_its_exchange_is_open(addon):
    flow = tflow.tflow(resp=True)
    addon.open[flow], addon.tokens[flow] = float("inf"), "its-token"
    addon.response(flow)
    assert flow not in addon.tokens


# ----- revocations -----


def revoked(**target):
    return Revocation("rev-1", "u", Target(**target), Requester("operator:x"), NOW)


@pytest.fixture
async def revoking_addon(addon, tmp_path):
    """With a real store, and what puts a revocation in force there."""
    addon.open_register(str(tmp_path / "state"))

    async def throw(**target):
        await revoking.throw(addon.store, revoked(**target), NOW)
        await addon.register.look()

    await addon.register.look()
    addon.throw = throw
    yield addon
    addon.close_register()


@pytest.mark.parametrize(
    ("target", "code"),
    [
        pytest.param({"user": "a:alice"}, 403, id="user"),
        pytest.param({"agents": True}, 403, id="all agents"),
        pytest.param({"issued_before": NOW}, 401, id="issued before"),
        pytest.param({"user": "a:bob"}, None, id="another"),
    ],
)
async def test_a_revoked_identity_is_refused(revoking_addon, target, code):
    await revoking_addon.throw(**target)
    flow = flow_with(BEARER)
    await revoking_addon.requestheaders(flow)
    known = facts.of(flow)
    assert (flow.response and flow.response.status_code) == code
    assert (known.passed == set()) is (code is not None)
    if code is not None:
        assert "rev-1" in json.loads(flow.response.content)["message"]


async def test_people_are_not_stopped_with_the_agents(revoking_addon):
    def judge(identity):
        return False

    people.judged_by(judge)
    try:
        await revoking_addon.throw(agents=True)
        flow = flow_with(BEARER)
        await revoking_addon.requestheaders(flow)
        assert facts.of(flow).passed
    finally:
        people.no_longer(judge)


async def test_revoked_while_the_body_came(revoking_addon):
    flow = flow_with(BEARER)
    await revoking_addon.requestheaders(flow)
    await revoking_addon.throw(user="a:alice")
    revoking_addon.request(flow)
    assert flow.response.status_code == 403
    assert (NAME, "request") not in facts.of(flow).passed


async def test_what_is_under_way_ends_once(revoking_addon, monkeypatch):
    cut = []
    monkeypatch.setattr(cutting, "cut", lambda flow, refusal: cut.append((flow, refusal.code)))
    streaming, held, other = flow_with(BEARER), flow_with(BEARER), flow_with(BEARER)
    for flow in (streaming, held, other):
        await revoking_addon.requestheaders(flow)
    facts.of(other).identity = Identity("a:bob", expiry=NOW + 60)
    facts.of(streaming).released = facts.of(other).released = True
    revoking_addon.responseheaders(streaming)
    await revoking_addon.throw(user="a:alice")
    revoking_addon.sweep(NOW)
    assert cut == [(streaming, 403)]
    # It waits in a hook of another addon, which tells its client.
    assert facts.of(held).cut_off.code == 403
    assert facts.of(other).cut_off is None


async def test_frames_of_a_revoked_identity_are_not_judged(revoking_addon):
    flow = flow_with(BEARER)
    await revoking_addon.requestheaders(flow)
    facts.of(flow).cut_off = authenticate.REVOKED
    revoking_addon.judge(flow)
    assert not facts.of(flow).judged


async def test_a_held_request_is_not_the_same_any_more(revoking_addon):
    flow = flow_with(BEARER)
    await revoking_addon.requestheaders(flow)
    assert await facts.of(flow).identify_again() is ALICE
    await revoking_addon.throw(user="a:alice")
    with pytest.raises(TokenError):
        await facts.of(flow).identify_again()
    assert facts.of(flow).cut_off.cause == "revoked"


async def test_an_unknown_state_ends_no_stream_and_lets_nobody_in(revoking_addon, monkeypatch):
    flow = flow_with(BEARER)
    await revoking_addon.requestheaders(flow)
    facts.of(flow).released = True
    monkeypatch.setattr(revoking, "STALE", -1.0)
    revoking_addon.sweep(NOW)
    assert facts.of(flow).cut_off is None
    another = flow_with(BEARER)
    await revoking_addon.requestheaders(another)
    assert another.response.status_code == 503


async def test_until_configured_nobody_passes(addon):
    addon.register = None
    flow = flow_with(BEARER)
    await addon.requestheaders(flow)
    assert (flow.response.status_code, facts.of(flow).passed) == (503, set())


async def test_owners_who_have_left(addon, tmp_path):
    (tmp_path / "departed").write_text("alice@example.com\n")
    addon.set_up_owners("owner", str(tmp_path / "departed"))
    addon.authenticator = FakeAuthenticator(replace(ALICE, claims={"owner": ["x", "Alice@example.com"]}))
    flow = flow_with(BEARER)
    await addon.requestheaders(flow)
    assert flow.response.headers["Tollgate-Reason"] == "owner-departed"
    addon.authenticator = FakeAuthenticator(replace(ALICE, claims={"owner": "bob"}))
    flow = flow_with(BEARER)
    await addon.requestheaders(flow)
    assert facts.of(flow).passed


@pytest.mark.parametrize(
    ("claim", "content", "says"),
    [
        pytest.param("", "alice", "needs tollgate_owner_claim", id="no claim"),
        pytest.param("owner", None, "departed", id="no file"),
        pytest.param("owner", b"\xff", "UTF-8", id="no text"),
    ],
)
def test_owners_that_cannot_be_read_let_nobody_in(tmp_path, claim, content, says):
    file = tmp_path / "departed"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    addon = authenticate.Authenticate()
    with pytest.raises(OptionsError, match=says):
        addon.set_up_owners(claim, str(file))


def test_the_gateway_that_goes_down_lets_nobody_in(addon):
    addon.stopping = True
    assert addon.refuses(ALICE) is authenticate.STOPPING


@pytest.mark.parametrize(
    ("shared", "again"),
    [pytest.param(True, 1, id="another process has the port"), pytest.param(False, 0, id="nobody has")],
)
def test_who_comes_too_late_is_sent_to_whoever_took_over(addon, shared, again):
    addon.stopping = True
    with taddons.context(loadcore=False) as context:
        context.options.add_option("tollgate_reuse_port", bool, shared, "")
        assert addon.refuses(ALICE).retry_after == again
