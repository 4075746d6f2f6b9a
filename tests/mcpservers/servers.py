"""
The two MCP servers for Kubernetes that are used most, as people run them, and what to call
their tools for the same act. They are npm packages, pinned in package-lock.json beside this
file and installed once into the cache folder.
"""

import json
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tests import nodejs

HERE = Path(__file__).resolve().parent
FILES = ("package.json", "package-lock.json")
MACHINE = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
GO_BUILD = f"kubernetes-mcp-server-{sys.platform}-{MACHINE}"
LOCKED = ("kubernetes-mcp-server-linux-amd64",)  # builds of the Go server with their hash in package-lock.json
KINDS = {"Pod": "pods", "ConfigMap": "configmaps", "Secret": "secrets", "Namespace": "namespaces"}  # for kubectl


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a tool."""

    tool: str
    arguments: dict[str, Any]


class MCPServer(Protocol):
    """A server, by the acts that both can do. `package` is its name on npm."""

    package: str

    def command(self) -> list[str]: ...
    def list_pods(self, namespace: str) -> Call: ...
    def get(self, kind: str, namespace: str, name: str) -> Call: ...
    def create(self, manifest: Mapping[str, Any]) -> Call: ...
    def apply(self, manifest: Mapping[str, Any]) -> Call: ...
    def delete(self, kind: str, namespace: str, name: str) -> Call: ...
    def execute(self, namespace: str, pod: str, command: list[str]) -> Call: ...
    def logs(self, namespace: str, pod: str) -> Call: ...


def install() -> Path:
    """The node_modules folder with both."""
    more = [] if GO_BUILD in LOCKED else [f"{GO_BUILD}@{pinned()['kubernetes-mcp-server']}"]
    return nodejs.install(HERE, FILES, "mcpservers", more) / "node_modules"


def pinned() -> dict[str, str]:
    """Package and version, as package.json says. It names a build of the Go server, not what chooses one."""
    packages = json.loads((HERE / "package.json").read_text())
    return {
        "kubernetes-mcp-server": packages["optionalDependencies"][LOCKED[0]],
        "mcp-server-kubernetes": packages["dependencies"]["mcp-server-kubernetes"],
    }


class KubernetesMCPServer:
    """`kubernetes-mcp-server`: Go, speaks to the API server itself; creates and applies by server-side apply."""

    package = "kubernetes-mcp-server"

    def command(self) -> list[str]:
        return [str(install() / GO_BUILD / "bin" / GO_BUILD)]

    def list_pods(self, namespace: str) -> Call:
        return Call("pods_list_in_namespace", {"namespace": namespace})

    def get(self, kind: str, namespace: str, name: str) -> Call:
        return Call("resources_get", {"apiVersion": "v1", "kind": kind, "namespace": namespace, "name": name})

    def create(self, manifest: Mapping[str, Any]) -> Call:
        return self.apply(manifest)

    def apply(self, manifest: Mapping[str, Any]) -> Call:
        return Call("resources_create_or_update", {"resource": json.dumps(manifest)})

    def delete(self, kind: str, namespace: str, name: str) -> Call:
        return Call("resources_delete", {"apiVersion": "v1", "kind": kind, "namespace": namespace, "name": name})

    def execute(self, namespace: str, pod: str, command: list[str]) -> Call:
        return Call("pods_exec", {"namespace": namespace, "name": pod, "command": command})

    def logs(self, namespace: str, pod: str) -> Call:
        return Call("pods_log", {"namespace": namespace, "name": pod})


class MCPServerKubernetes:
    """`mcp-server-kubernetes`: TypeScript, runs a kubectl for each call and waits for it."""

    package = "mcp-server-kubernetes"

    def command(self) -> list[str]:
        program, _ = nodejs.node()
        return [*program, str(install() / self.package / "dist" / "index.js")]

    def list_pods(self, namespace: str) -> Call:
        return Call("kubectl_get", {"resourceType": "pods", "namespace": namespace})

    def get(self, kind: str, namespace: str, name: str) -> Call:
        return Call("kubectl_get", {"resourceType": KINDS[kind], "namespace": namespace, "name": name})

    def create(self, manifest: Mapping[str, Any]) -> Call:
        namespace = manifest["metadata"].get("namespace", "default")
        return Call("kubectl_create", {"manifest": json.dumps(manifest), "namespace": namespace})

    def apply(self, manifest: Mapping[str, Any]) -> Call:
        namespace = manifest["metadata"].get("namespace", "default")
        return Call("kubectl_apply", {"manifest": json.dumps(manifest), "namespace": namespace})

    def delete(self, kind: str, namespace: str, name: str) -> Call:
        return Call("kubectl_delete", {"resourceType": KINDS[kind], "namespace": namespace, "name": name})

    def execute(self, namespace: str, pod: str, command: list[str]) -> Call:
        return Call("exec_in_pod", {"namespace": namespace, "name": pod, "command": command})

    def logs(self, namespace: str, pod: str) -> Call:
        return Call("kubectl_logs", {"resourceType": "pod", "namespace": namespace, "name": pod})


SERVERS: tuple[MCPServer, ...] = (KubernetesMCPServer(), MCPServerKubernetes())
