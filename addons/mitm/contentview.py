"""mitmproxy's content view of Kubernetes bodies, see addons/core/pretty.py."""

import secrets

from mitmproxy import contentviews, http
from mitmproxy.contentviews import Contentview, Metadata, SyntaxHighlight

from addons.core import pretty
from addons.core.masktags import Place


class KubernetesContentview(Contentview):
    """Chosen by itself for what the API server's paths carry; masked whoever looks."""

    name = "Kubernetes"
    syntax_highlight: SyntaxHighlight = "yaml"

    def __init__(self) -> None:
        # Of this process only: these tags are compared with nothing, so nobody can try a guess out.
        self._key = secrets.token_bytes(32)

    def prettify(self, data: bytes, metadata: Metadata) -> str:
        place = _place(metadata)
        if place is None:
            raise pretty.NotReadable("it is no request for a resource of the Kubernetes API")
        # Only a PATCH has patches, and only on its way up.
        method = metadata.http_message.method if isinstance(metadata.http_message, http.Request) else "GET"
        return pretty.text(pretty.read(data, metadata.content_type or "", method), place, self._key)

    def render_priority(self, data: bytes, metadata: Metadata) -> float:
        # Above JSON's and YAML's own 1: those show a Secret as it is.
        return 2 if data and _place(metadata) is not None else -1


def _place(metadata: Metadata) -> Place | None:
    flow = metadata.flow
    if not isinstance(flow, http.HTTPFlow) or not isinstance(metadata.http_message, http.Message):
        return None
    if not flow.request.path.startswith(("/api/", "/apis/")):
        return None
    return pretty.place_of(flow.request.method, flow.request.path)


def install() -> None:
    """Once for all scripts; one that is loaded again takes the old one's place."""
    contentviews.add(KubernetesContentview())
