"""
mitmproxy's own addons that a bastion never uses.

Each looks at every request or answer, or reads and writes files and starts programs, to do nothing here: the guard
refuses the options that would make it do something (addons/mitm/options.py), or the launcher turns it off. One whose
option is set otherwise stays. What stays anyway: the core, its servers and layers, TLS, scripts, the log, `block`
(which closes connections from public addresses), `disable_h2c` (which closes those that begin with the preface of
HTTP/2) and `update_alt_svc` (which keeps clients here); and all of mitmweb's.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mitmproxy.master import Master
from mitmproxy.options import Options


class Unused(NamedTuple):
    why: str
    off: Mapping[str, Any]  # the options it serves, and their values while it does nothing


UNUSED: Mapping[str, Unused] = {
    "browser": Unused("starts a browser on the gateway's machine", {}),
    "blocklist": Unused("answers what its filters match", {"block_list": []}),
    "anticache": Unused("drops headers of requests", {"anticache": False}),
    "anticomp": Unused("rewrites a header of requests", {"anticomp": False}),
    "onboarding": Unused("serves pages and mitmproxy's CA to clients", {"onboarding": False}),
    "proxyauth": Unused("asks for credentials of another kind", {"proxyauth": None}),
    "serverplayback": Unused("answers from recordings", {"server_replay": []}),
    "mapremote": Unused("sends requests elsewhere", {"map_remote": []}),
    "maplocal": Unused("answers from files", {"map_local": []}),
    "modifybody": Unused("changes what was judged", {"modify_body": []}),
    "modifyheaders": Unused("changes what was judged", {"modify_headers": []}),
    "stickyauth": Unused("puts one caller's credential on another's request", {"stickyauth": None}),
    "stickycookie": Unused("puts one caller's cookie on another's request", {"stickycookie": None}),
    "upstreamauth": Unused("adds a credential to requests", {"upstream_auth": None}),
    "save": Unused("writes flows to a file", {"save_stream_file": None}),
    "savehar": Unused("keeps flows for a file", {"hardump": ""}),
    "dumper": Unused("prints flows", {"flow_detail": 0}),
    "readfilestdin": Unused("reads flows from a file", {"rfile": None}),
}


def needed(name: str, options: Options) -> Sequence[str]:
    """The options for which this addon must stay."""
    return [option for option, off in UNUSED[name].off.items() if option in options and not _is(options, option, off)]


def _is(options: Options, name: str, off: Any) -> bool:
    value = getattr(options, name)
    return list(value) == off if isinstance(off, list) else bool(value == off)


def remove(master: Master) -> Sequence[str]:
    """Take out those that are there and do nothing, with their commands; returns their names."""
    gone = []
    for name in UNUSED:
        addon = master.addons.get(name)
        if addon is None or needed(name, master.options):
            continue
        master.addons.remove(addon)
        commands = master.commands.commands
        for path in [path for path, c in commands.items() if getattr(c.func, "__self__", None) is addon]:
            del commands[path]
        gone.append(name)
    return gone


def missed(master: Master) -> Sequence[str]:
    """One sentence for each option that now asks for an addon which is not there."""
    return [
        f"{option} has no effect any more, since addons/engine.py took the addon {name} out: start with it, or "
        "--without engine"
        for name in UNUSED
        if master.addons.get(name) is None
        for option in needed(name, master.options)
    ]
