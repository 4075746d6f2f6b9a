"""
The nouns of Tollgate: who asks (Identity), for what (RequestInfo, Operation), and what
is done about it (Verdict). Frozen values, standard library only, no behaviour that
needs anything but the value itself.

Field names follow Kubernetes: RequestInfo is `k8s.io/apiserver/pkg/endpoints/request`,
Identity is `authentication.k8s.io/v1` UserInfo.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

NOTHING: Mapping[str, Any] = MappingProxyType({})

# How much of a request a rule wants on record, the least first.
RECORD_LEVELS = ("metadata", "request", "full")


@dataclass(frozen=True, slots=True)
class Identity:
    """Who sent a request, from a verified token (`authentication.k8s.io/v1` UserInfo)."""

    username: str
    uid: str = ""
    groups: tuple[str, ...] = ()
    extra: Mapping[str, tuple[str, ...]] = NOTHING
    issuer: str = ""
    credential_id: str = ""  # `jti`, or a hash of the token where it has none
    issued_at: float = 0.0  # seconds since the epoch
    expiry: float = 0.0  # seconds since the epoch; the identity ends here, streams too
    audiences: tuple[str, ...] = ()  # of the token, those that are configured here: what it was issued for
    auth_time: float = 0.0  # seconds since the epoch; when the person last logged in (`auth_time`, else `iat`)
    # The verified claims, for conditions that ask for more than the mappings keep (`amr`).
    claims: Mapping[str, Any] = field(default_factory=lambda: NOTHING, repr=False, compare=False)


# What the API server calls a request without credentials (k8s.io/apiserver, user.Anonymous).
ANONYMOUS = Identity(username="system:anonymous", groups=("system:unauthenticated",))


@dataclass(frozen=True, slots=True)
class RequestInfo:
    """What the API server itself reads from method and URL (RequestInfo), field by field."""

    verb: str  # get, list, watch, create, ...; for a non-resource request the lower-case method
    path: str  # decoded
    is_resource_request: bool = False
    api_prefix: str = ""  # "api" or "apis"
    api_group: str = ""
    api_version: str = ""
    namespace: str = ""
    resource: str = ""
    subresource: str = ""
    name: str = ""
    parts: tuple[str, ...] = ()
    field_selector: str = ""
    label_selector: str = ""

    @property
    def full_resource(self) -> str:
        """`deployments.apps/scale`, `pods`, or "" for a non-resource request."""
        group = f".{self.api_group}" if self.api_group else ""
        sub = f"/{self.subresource}" if self.subresource else ""
        return f"{self.resource}{group}{sub}"


class Impact(enum.IntEnum):
    """What an operation may do, by severity. An operation has a set of them."""

    META = 0  # discovery, health, Self*Reviews only
    READ = 1
    WRITE = 2
    REVEAL = 3  # returns secret material; unknown non-resource URLs
    DELETE = 4
    MASS_DELETE = 5
    EXECUTE = 6  # exec, attach, port-forward, proxy, ephemeral containers, unknown subresources
    ESCALATE = 7  # RBAC, tokens, webhooks, CRDs, nodes, the gateway's own objects

    @property
    def word(self) -> str:
        """How policies and messages write it: `mass-delete`."""
        return self.name.lower().replace("_", "-")


@dataclass(frozen=True, slots=True)
class Uses:
    """What a workload's pod template reaches past the gateway, once it runs."""

    service_accounts: frozenset[str] = frozenset()
    secrets: frozenset[str] = frozenset()
    config_maps: frozenset[str] = frozenset()
    host: frozenset[str] = frozenset()  # "hostNetwork", "hostPath", "privileged", "nodeName", ...
    token: bool = False  # an API token is mounted (not switched off, or projected)
    unknown: bool = False  # not all of it can be read here (a patch, an opaque body)


NO_USES = Uses()


@dataclass(frozen=True, slots=True)
class Reach:
    """What an operation, or the whole command it belongs to, would destroy."""

    counts: Mapping[str, int] = NOTHING  # by full resource: {"pods": 14, "persistentvolumeclaims": 2}
    names: tuple[str, ...] = ()  # the first few, as `shop/web-1`
    exact: bool = True  # False: at least that many; not all could be counted

    # What a fan-out of single deletes works through: (group, resource, namespace, name, uid) of each.
    objects: tuple[tuple[str, str, str, str, str], ...] = field(default=(), repr=False)

    @property
    def total(self) -> int:
        return sum(self.counts.values())


@dataclass(frozen=True, slots=True)
class Operation:
    """
    What a request does: RequestInfo plus what only a gateway adds.

    `name` is the URL's name, else `metadata.name` of a POSTed object, else "" (open: a
    list, a generateName). `namespace` is RequestInfo's. `impacts` is never empty.
    Fields that begin with `claimed_` are the client's word and may only raise a verdict.
    """

    info: RequestInfo
    method: str
    impacts: frozenset[Impact]
    name: str = ""
    dry_run: bool = False  # the API server will persist nothing; False when in doubt
    uses: Uses | None = None  # None: nothing in it has a pod template
    kind: str = ""  # of the body's object
    labels: Mapping[str, str] = NOTHING  # of the body's object
    media_type: str = ""  # of the body, without parameters; "" when there is none
    upgrade: str = ""  # "", "websocket" or "spdy"
    reach: Reach | None = None  # None: destroys nothing beyond what `impacts` says of one object
    command: str = ""  # reconstructed from the wire: "kubectl delete pods --all -n shop"; for people, never for allow
    summary: str = ""  # one line for people: "delete pod shop/web-1 (3 of 14 in this command)"
    claimed_command: str = ""  # Kubectl-Command: "kubectl delete"
    claimed_session: str = ""  # Kubectl-Session
    # The decoded body: a dict, a list (JSON patch), or None. Never logged as it is.
    body: Any = field(default=None, repr=False, compare=False)

    @property
    def severity(self) -> Impact:
        return max(self.impacts)


class Action(enum.IntEnum):
    """Ordered: the greatest of all matching rules wins."""

    ALLOW = 1
    HOLD = 2
    DENY = 3


@dataclass(frozen=True, slots=True)
class Approval:
    """Who must say yes to what a hold rule holds, and for how long a yes counts."""

    groups: tuple[str, ...] = ()
    users: tuple[str, ...] = ()
    needed: int = 1  # different people
    wait: int = 25  # seconds the request is held open; real clients give up after 30 (mcp: kubectl apply)
    valid: int = 900  # seconds from the yes to its use; and how long a question stays open
    max_token_age: int = 900  # seconds since the approver logged in
    claims: str = ""  # CEL over the approver's `identity` and `claims`; "" asks for nothing more
    owner: str = ""  # CEL over `identity`: for whom it acts. An approver of the same owner is no second person
    require_reason: bool = False
    max_pending: int = 5  # open questions of one requester; one more is refused without asking
    cooldown: int = 900  # seconds after a no in which the same request is refused without asking
    drift: int = 0  # objects by which a namespace may grow between the yes and its deletion; volumes never
    retry: bool = False  # an undecided request gets 429 and Retry-After: clients of client-go then poll
    grant_for: int = 0  # seconds that a yes opens the rule for this requester; 0: for this request only
    grant_scope: str = "namespace"  # of such a grant: "namespace" or "rule" (everywhere)


@dataclass(frozen=True, slots=True)
class Hold:
    """One hold rule that matched. All holds of a verdict must be satisfied, not just one."""

    policy: str
    rule: str
    message: str
    approval: Approval
    digest: str = ""  # of the rule's text: a grant is for the rule as it was


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do with an operation, by which rule, and one line that says so. `Verdict()` denies."""

    action: Action = Action.DENY
    rule: str = ""  # "" when no rule matched
    policy: str = ""  # name of the policy the rule is in
    revision: str = ""  # of all policies loaded together
    message: str = "nothing allows this"
    observed: tuple["Verdict", ...] = ()  # what policies in observe mode would have said
    holds: tuple[Hold, ...] = ()  # every hold rule that matched; only when action is HOLD
    record: str = ""  # the highest of RECORD_LEVELS that the rules behind it name; "" when none does
