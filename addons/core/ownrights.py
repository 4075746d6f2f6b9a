"""
The blast radius of the gateway's own credential: what it could do if it were stolen, or if the gateway
were, by the API server's own word (SelfSubjectAccessReview, SelfSubjectRulesReview); and the RBAC that
would be enough.

A gateway needs hardly anything: it acts as its callers, each by name. `impersonate groups` without names
is cluster-admin (`Impersonate-Group: system:masters`), `impersonate users` without names is the
controller manager.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from addons.core.doctor import Finding, Level, count, listed
from addons.core.upstreamrequest import MARK_KEY, MARK_VALUE

MASTERS = "system:masters"  # no authorizer is asked about this group
PROPOSED = "system:serviceaccount:tollgate:gateway"  # deploy/kubernetes/base
CONTROLLER_MANAGER = "system:kube-controller-manager"
AUTHENTICATION, AUTHORIZATION, RBAC = "authentication.k8s.io", "authorization.k8s.io", "rbac.authorization.k8s.io"


@dataclass(frozen=True, slots=True)
class Question:
    """Attributes of a SelfSubjectAccessReview. `name` "" asks for all names, `namespace` "" for all namespaces."""

    verb: str
    resource: str = ""
    group: str = ""
    subresource: str = ""
    name: str = ""
    path: str = ""  # of a non-resource URL

    def spec(self) -> dict[str, Any]:
        if self.path:
            return {"nonResourceAttributes": {"verb": self.verb, "path": self.path}}
        asked = {
            "verb": self.verb,
            "resource": self.resource,
            "group": self.group,
            "subresource": self.subresource,
            "name": self.name,
        }
        return {"resourceAttributes": {key: value for key, value in asked.items() if value}}


type Answers = Mapping[Question, bool]  # what nobody could answer is left out

EVERYTHING = Question("*", "*", "*")
ANY_GROUP = Question("impersonate", "groups")
AS_MASTERS = Question("impersonate", "groups", name=MASTERS)
ANY_USER = Question("impersonate", "users")
AS_CONTROLLERS = Question("impersonate", "users", name=CONTROLLER_MANAGER)
ANY_ACCOUNT = Question("impersonate", "serviceaccounts")
# Constrained impersonation (Kubernetes 1.35 and later) has verbs of its own, and limits what is done as the other:
# `impersonate-on:user-info:list` for lists. Free, and with every action, it is the same power.
CONSTRAINED = (
    Question("impersonate:user-info", "users", AUTHENTICATION),
    Question("impersonate:user-info", "groups", AUTHENTICATION),
)
GRANTS = (
    Question("bind", "clusterroles", RBAC),
    Question("escalate", "clusterroles", RBAC),
)

# Plain powers, worst first: what a thief would do with them. None of them is needed.
POWERS: Mapping[Question, str] = {
    Question("delete", "namespaces"): "delete every namespace",
    Question("list", "secrets"): "read every Secret",
    Question("get", "secrets"): "read every Secret by name",
    Question("deletecollection", "pods"): "delete all pods at once",
    Question("create", "pods", subresource="exec"): "run commands in every pod",
    Question("create", "pods"): "run pods as any ServiceAccount",
    Question("create", "serviceaccounts", subresource="token"): "make tokens of every ServiceAccount",
    Question("create", "clusterrolebindings", RBAC): "bind ClusterRoles",
    Question("update", "clusterroles", RBAC): "change ClusterRoles",
    Question("delete", "persistentvolumes"): "delete every PersistentVolume",
    Question("create", "nodes", subresource="proxy"): "speak to every kubelet",
    Question("update", "certificatesigningrequests", "certificates.k8s.io", "approval"): "approve client certificates",
    Question("update", "validatingwebhookconfigurations", "admissionregistration.k8s.io"): "change admission webhooks",
    Question("delete", "validatingadmissionpolicies", "admissionregistration.k8s.io"): "delete admission policies",
    Question("update", "configmaps"): "change every ConfigMap",
    Question("update", "deployments", "apps"): "change every Deployment",
}

REVIEW_TOKENS = Question("create", "tokenreviews", AUTHENTICATION)
REVIEW_ACCESS = Question("create", "subjectaccessreviews", AUTHORIZATION)
MARK = Question("impersonate", "userextras", AUTHENTICATION, MARK_KEY, MARK_VALUE)
UIDS = Question("impersonate", "uids", AUTHENTICATION)
KEYS = Question("get", path="/openid/v1/jwks")

# What the gateway cannot do without, and what fails then.
NEEDED: Mapping[Question, str] = {
    REVIEW_TOKENS: "create tokenreviews: tokens of the cluster are refused",
    UIDS: "impersonate uids: requests of callers with a uid are refused",
    MARK: f"impersonate userextras/{MARK_KEY} {MARK_VALUE}: every request is refused",
    KEYS: "get /openid/v1/jwks (system:service-account-issuer-discovery): tokens of the cluster are refused",
}
# Only for what approvers are shown of an exec.
WANTED: Mapping[Question, str] = {
    REVIEW_ACCESS: "create subjectaccessreviews: approvers are not shown what the pod's ServiceAccount may do",
}

QUESTIONS: tuple[Question, ...] = (
    EVERYTHING,
    ANY_GROUP,
    AS_MASTERS,
    ANY_USER,
    AS_CONTROLLERS,
    ANY_ACCOUNT,
    *CONSTRAINED,
    *GRANTS,
    *POWERS,
    *NEEDED,
    *WANTED,
)
# Enough to tell whether it is cluster-admin: asked at each start.
ADMIN_QUESTIONS: tuple[Question, ...] = (EVERYTHING, AS_MASTERS, *GRANTS)

_NARROW = "bind it to what ./run.sh doctor --rbac prints, and to nothing else"
_REPLACE = "give the gateway another identity, with what ./run.sh doctor --rbac prints: no RBAC narrows this one"


def cluster_admin(answers: Answers, groups: Iterable[str]) -> str:
    """Why whoever has this credential is cluster-admin or can make himself so; "" when he is not."""
    if MASTERS in groups:
        return f"it is in the group {MASTERS}, which no RBAC limits"
    if answers.get(EVERYTHING):
        return "it may do everything"
    if answers.get(AS_MASTERS):
        free = "any group" if answers.get(ANY_GROUP, True) else "that group"
        return f"it may impersonate {free}: Impersonate-Group: {MASTERS} is cluster-admin"
    if all(answers.get(question) for question in GRANTS):
        return "it may bind and escalate ClusterRoles, so it can give itself everything"
    return ""


def blast_radius(answers: Answers, groups: Sequence[str], *, impersonates: bool = True) -> Iterator[Finding]:
    """
    What the credential could do. impersonates: False where the gateway acts as itself, and so needs its callers'
    rights.
    """
    asked = [question for question in QUESTIONS if question in answers]
    admin = cluster_admin(answers, groups)
    if not asked and not admin:
        yield Finding("rights", Level.NOTE, "what the gateway's own credential may do could not be asked")
        return
    powers = [phrase for question, phrase in POWERS.items() if answers.get(question)]
    if admin:
        powers = list(POWERS.values())
    if "read every Secret" in powers:
        powers = [phrase for phrase in powers if phrase != "read every Secret by name"]
    could = f"; this credential can {listed(powers, 4)}" if powers else ""
    if admin:
        text = f"the gateway's own credential is cluster-admin: {admin}{could}"
        yield Finding("rights", Level.PROBLEM, text, _REPLACE if MASTERS in groups else _NARROW)
    elif powers and impersonates:
        text = f"this credential can {listed(powers, 4)}, and the gateway needs none of it"
        yield Finding("rights", Level.PROBLEM, text, _NARROW)
    elif powers:
        yield Finding(
            "rights",
            Level.WARNING,
            f"the gateway acts as itself (--upstream-identity gateway) and can {listed(powers, 4)} for every caller",
            "impersonate the callers instead, so that RBAC tells them apart",
        )
    if not admin:
        yield from _impersonation(answers)
    for question, words in NEEDED.items():
        if impersonates and answers.get(question) is False:
            yield Finding("rights", Level.PROBLEM, f"the gateway may not {words}", _NARROW)
    for question, words in WANTED.items():
        if answers.get(question) is False:
            yield Finding("rights", Level.WARNING, f"the gateway may not {words}", _NARROW)


def _impersonation(answers: Answers) -> Iterator[Finding]:
    if answers.get(ANY_USER) or answers.get(AS_CONTROLLERS):
        free = "any user" if answers.get(ANY_USER) else CONTROLLER_MANAGER
        yield Finding(
            "rights",
            Level.PROBLEM,
            f"the gateway's own credential may impersonate {free}: Impersonate-User: {CONTROLLER_MANAGER} has the "
            "controller manager's rights, every Secret among them",
            "name the callers in resourceNames: ./run.sh doctor --rbac",
        )
    for question in CONSTRAINED:
        if answers.get(question):
            yield Finding(
                "rights",
                Level.PROBLEM,
                f"the gateway's own credential may impersonate all {question.resource} (impersonate:user-info), "
                "for whatever its impersonate-on rules let it do",
                "name the callers in resourceNames: ./run.sh doctor --rbac",
            )
    if answers.get(ANY_ACCOUNT):
        yield Finding(
            "rights",
            Level.PROBLEM,
            "the gateway's own credential may impersonate any ServiceAccount, and has the rights of the most powerful",
            "take `impersonate serviceaccounts` away: callers have names of their own",
        )


# Rules (SelfSubjectRulesReview)


@dataclass(frozen=True, slots=True)
class Rules:
    """What SelfSubjectRulesReviews listed: rules as they are written, in some namespaces."""

    resource_rules: tuple[Mapping[str, Any], ...] = ()
    incomplete: bool = False  # an authorizer does not list its rules (a webhook, Node)

    def names(self, resource: str) -> list[str]:
        """The names by which it may impersonate `users` or `groups`."""
        found: dict[str, None] = {}
        for rule in self.resource_rules:
            if {"impersonate", "*"} & set(rule.get("verbs") or ()) and resource in (rule.get("resources") or ()):
                found |= dict.fromkeys(rule.get("resourceNames") or ())
        return sorted(found)


def rules(statuses: Iterable[Mapping[str, Any]]) -> Rules:
    """Of the `status` of SelfSubjectRulesReviews, one a namespace."""
    found: dict[str, Mapping[str, Any]] = {}
    incomplete = False
    for status in statuses:
        incomplete = incomplete or bool(status.get("incomplete"))
        for rule in status.get("resourceRules") or ():
            found[_words(rule)] = rule
    return Rules(tuple(found.values()), incomplete)


def surplus(listed_rules: Rules) -> list[str]:
    """The rules that allow what a gateway does not need, in words; impersonation is judged elsewhere."""
    return [_words(rule) for rule in listed_rules.resource_rules if not _needed(rule)]


def _needed(rule: Mapping[str, Any]) -> bool:
    verbs, groups, resources = (frozenset(rule.get(key) or ()) for key in ("verbs", "apiGroups", "resources"))
    if "*" in verbs | groups | resources:
        return False
    if verbs == {"impersonate"}:
        return True
    # What every authenticated caller may (ClusterRole system:basic-user), and our two reviews.
    return (
        verbs == {"create"}
        and groups <= {AUTHENTICATION, AUTHORIZATION}
        and resources
        <= {
            "selfsubjectreviews",
            "selfsubjectaccessreviews",
            "selfsubjectrulesreviews",
            "tokenreviews",
            "subjectaccessreviews",
        }
    )


def _words(rule: Mapping[str, Any]) -> str:
    verbs = ",".join(rule.get("verbs") or ())
    groups = [group for group in rule.get("apiGroups") or () if group]
    resources = ",".join(rule.get("resources") or ())
    names = rule.get("resourceNames") or ()
    where = f" in {','.join(groups)}" if groups else ""
    return f"{verbs} {resources}{where}{f' named {listed(names, 3)}' if names else ''}"


def findings(listed_rules: Rules, answers: Answers, groups: Sequence[str]) -> Iterator[Finding]:
    """What the lists add to the blast radius."""
    if cluster_admin(answers, groups):
        return  # whatever else there is, it is in there
    more = surplus(listed_rules)
    if more:
        yield Finding("rights", Level.WARNING, f"its RBAC allows what a gateway does not need: {listed(more)}", _NARROW)
    users, some = listed_rules.names("users"), listed_rules.names("groups")
    if (users or some) and not answers.get(ANY_USER):
        yield Finding(
            "rights", Level.OK, f"it may act as {count(users, 'user')} and {count(some, 'group')}, each by name"
        )
    if listed_rules.incomplete:
        yield Finding("rights", Level.NOTE, "not all authorizers list their rules, so there may be more")


# What is enough


def enough(users: Iterable[str], groups: Iterable[str], extras: Iterable[str], username: str) -> str:
    """The RBAC that is enough, as YAML: what deploy/kubernetes/base has, with these callers."""
    named: dict[str, list[str]] = {"users": sorted(set(users)), "groups": sorted(set(groups))}
    caller_rules = [
        {"apiGroups": [""], "resources": [resource], "resourceNames": names or [_PLACEHOLDER[resource]],
         "verbs": ["impersonate"]}
        for resource, names in named.items()
    ]  # fmt: skip
    keys = [
        {"apiGroups": [AUTHENTICATION], "resources": [f"userextras/{key}"], "verbs": ["impersonate"]}
        for key in sorted(set(extras))
    ]
    own_rules = [
        {"apiGroups": [AUTHENTICATION], "resources": ["tokenreviews"], "verbs": ["create"]},
        {"apiGroups": [AUTHORIZATION], "resources": ["subjectaccessreviews"], "verbs": ["create"]},
        {"apiGroups": [AUTHENTICATION], "resources": ["uids"], "verbs": ["impersonate"]},
        {"apiGroups": [AUTHENTICATION], "resources": [f"userextras/{MARK_KEY}"], "resourceNames": [MARK_VALUE],
         "verbs": ["impersonate"]},
        *keys,
    ]  # fmt: skip
    documents = []
    for name, these in (("tollgate-gateway", own_rules), ("tollgate-callers", caller_rules)):
        metadata = {"name": name}
        documents += [
            {"apiVersion": f"{RBAC}/v1", "kind": "ClusterRole", "metadata": metadata, "rules": these},
            {
                "apiVersion": f"{RBAC}/v1",
                "kind": "ClusterRoleBinding",
                "metadata": metadata,
                "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": name},
                "subjects": [subject(username)],
            },
        ]
    return yaml.dump_all(documents, Dumper=_Plain, sort_keys=False)


class _Plain(yaml.SafeDumper):
    """No anchors: people read it."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_PLACEHOLDER = {
    "users": "tollgate:system:serviceaccount:NAMESPACE:NAME",
    "groups": "tollgate:system:serviceaccounts:NAMESPACE",
}


def subject(username: str) -> dict[str, str]:
    """An RBAC subject for a username."""
    parts = username.split(":")
    if len(parts) == 4 and username.startswith("system:serviceaccount:"):
        return {"kind": "ServiceAccount", "name": parts[3], "namespace": parts[2]}
    return {"apiGroup": RBAC, "kind": "User", "name": username}
