"""
The OpenAPI v3 document of tollgate.dev/v1alpha1, for `kubectl explain` and for editors.

Its paths are there for kubectl, too: it looks for the query parameters of the PATCH of a kind to
learn whether the server knows `fieldValidation` and `dryRun`, and takes a kind's name from them.
"""

from collections.abc import Mapping
from typing import Any

from addons.core.virtualobjects import (
    API_VERSION,
    APPROVALS,
    GRANTS,
    REQUESTS,
    RESOURCES,
    REVOCATIONS,
    VERSION,
    Resource,
)
from addons.core.virtualstatus import GROUP

type Schema = dict[str, Any]

_PREFIX = "dev.tollgate.v1alpha1."
_META = "io.k8s.apimachinery.pkg.apis.meta.v1."


def _text(description: str, **more: Any) -> Schema:
    return {"description": description, "type": "string", **more}


def _time(description: str) -> Schema:
    return _text(description, format="date-time")


def _number(description: str) -> Schema:
    return {"description": description, "type": "integer", "format": "int64"}


def _truth(description: str) -> Schema:
    return {"description": description, "type": "boolean"}


def _texts(description: str) -> Schema:
    return {"description": description, "type": "array", "items": {"type": "string", "default": ""}}


def _counts(description: str) -> Schema:
    return {"description": description, "type": "object", "additionalProperties": {"type": "integer", "default": 0}}


def _object(description: str, properties: Mapping[str, Schema], required: tuple[str, ...] = ()) -> Schema:
    found: Schema = {"description": description, "type": "object", "properties": dict(properties)}
    return found | ({"required": list(required)} if required else {})


def _ref(name: str, description: str = "") -> Schema:
    reference = {"$ref": f"#/components/schemas/{name}"}
    return {"description": description, "allOf": [reference], "default": {}} if description else reference


def _list(description: str, of: Schema) -> Schema:
    return {"description": description, "type": "array", "items": of}


_REQUESTER = _object(
    "Who asked, from a verified token.",
    {
        "username": _text("The identity's name."),
        "uid": _text("Its uid."),
        "groups": _texts("Its groups."),
        "issuer": _text("Who issued the token."),
        "credentialID": _text("The token's id, or a hash of the token where it has none."),
    },
)
_RULE = _object(
    "A rule of the policies that asks for a yes.",
    {
        "name": _text("Policy and rule: agents/new-namespace."),
        "message": _text("Why the rule asks."),
        "approverGroups": _texts("Groups whose members may decide."),
        "approverUsers": _texts("Users who may decide."),
        "needed": _number("How many different people must say yes."),
        "requireReason": _truth("A decision must give a reason."),
        "requesterOwner": _text("For whom the requester acts; an approver of the same owner does not count."),
    },
)
_ITEM = _object(
    "One request that the approval lets through, once.",
    {
        "what": _text("What it does."),
        "uid": _text("uid of the object that the approver was shown."),
        "resourceVersion": _text("Its resourceVersion at that time."),
    },
)
_PREVIEW = _object(
    "What would happen, masked. What could not be found out is in the notes.",
    {
        "diff": _text("The object as it is and as it would be, a unified diff of YAML, by the server's dry run."),
        "counts": _counts("How many objects would go, by resource."),
        "names": _texts("The first of them."),
        "exact": _truth("False: at least so many."),
        "notes": _texts("What else is to be known, and what could not be found out."),
        "argv": _texts("The command line of an exec."),
    },
)
_DECISION = _object(
    "One person's yes or no.",
    {
        "username": _text("Who."),
        "decision": _text("Approved or Denied."),
        "reason": _text("Why."),
        "time": _time("When."),
        "via": _text("api, or operator: at the console of the gateway itself."),
        "rules": _texts("The rules that it counts for."),
    },
)
_USE = _object(
    "A request that went through.",
    {
        "what": _text("What it did."),
        "auditID": _text("Its Audit-ID, the same in the API server's audit log."),
        "time": _time("When."),
    },
)
_CONDITION = _object(
    "As in all of Kubernetes.",
    {
        "type": _text("Approved or Decided; of a Grant: Active; of a Revocation: InForce."),
        "status": _text("True or False."),
        "reason": _text("The phase."),
        "message": _text("One sentence."),
        "lastTransitionTime": _time("Since when."),
    },
    ("type", "status"),
)
_DECIDE = {
    "decision": _text(
        "Approved or Denied. To be set by an approver, who needs a token with the audience tollgate-approver. "
        "Empty until enough people have decided.",
        enum=["", "Approved", "Denied"],
    ),
    "reason": _text("Why; set together with the decision. Some rules want one."),
}
_ASKED = {
    "requester": _ref(f"{_PREFIX}Requester", "Who asked."),
    "summary": _text("What is asked for, in one line."),
    "rules": _list("The rules that ask; all of them must be satisfied.", _ref(f"{_PREFIX}Rule")),
    "expires": _time("Until then it can be decided."),
    "policyRevision": _text("Revision of the policies that asked."),
}
_STATUS = {
    "phase": _text(
        "Pending, Approved, Denied, Expired, Cancelled, Used, or Void: what the approver saw is no longer so.",
    ),
    "message": _text("Why it is in this phase."),
    "waiting": _truth("A client is being held for it."),
    "decisions": _list("Who has said what.", _ref(f"{_PREFIX}Decision")),
    "missing": _counts("How many more people must say yes, by rule."),
    "decidedAt": _time("When enough had decided."),
    "validUntil": _time("Until then a yes can be used."),
    "endedAt": _time("When it came to its last phase."),
    "usedBy": _list("What went through by it.", _ref(f"{_PREFIX}Use")),
    "grant": _text("The Grant that the yes has made."),
    "conditions": _list("For kubectl wait --for=condition=Approved.", _ref(f"{_PREFIX}Condition")),
}

_SPECS: Mapping[str, Schema] = {
    APPROVALS.plural: _object(
        "What was asked. Only decision and reason can be changed.",
        {
            **_ASKED,
            "command": _text("The command as it may have been typed; reconstructed, or the client's own word."),
            "verb": _text("What the request does, as in audit.k8s.io."),
            "resource": _text("On what: deployments.apps, pods/exec."),
            "namespace": _text("Where; empty for objects in none."),
            "impacts": _texts("What it may do at worst: write, delete, mass-delete, execute, escalate."),
            "items": _list("The requests that it lets through, at most the first 100.", _ref(f"{_PREFIX}Item")),
            "itemCount": _number("How many they are."),
            "content": _counts("What was in a namespace or of a kind that is to be deleted, by resource."),
            "preview": _ref(f"{_PREFIX}Preview", "What would happen."),
            "notRepeatable": _text("Why the same request cannot be sent again; empty when it can."),
            **_DECIDE,
        },
    ),
    REQUESTS.plural: _object(
        "Access that is asked for ahead. A yes makes a Grant.",
        {
            **_ASKED,
            "verbs": _texts("For which verbs: [get, delete]."),
            "resources": _texts("On what: [pods, deployments.apps, pods/exec]."),
            "namespace": _text("In which namespace; * is everywhere."),
            "duration": _text("For how long, from the yes on: 30m, 1h30m. From 1m to 8h."),
            "justification": _text("Why, for whoever decides."),
            **_DECIDE,
        },
        ("verbs", "resources", "namespace", "duration", "justification"),
    ),
    GRANTS.plural: _object(
        "What a yes opened. Only revoked can be changed.",
        {
            "requester": _ref(f"{_PREFIX}Requester", "For whom."),
            "rules": _texts("The rules that it satisfies, and no others."),
            "verbs": _texts("For which verbs; empty: all that the rules hold."),
            "resources": _texts("On what; empty: all that the rules hold."),
            "namespace": _text("Where; * is everywhere."),
            "source": _text("Name of the Approval or AccessRequest that it comes from."),
            "revoked": _truth("Set it to true to end the grant at once. kubectl delete does the same."),
        },
    ),
    REVOCATIONS.plural: _object(
        "Whose requests are refused. Fields that are given must all match; at least one is. Cannot be changed.",
        {
            "user": _text("Name of the identity, as approvals have it."),
            "tokenID": _text("The token's id (jti), or the hash that stands in its place; see credentialID."),
            "issuedBefore": _time("Tokens that were issued before; now is the time of this moment."),
            "allAgents": _truth("Everybody whom no people clause of the policies matches."),
            "owner": _text("For whom they act, by the claim that tollgate_owner_claim names."),
            "expires": _time("Until when; without it, until it is lifted."),
            "duration": _text("In place of expires: 30m, 2h, 7d from now."),
            "reason": _text("Why, for those who look at it later. Whoever is refused does not get it."),
        },
    ),
}
_REVOCATION_STATUS = _object(
    "How it stands.",
    {
        "phase": _text("InForce, Lifted or Expired."),
        "summary": _text("Whom it refuses, in a line."),
        "by": _text("Who revoked."),
        "via": _text("api, or operator: at the gateway's own machine."),
        "liftedAt": _time("When it was lifted."),
        "liftedBy": _text("By whom."),
        "conditions": _list("For kubectl wait --for=condition=InForce=false.", _ref(f"{_PREFIX}Condition")),
    },
)
_GRANT_STATUS = _object(
    "How it stands.",
    {
        "phase": _text("Active, Expired or Revoked."),
        "since": _time("From when."),
        "until": _time("Until when."),
        "approvers": _texts("Who said yes."),
        "revokedAt": _time("When it was taken back."),
        "revokedBy": _text("By whom."),
        "conditions": _list("For kubectl wait --for=condition=Active=false.", _ref(f"{_PREFIX}Condition")),
    },
)
_DESCRIPTIONS: Mapping[str, str] = {
    APPROVALS.plural: (
        "An Approval is one command that a rule holds, and the decision on it. It lets exactly that command through, "
        "once. Decide with: kubectl patch approval NAME --type=merge -p "
        '\'{"spec":{"decision":"Approved","reason":"..."}}\'. Deleting it cancels it.'
    ),
    REQUESTS.plural: (
        "An AccessRequest asks for access ahead of time. Create one and wait for it: kubectl wait accessrequest NAME "
        "--for=condition=Approved. Deleting it cancels it."
    ),
    GRANTS.plural: (
        "A Grant is a yes that stands for some time: for one identity, some rules and a scope. Deleting it revokes it."
    ),
    REVOCATIONS.plural: (
        "A Revocation refuses whoever it names, within a second, and ends what they have open. Deleting it lifts it, "
        "which needs a token with the audience tollgate-approver and is not for whom it may have hit himself."
    ),
}


def _gvk(kind: str) -> dict[str, str]:
    return {"group": GROUP, "version": VERSION, "kind": kind}


def _schemas() -> dict[str, Schema]:
    found = {
        f"{_PREFIX}{name}": schema
        for name, schema in (
            ("Requester", _REQUESTER),
            ("Rule", _RULE),
            ("Item", _ITEM),
            ("Preview", _PREVIEW),
            ("Decision", _DECISION),
            ("Use", _USE),
            ("Condition", _CONDITION),
        )
    }
    for resource in RESOURCES.values():
        found |= _kind(resource)
    found[f"{_META}ObjectMeta"] = _object(
        "Standard object's metadata, as far as it is kept here.",
        {
            "name": _text("Name; cannot be changed."),
            "generateName": _text("Beginning of a name that the server completes, where no name is given."),
            "uid": _text("Unique in time and space."),
            "resourceVersion": _text("Of this state of the object; sent back, a change of another state is refused."),
            "creationTimestamp": _time("When it was asked."),
            "labels": {
                "description": "tollgate.dev/phase and tollgate.dev/user.",
                "type": "object",
                "additionalProperties": {"type": "string", "default": ""},
            },
        },
    )
    found[f"{_META}ListMeta"] = _object("A list's metadata.", {"resourceVersion": _text("Of the whole list.")})
    return found


def _kind(resource: Resource) -> dict[str, Schema]:
    name = f"{_PREFIX}{resource.kind}"
    types = {"apiVersion": _text(f"{API_VERSION}."), "kind": _text(f"{resource.kind}.")}
    special = {GRANTS.plural: _GRANT_STATUS, REVOCATIONS.plural: _REVOCATION_STATUS}
    status = special.get(resource.plural) or _object("What has become of it.", _STATUS)
    return {
        f"{name}Spec": _SPECS[resource.plural],
        f"{name}Status": status,
        name: {
            **_object(
                _DESCRIPTIONS[resource.plural],
                {
                    **types,
                    "metadata": _ref(f"{_META}ObjectMeta", "Standard object's metadata."),
                    "spec": _ref(f"{name}Spec"),
                    "status": _ref(f"{name}Status"),
                },
            ),
            "x-kubernetes-group-version-kind": [_gvk(resource.kind)],
        },
        f"{name}List": {
            **_object(
                f"A list of {resource.plural}.",
                {
                    "apiVersion": _text(f"{API_VERSION}."),
                    "kind": _text(f"{resource.kind}List."),
                    "metadata": _ref(f"{_META}ListMeta", "Standard list metadata."),
                    "items": _list("The objects.", _ref(name)),
                },
                ("items",),
            ),
            "x-kubernetes-group-version-kind": [_gvk(f"{resource.kind}List")],
        },
    }


_ONE = {"get": "get", "update": "put", "patch": "patch", "delete": "delete"}
_ALL = {"list": "get", "create": "post"}
_PARAMETERS: Mapping[str, tuple[str, ...]] = {
    "list": (
        *("labelSelector", "fieldSelector", "watch", "allowWatchBookmarks", "sendInitialEvents"),
        *("resourceVersion", "resourceVersionMatch", "timeoutSeconds"),
    ),
    "create": ("dryRun", "fieldValidation"),
    "update": ("dryRun", "fieldValidation"),
    "patch": ("dryRun", "fieldValidation"),
    "delete": ("dryRun",),
}
_TYPES = {"watch": "boolean", "allowWatchBookmarks": "boolean", "sendInitialEvents": "boolean",
          "timeoutSeconds": "integer"}  # fmt: skip
_PATCHES = ("application/json-patch+json", "application/merge-patch+json", "application/strategic-merge-patch+json")


def _paths() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for resource in RESOURCES.values():
        path = f"/apis/{API_VERSION}/{resource.plural}"
        found[path] = {m: _operation(resource, v) for v, m in _ALL.items() if v in resource.verbs}
        one = {m: _operation(resource, v) for v, m in _ONE.items() if v in resource.verbs}
        found[f"{path}/{{name}}"] = {**one, "parameters": [_parameter("name", "path")]}
    return found


def _parameter(name: str, place: str) -> dict[str, Any]:
    schema = {"type": _TYPES.get(name, "string"), "uniqueItems": True}
    return {"name": name, "in": place, "schema": schema, **({"required": True} if place == "path" else {})}


def _operation(resource: Resource, verb: str) -> dict[str, Any]:
    kind = f"{resource.kind}List" if verb == "list" else resource.kind
    answer = {"application/json": {"schema": _ref(f"{_PREFIX}{kind}")}}
    found: dict[str, Any] = {
        "operationId": f"{verb}Tollgate{VERSION.capitalize()}{resource.kind}",
        "parameters": [_parameter(name, "query") for name in _PARAMETERS.get(verb, ())],
        "responses": {"201" if verb == "create" else "200": {"description": "OK", "content": answer}},
        "x-kubernetes-action": {"update": "put", "create": "post"}.get(verb, verb),
        "x-kubernetes-group-version-kind": _gvk(resource.kind),
    }
    if verb in ("create", "update"):
        found["requestBody"] = {"content": {"*/*": {"schema": _ref(f"{_PREFIX}{resource.kind}")}}, "required": True}
    elif verb == "patch":
        found["requestBody"] = {"content": {p: {"schema": {"type": "object"}} for p in _PATCHES}, "required": True}
    return found


def document() -> dict[str, Any]:
    return {
        "openapi": "3.0.0",
        "info": {"title": "Tollgate", "version": VERSION},
        "paths": _paths(),
        "components": {"schemas": _schemas()},
    }
