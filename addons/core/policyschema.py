"""
The policy language as a JSON Schema, for editors: names and values from the loader's own tables.

The loader says more (`./run.sh policy check`); what the schema refuses, it refuses too.
"""

from collections.abc import Sequence
from typing import Any

from addons.core import budgets, maskfile, policyfields, policyfile
from addons.core.matching import VERBS
from addons.core.model import RECORD_LEVELS, Impact

Schema = dict[str, Any]

_NAME: Schema = {"type": "string", "pattern": "^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$"}
_TEXT: Schema = {"type": "string", "minLength": 1}
_CEL: Schema = {
    **_TEXT,
    "description": "CEL: identity, operation, request; object, oldObject, namespaceObject in rules",
}
_DURATION: Schema = {
    "type": "string",
    "pattern": "^([0-9]+h)?([0-9]+m)?([0-9]+s)?$",
    "minLength": 2,
    "description": "25s, 15m, 1h30m",
}


def schema() -> Schema:
    """The schema of one document of a policy file."""
    fields: dict[str, Schema] = {
        "apiVersion": {"const": policyfile.API_VERSION},
        "kind": {"const": "Policy"},
        "metadata": _object({"name": _NAME}, ["name"]),
        "mode": {"enum": ["enforce", "observe"], "description": "observe: it decides nothing, its verdict is logged"},
        "people": {**_TEXT, "description": "CEL over identity: who is not an agent"},
        "auditors": {**_named(), "description": "who sees all approvals"},
        "rules": _list(_rule()),
        "budgets": _list(_budget()),
        "mask": _list(_mask()),
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Tollgate policy",
        "description": "What an identity may do to the cluster, and what a human must agree to. See README.md.",
        **_object(_only(fields, policyfile.DOCUMENT_FIELDS), ["apiVersion", "kind", "metadata"]),
        "anyOf": [{"required": [field]} for field in ("rules", "budgets", "mask", "people", "auditors")],
    }


def _rule() -> Schema:
    fields: dict[str, Schema] = {
        "name": {**_NAME, "description": "unique in the policy; messages say POLICY/NAME"},
        "action": {"enum": ["allow", "hold", "deny"], "description": "deny > hold > allow; nothing matched: deny"},
        "match": _match(),
        "when": {**_CEL, "description": f"the rule applies only if true. {_CEL['description']}"},
        "unless": {**_CEL, "description": f"the rule does not apply if true. {_CEL['description']}"},
        "message": _message(policyfields.MAX_MESSAGE),
        "record": {"enum": list(RECORD_LEVELS), "description": "how much is recorded; full: the answer too"},
        "approval": _approval(),
        "grant": {
            **_object(
                _only(
                    {
                        "for": {**_DURATION, "description": "1m to 8h"},
                        "scope": {
                            "enum": list(policyfields.GRANT_SCOPES),
                            "description": "the request's namespace, or everywhere (namespace)",
                        },
                    },
                    policyfields.GRANT_FIELDS,
                ),
                ["for"],
            ),
            "description": "a yes opens the rule for the requester this long: in the namespace, or everywhere (rule)",
        },
    }
    return {
        **_object(_only(fields, policyfile.RULE_FIELDS), ["name", "action", "match"]),
        "if": {"properties": {"action": {"const": "hold"}}, "required": ["action"]},
        "then": {"required": ["approval"]},
        "else": {"properties": {"approval": False, "grant": False}},
    }


def _budget() -> Schema:
    fields: dict[str, Schema] = {
        "name": {**_NAME, "description": "unique among the policy's rules and budgets"},
        "match": _match(),
        "limit": {**_whole(1, budgets.MAX_LIMIT), "description": "operations in the window"},
        "objects": {**_whole(1, budgets.MAX_LIMIT), "description": "objects in reach in the window"},
        "window": {**_DURATION, "description": "what happened longer ago counts no more"},
        "per": {"enum": list(budgets.PER), "description": "what is counted apart"},
        "owner": {**_TEXT, "description": "CEL over identity, a text; with per: owner"},
        "over": {"enum": ["deny", "hold"], "description": "what happens over the limit (deny)"},
        "when": _CEL,
        "unless": _CEL,
        "message": _message(policyfields.MAX_BUDGET_MESSAGE),
        "approval": _approval(),
    }
    return {
        **_object(_only(fields, policyfile.BUDGET_FIELDS), ["name", "match", "window", "per"]),
        "oneOf": [{"required": ["limit"]}, {"required": ["objects"]}],
    }


def _mask() -> Schema:
    fields: dict[str, Schema] = {
        "name": {**_NAME, "description": "unique among the policy's rules, budgets and mask rules"},
        "match": _match(),
        "fields": {
            **_list(_TEXT, unique=True),
            "description": "spec.credentials[*].password, data['tls.key']; none: all that is secret",
        },
        "mask": {
            "enum": list(maskfile.MASK_WORDS),
            "description": "always: for people too; never: agents see it; approved: shown once a person said yes",
        },
        "except": {**_TEXT, "description": "CEL over identity: who sees it; masked for everybody else"},
        "writes": {"const": "allow", "description": "no hold on writes to fields that the client does not see"},
    }
    return {
        **_object(_only(fields, maskfile.MASK_FIELDS), ["name", "match"]),
        "anyOf": [{"required": [field]} for field in ("mask", "except", "writes")],
        "not": {"required": ["mask", "except"]},
    }


def _match() -> Schema:
    words = _list(_TEXT, unique=True)
    fields: dict[str, Schema] = {
        "users": {**words, "description": "of the verified identity; * and ? stand for others"},
        "userGroups": {**words, "description": "of the verified identity; system:authenticated is everybody"},
        "subjects": {
            **_list({"enum": ["agents", "people"]}, unique=True),
            "description": "agents is everybody whom no people clause names",
        },
        "verbs": {
            **_list({"enum": ["*", *sorted(VERBS)]}, unique=True),
            "description": "for nonResourceURLs the method in lower case",
        },
        "resources": {**words, "description": "pods, deployments.apps, pods/exec, *.apps, */scale, *"},
        "resourceNames": {**words, "description": "also when the name is only in the body"},
        "namespaces": {**words, "description": "also when it is only in the body"},
        "nonResourceURLs": {**words, "description": "/metrics, /logs/*; without resources, names and namespaces"},
        "impacts": {
            **_list({"enum": [impact.word for impact in Impact]}, unique=True),
            "description": "what the request could do, as the gateway sees it",
        },
        "commands": {**words, "description": "what kubectl says it is: a claim, never in an allow rule"},
        "uses": {
            **_object(dict.fromkeys(policyfields.USES_FIELDS, words), []),
            "minProperties": 1,
            "description": "what a pod template runs as and reads; NotIn: something outside the list, to deny or hold",
        },
    }
    return {
        **_object(_only(fields, policyfields.MATCH_FIELDS), []),
        "minProperties": 1,
        "description": "every field given must match; lists are alternatives",
    }


def _approval() -> Schema:
    fields: dict[str, Schema] = {
        "groups": {**_list(_TEXT, unique=True), "description": "who may approve; no patterns"},
        "users": {**_list(_TEXT, unique=True), "description": "who may approve; no patterns"},
        "needed": {**_whole(1, 10), "description": "different people (1)"},
        "wait": {**_DURATION, "description": "how long the request is held open (25s)"},
        "valid": {**_DURATION, "description": "from the yes to its use, and how long it can be given (15m)"},
        "maxTokenAge": {**_DURATION, "description": "since the approver logged in (15m, at most 24h)"},
        "claims": {**_TEXT, "description": "CEL over the approver's identity and claims: a condition"},
        "owner": {**_TEXT, "description": "CEL over identity, a text: for whom it acts; approvers act for others"},
        "require": {
            "anyOf": [
                {"enum": list(policyfields.REQUIREMENTS)},
                _list({"enum": list(policyfields.REQUIREMENTS)}, unique=True),
            ],
            "description": "reason: a decision says why",
        },
        "maxPending": {**_whole(1, policyfields.MAX_PENDING), "description": "open questions of one requester (5)"},
        "cooldown": {**_DURATION, "description": "after a no, the same is not asked again for this long (15m)"},
        "drift": {
            **_whole(0, policyfields.MAX_DRIFT),
            "description": "objects by which a namespace may grow between the yes and its deletion (0)",
        },
        "retry": {"type": "boolean", "description": "undecided is 429 with Retry-After: clients try again (false)"},
    }
    return {
        **_object(_only(fields, policyfields.APPROVAL_FIELDS), []),
        "anyOf": [{"required": ["groups"]}, {"required": ["users"]}],
    }


def _named() -> Schema:
    names = _list(_TEXT, unique=True)
    return {
        **_object(_only({"groups": names, "users": names}, policyfields.PEOPLE_FIELDS), []),
        "minProperties": 1,
    }


def _message(most: int) -> Schema:
    return {**_TEXT, "maxLength": most, "description": "one line that the client reads; end with a next step"}


def _object(fields: dict[str, Schema], required: Sequence[str]) -> Schema:
    made: Schema = {"type": "object", "properties": fields, "additionalProperties": False}
    return {**made, "required": list(required)} if required else made


def _list(items: Schema, *, unique: bool = False) -> Schema:
    made: Schema = {"type": "array", "items": items, "minItems": 1}
    return {**made, "uniqueItems": True} if unique else made


def _whole(least: int, most: int) -> Schema:
    return {"type": "integer", "minimum": least, "maximum": most}


def _only(fields: dict[str, Schema], known: Sequence[str]) -> dict[str, Schema]:
    """In the loader's order. A field that one side does not know is a mistake of ours."""
    if fields.keys() != set(known):
        raise KeyError(f"the schema and the loader differ in {sorted(fields.keys() ^ set(known))}")
    return {name: fields[name] for name in known}
