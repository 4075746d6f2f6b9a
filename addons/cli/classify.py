"""
./run.sh classify: what the gateway takes requests for.

Reads one JSON object a line, {"method", "url", "headers"?, "body"?}, and answers each with
one line: the operation, or {"refused": code, "cause": ..., "message": ...}.
"""

import argparse
import base64
import binascii
import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

from addons.core import classify, status, strict_json
from addons.core.model import Operation

HELP = """\
Input, one JSON object a line:
  method   GET, POST, ...
  url      the path with its query, as on the wire: /api/v1/namespaces/x/pods?watch=1
  headers  optional, an object; Content-Type says how the body is read
  body     optional: an object (sent as JSON), a string, or {"base64": "..."}

Output, one JSON object a line: the fields of Kubernetes' RequestInfo (verb, apiPrefix, apiGroup,
apiVersion, namespace, resource, subresource, name, parts, isResourceRequest, path, fieldSelector,
labelSelector), where name is also that of a posted object; and impact (the worst first), dryRun,
uses, kind, mediaType, upgrade, command, session. A request that the gateway would refuse at this
point gives {"refused": 400, "cause": "path-not-canonical", "message": "..."}; a line that is no
request gives {"error": "..."}.

Exit status: 0, or 1 when a line was no request.

  echo '{"method": "DELETE", "url": "/api/v1/namespaces/shop"}' | ./run.sh classify
"""


class NotARequest(ValueError):
    """A line of input that is no request."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="./run.sh classify",
        description="Say what requests are, as the gateway sees them.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--own-namespace", default="tollgate", metavar="NAME", help="namespace of the gateway (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    try:
        return run(sys.stdin, sys.stdout, options.own_namespace)
    except (BrokenPipeError, KeyboardInterrupt):
        sys.stderr.close()  # no complaint at exit about the pipe that `head` closed
        return 1


def run(lines: Iterable[str], out: TextIO, own_namespace: str) -> int:
    failed = 0
    for line in lines:
        if not line.strip():
            continue
        try:
            answer = answer_to(line, own_namespace)
        except NotARequest as e:
            answer, failed = {"error": str(e)}, 1
        out.write(json.dumps(answer, ensure_ascii=False) + "\n")
        out.flush()  # a program may wait for this line before it writes the next
    return failed


def answer_to(line: str, own_namespace: str) -> dict[str, Any]:
    method, url, headers, body = _request(line)
    try:
        operation = classify.classify(method, url, headers, body, own_namespace=own_namespace)
    except status.Refused as e:
        return {"refused": e.refusal.code, "cause": e.refusal.cause, "message": status.one_line(e.refusal.message)}
    return describe(operation)


def _request(line: str) -> tuple[str, str, dict[str, str], bytes]:
    try:
        asked = strict_json.loads(line, line.encode())
    except ValueError as e:  # also half a surrogate pair
        raise NotARequest(f"line: {e}") from None
    if not isinstance(asked, dict):
        raise NotARequest("line: not a JSON object")
    unknown = asked.keys() - {"method", "url", "headers", "body"}
    if unknown:
        raise NotARequest(f"{min(unknown)}: unknown field")
    for field in ("method", "url"):
        if not isinstance(asked.get(field), str):
            raise NotARequest(f"{field}: missing, or not a string")
    headers = {} if asked.get("headers") is None else asked["headers"]
    if not isinstance(headers, dict) or not all(isinstance(value, str) for value in headers.values()):
        raise NotARequest("headers: not an object of strings")
    return asked["method"], asked["url"], headers, _body(asked.get("body"))


def _body(value: Any) -> bytes:
    if value is None:
        return b""
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, dict) and value.keys() == {"base64"}:
        try:
            return base64.b64decode(value["base64"], validate=True)
        except (TypeError, ValueError, binascii.Error):
            raise NotARequest("body.base64: not base64") from None
    if isinstance(value, dict | list):
        return json.dumps(value).encode()
    raise NotARequest("body: neither an object nor a string")


def describe(operation: Operation) -> dict[str, Any]:
    """An operation as JSON, without its body."""
    info, uses = operation.info, operation.uses
    return {
        "verb": info.verb,
        "apiPrefix": info.api_prefix,
        "apiGroup": info.api_group,
        "apiVersion": info.api_version,
        "namespace": info.namespace,
        "resource": info.resource,
        "subresource": info.subresource,
        "name": operation.name,
        "parts": list(info.parts),
        "isResourceRequest": info.is_resource_request,
        "path": info.path,
        "fieldSelector": info.field_selector,
        "labelSelector": info.label_selector,
        "impact": [impact.word for impact in sorted(operation.impacts, reverse=True)],
        "dryRun": operation.dry_run,
        "uses": uses
        and {
            "serviceAccounts": sorted(uses.service_accounts),
            "secrets": sorted(uses.secrets),
            "configMaps": sorted(uses.config_maps),
            "host": sorted(uses.host),
            "token": uses.token,
            "unknown": uses.unknown,
        },
        "kind": operation.kind,
        "mediaType": operation.media_type,
        "upgrade": operation.upgrade,
        "command": operation.claimed_command,
        "session": operation.claimed_session,
    }


if __name__ == "__main__":
    sys.exit(main())
