"""
Everything of a request that goes upstream, as a value: what the stack left, and what is compared.

In mitmweb a flow can be edited by hand while hooks wait (for a human's yes, for a disk). What is
changed then was judged by nobody. So classify seals what it read; each addon that changes the
request breaks the seal and puts a new one on; the guard compares the last.
"""

from mitmproxy import http

from addons.core import facts, status

CHANGED = status.Refusal(
    503,
    "changed-after-verdict",
    "tollgate: the request was changed after it was judged and was not sent; send it again unchanged",
)


def value(request: http.Request) -> tuple[object, ...]:
    """Cheap to compare while nothing changed: the parts are the same objects."""
    data = request.data
    return data.method, data.scheme, data.host, data.port, data.path, data.headers.fields, data.content, data.trailers


def put(flow: http.HTTPFlow) -> None:
    facts.of(flow).sealed = value(flow.request)


def is_broken(flow: http.HTTPFlow) -> bool:
    """Whether the request is another than the one that was sealed."""
    sealed = facts.of(flow).sealed
    return sealed is not None and sealed != value(flow.request)


def check(flow: http.HTTPFlow) -> None:
    """Raises status.Refused when the seal is broken; for who is about to change the request."""
    if is_broken(flow):
        raise status.Refused(CHANGED.code, CHANGED.cause, CHANGED.message)
