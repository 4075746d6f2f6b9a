"""
Classify: turn the request into an operation, in Kubernetes' own terms, or refuse it.

What has two readings (a path, a query, a body) is refused here with a sentence; what has
one goes on as `facts.operation`. Rules: addons/core/classify.py and the modules it uses.
"""

import logging
import re

from mitmproxy import ctx, exceptions, http
from mitmproxy.addonmanager import Loader

from addons.core import classify, facts, status
from addons.mitm import answers

logger = logging.getLogger(__name__)

_NAMESPACE = re.compile(r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?")


class Classify:
    name = "tollgate_classify"

    def __init__(self) -> None:
        self.own_namespace = "tollgate"

    def load(self, loader: Loader) -> None:
        loader.add_option(
            "tollgate_own_namespace",
            str,
            "tollgate",
            "Namespace the gateway itself runs in. Changes in it count as escalate, so that nobody edits the "
            "gateway through the gateway. Cannot be empty.",
        )

    def configure(self, updated: set[str]) -> None:
        if "tollgate_own_namespace" in updated:
            namespace = ctx.options.tollgate_own_namespace
            if not _NAMESPACE.fullmatch(namespace):
                # Empty would silently protect nothing.
                raise exceptions.OptionsError("tollgate_own_namespace: must be the name of a namespace")
            self.own_namespace = namespace

    def request(self, flow: http.HTTPFlow) -> None:
        known = facts.of(flow)
        if known.answered_by:
            return  # refused by an earlier addon, whose answer stands
        request = flow.request
        body = request.raw_content  # as it came: the API server undoes no Content-Encoding either
        try:
            if body is None:
                # Streamed past us: what nobody read here nobody may forward.
                raise status.Refused(
                    500, "body-missing", "body: it was not kept for reading; tell the gateway's operator"
                )
            known.operation = classify.classify_raw(
                # Not request.method, which is made upper case: `delete` is another method.
                request.data.method.decode("latin-1"),
                request.data.path.decode("latin-1"),
                request.headers.fields,
                body,
                own_namespace=self.own_namespace,
            )
        except status.Refused as refused:
            answers.refuse(flow, self.name, refused.refusal)
            return
        known.passed.add((self.name, "request"))


addons = [Classify()]
