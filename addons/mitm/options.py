"""Options that more than one addon reads, and the values of mitmproxy's own that the gateway needs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mitmproxy.addonmanager import Loader
from mitmproxy.options import Options


def declare_kubeconfig(loader: Loader) -> None:
    loader.add_option(
        "tollgate_kubeconfig",
        str,
        "",
        "Kubeconfig of the cluster behind the gateway, and with it the gateway's own credential. "
        "Default: the pod's ServiceAccount when running in one, else $KUBECONFIG, else ~/.kube/config.",
    )


def declare_state(loader: Loader) -> None:
    loader.add_option("tollgate_state", str, "", "Folder for certificates and state. Default: none is written.")


# Each of these, set otherwise, opens a way past the addons. The launcher sets them, the guard
# refuses to work when they are not so.
REQUIRED: Mapping[str, Any] = {
    "connection_strategy": "lazy",  # eager connects before the verdict, and hangs up when the API server is down
    "upstream_cert": False,  # would connect upstream to copy a certificate
    "stream_large_bodies": None,  # streams request bodies before the request hook
    "store_streamed_bodies": False,  # watches would fill memory
    "ignore_hosts": [],  # skip the HTTP layer
    "allow_hosts": [],
    "tcp_hosts": [],
    "udp_hosts": [],
    "keep_host_header": False,  # lets SNI choose the upstream
    "http2": True,
    "http3": False,  # QUIC, which no addon judges
    "websocket": True,  # exec as raw bytes
    "validate_inbound_headers": True,  # request smuggling
    "normalize_outbound_headers": True,
    "ssl_insecure": False,  # the API server is always verified
    "request_client_cert": False,  # a client certificate is no identity here
    "add_upstream_certs_to_client_chain": False,
    "map_local": [],  # answers and rewrites that no addon judged
    "map_remote": [],
    "modify_body": [],
    "modify_headers": [],
    "client_replay": [],  # a recorded flow is not a request
    "server_replay": [],
    "stickyauth": None,  # would put one caller's credential on another's request
    "stickycookie": None,
    "upstream_auth": None,
    "proxyauth": None,
    "onboarding": False,  # a page on the listener
    "anticache": False,
    "anticomp": False,
}


def _same(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, list):
        return list(value or []) == wanted
    return bool(value == wanted)


def violations(options: Options, allow_spdy: bool, wanted: Mapping[str, Any] = REQUIRED) -> Sequence[str]:
    """One sentence for each option that is not as the gateway needs it."""
    found = [
        f"{name} must be {wanted[name]!r}, not {getattr(options, name)!r}"
        for name in wanted
        if name in options and not _same(getattr(options, name), wanted[name])
    ]
    if options.rawtcp and not allow_spdy:
        found.append("rawtcp must be False unless tollgate_allow_spdy is set")
    for name in ("tls_version_client_min", "tls_version_server_min"):  # 1.2 is mitmproxy's own default
        if getattr(options, name) not in ("TLS1_2", "TLS1_3"):
            found.append(f"{name} must be TLS1_2 or TLS1_3, not {getattr(options, name)!r}")
    if options.body_size_limit is None:
        found.append("body_size_limit must be set, e.g. 3m, the API server's own limit")
    for name in ("config.yaml", "config.yml"):
        if (file := Path(options.confdir).expanduser() / name).exists():
            found.append(f"{file} must not exist: what is in it beats the command line")
    modes = list(options.mode)
    if len(modes) != 1 or not modes[0].startswith("reverse:https://"):
        found.append(f"mode must be one reverse:https://HOST:PORT, not {modes!r}")
    return found
