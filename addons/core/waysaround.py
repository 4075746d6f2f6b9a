"""
Ways around the gateway: identities of its callers that can reach the API server by themselves.

A caller from the cluster is a ServiceAccount that holds RBAC under the name that only the gateway gives
(`tollgate:system:serviceaccount:NAMESPACE:NAME`). If its own name is bound to anything too, each of its
ordinary tokens works directly: those that a pod mounts, and those of token Secrets.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from addons.core.authconfig import CLUSTER_AUDIENCES, CLUSTER_PREFIX
from addons.core.doctor import Finding, Level, count, listed

_ACCOUNT, _ACCOUNTS = "system:serviceaccount:", "system:serviceaccounts"
# Groups of every ServiceAccount.
_ALL = frozenset({_ACCOUNTS, "system:authenticated"})
# What Kubernetes itself gives to everybody: questions about oneself, discovery, keys.
_HARMLESS = frozenset(
    {
        "system:basic-user",
        "system:discovery",
        "system:public-info-viewer",
        "system:service-account-issuer-discovery",
    }
)

type Account = tuple[str, str]  # namespace and name of a ServiceAccount


@dataclass(frozen=True, slots=True)
class Cluster:
    """What was read of a cluster, as the API server's JSON. None: could not be read."""

    bindings: Sequence[Mapping[str, Any]] | None = None  # ClusterRoleBindings and RoleBindings
    accounts: Sequence[Account] | None = None
    pods: Sequence[Mapping[str, Any]] | None = None
    token_secrets: Sequence[Mapping[str, Any]] | None = None  # metadata only, of that type


def callers(cluster: Cluster) -> tuple[list[str], list[str]]:
    """Users and groups that only the gateway can be: as whom it must be able to act."""
    users: set[str] = set()
    groups: set[str] = set()
    for binding in cluster.bindings or ():
        for subject in binding.get("subjects") or ():
            name = str(subject.get("name"))
            if name.startswith(CLUSTER_PREFIX):
                (users if subject.get("kind") == "User" else groups).add(name)
    for namespace, name in agents(cluster):
        users.add(f"{CLUSTER_PREFIX}{_ACCOUNT}{namespace}:{name}")
        groups |= {f"{CLUSTER_PREFIX}{_ACCOUNTS}", f"{CLUSTER_PREFIX}{_ACCOUNTS}:{namespace}"}
    return sorted(users), sorted(groups)


def agents(cluster: Cluster) -> list[Account]:
    """The ServiceAccounts that hold RBAC under the gateway's names."""
    found: set[Account] = set()
    for binding in cluster.bindings or ():
        for subject in binding.get("subjects") or ():
            name = str(subject.get("name"))
            if not name.startswith(CLUSTER_PREFIX):
                continue
            name = name.removeprefix(CLUSTER_PREFIX)
            if subject.get("kind") == "User" and name.startswith(_ACCOUNT) and name.count(":") == 3:
                _, _, namespace, account = name.split(":")
                found.add((namespace, account))
            elif subject.get("kind") == "Group" and name.startswith(f"{_ACCOUNTS}:"):
                namespace = name.removeprefix(f"{_ACCOUNTS}:")
                found |= {account for account in cluster.accounts or () if account[0] == namespace}
    return sorted(found)


def findings(cluster: Cluster) -> Iterator[Finding]:
    """What lets a caller from the cluster past the gateway."""
    if cluster.bindings is None:
        yield Finding(
            "around",
            Level.NOTE,
            "whether agents have a way around the gateway could not be looked at: bindings cannot be listed",
            "give --auditor a kubeconfig that may read RBAC, ServiceAccounts, pods and Secrets' metadata",
        )
        return
    accounts = agents(cluster)
    if not accounts:
        yield Finding(
            "around", Level.NOTE, f"no ServiceAccount holds RBAC under a name of the gateway's ({CLUSTER_PREFIX}…)"
        )
        return
    direct: set[Account] = set()
    for account in accounts:
        roles = own_roles(account, cluster.bindings)
        if roles:
            direct.add(account)
            namespace, name = account
            yield Finding(
                "around",
                Level.PROBLEM,
                f"{name} in {namespace} holds RBAC under its own name ({listed(roles)}) and can go past the gateway",
                f"bind {CLUSTER_PREFIX}{_ACCOUNT}{namespace}:{name} (kind User) instead",
            )
    for unread, what in ((cluster.pods, "pods"), (cluster.token_secrets, "token Secrets")):
        if unread is None:
            yield Finding("around", Level.NOTE, f"{what} could not be looked at for agents' tokens")
    for account in accounts:
        yield from _tokens(account, cluster, Level.PROBLEM if account in direct else Level.WARNING)
    if not direct:
        text = f"none of {count(accounts, 'ServiceAccount')} that come through the gateway has rights of its own"
        yield Finding("around", Level.OK, text)


def own_roles(account: Account, bindings: Iterable[Mapping[str, Any]]) -> list[str]:
    """The roles that the ServiceAccount has under its own name and groups, but for what everybody has."""
    found: dict[str, None] = {}
    for binding in bindings:
        role = binding.get("roleRef") or {}
        metadata = binding.get("metadata") or {}
        where = metadata.get("namespace")
        for subject in binding.get("subjects") or ():
            if not _is(subject, account, where):
                continue
            if subject.get("name") in _ALL and role.get("name") in _HARMLESS:
                continue
            found[f"{role.get('name')}{f' in {where}' if where else ''}"] = None
    return list(found)


def _is(subject: Mapping[str, Any], account: Account, where: Any) -> bool:
    namespace, name = account
    match subject.get("kind"):
        case "ServiceAccount":
            return (subject.get("namespace") or where, subject.get("name")) == account
        case "User":
            return subject.get("name") == f"{_ACCOUNT}{namespace}:{name}"
        case "Group":
            return subject.get("name") in _ALL | {f"{_ACCOUNTS}:{namespace}"}
    return False


def _tokens(account: Account, cluster: Cluster, level: Level) -> Iterator[Finding]:
    namespace, name = account
    mounting = [
        str(pod["metadata"]["name"])
        for pod in cluster.pods or ()
        if pod["metadata"].get("namespace") == namespace
        and (pod["spec"].get("serviceAccountName") or "default") == name
        and mounts_token(pod["spec"])
    ]
    if mounting:
        yield Finding(
            "around",
            level,
            f"pods of {name} in {namespace} mount a token for the API server itself: {listed(mounting)}",
            "set automountServiceAccountToken: false, and project one for the audience tollgate",
        )
    secrets = [
        str(secret["metadata"]["name"])
        for secret in cluster.token_secrets or ()
        if secret["metadata"].get("namespace") == namespace
        and (secret["metadata"].get("annotations") or {}).get("kubernetes.io/service-account.name") == name
    ]
    if secrets:
        yield Finding(
            "around",
            level,
            f"{name} in {namespace} has tokens without an end in Secrets: {listed(secrets)}",
            "delete them; `kubectl create token --audience tollgate` makes one that ends",
        )


def mounts_token(spec: Mapping[str, Any]) -> bool:
    """Whether a container of the pod sees a token that the API server itself takes (as admitted: volumes are there)."""
    names = {
        volume.get("name")
        for volume in spec.get("volumes") or ()
        for source in (volume.get("projected") or {}).get("sources") or ()
        # Without an audience it is the API server's own. A foreign one may be among --api-audiences: it counts.
        if "serviceAccountToken" in source
        and (source["serviceAccountToken"] or {}).get("audience") not in CLUSTER_AUDIENCES
    }
    containers = [c for key in ("initContainers", "containers", "ephemeralContainers") for c in spec.get(key) or ()]
    return any(mount.get("name") in names for c in containers for mount in c.get("volumeMounts") or ())
