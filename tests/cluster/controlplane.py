"""
A real control plane for one test run: etcd, kube-apiserver and
kube-controller-manager, with a played node whose pods run, log, and can be
entered.

Everything listens on 127.0.0.1, keeps its files in one folder, and ends with
the process that started it, even if that one is killed. Nothing here is safe
for anything but tests: whoever may `kubectl exec` runs commands on this machine,
as this user. Standard library only.
"""

import contextlib
import functools
import http.client
import http.server
import json
import os
import random
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.cluster import build

Progress = Callable[[str], None]

NODE = "node-1"  # named in the pod templates: there is no scheduler
CONTENT = Path(__file__).with_name("content.yaml")

START_TIME = 60  # seconds for a server to be ready; 3 are usual
SEED_TIME = 60  # seconds for all pods to run; 5 are usual
STOP_TIME = 3  # seconds for the API server to drain (1 is usual), before it is killed
ATTEMPTS = 3  # to start, when another process has taken a port
POLL = 0.05  # seconds
REQUEST_TIME = 15  # seconds

# The kernel gives ports from 32768 on to outgoing connections, so a server's port
# there is sooner or later taken by somebody else's.
PORTS = range(20000, 32768)

GATEWAY_TOKEN_TIME = 86400  # seconds: longer than any demo
POD_GREETING = b"hello from the pod\n"

# Only what clients do: the cluster's own components would fill the log.
AUDIT_POLICY = """\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: None
  users: ["system:kube-controller-manager", "kwok", "system:apiserver", "health"]
- level: Request
"""


class ControlPlaneError(Exception):
    """The cluster, or a command against it, failed; the message says how."""


class PortTaken(ControlPlaneError):
    """Somebody took a port between our look and the server's start."""


STARTED: list["ControlPlane"] = []  # by this process; their files may outlive them


class ControlPlane:
    """One running control plane. Make it with `start`; `stop` or `with` ends it."""

    @classmethod
    def start(
        cls,
        folder: Path,
        *,
        progress: Progress | None = None,
        audit: bool = True,
        authentication_config: Path | None = None,
        kwok: bool = True,
        apiserver_flags: Sequence[str] = (),
    ) -> Self:
        """
        Build what is not built, and start all of it in `folder` (new or empty).

        `authentication_config` is a file for --authentication-config, read at each
        start of the API server; the static tokens work beside it. Without `kwok`
        no pod ever runs.
        """
        programs = build.build(progress)
        for attempt in range(1, ATTEMPTS + 1):
            self = cls(folder, programs, audit=audit, apiserver_flags=apiserver_flags)
            self.authentication_config = authentication_config
            try:
                self._start(kwok, progress or (lambda text: None))
            except PortTaken:
                self.stop()
                if attempt == ATTEMPTS:
                    raise
                shutil.rmtree(folder)
            except BaseException:
                self.stop()
                raise
            else:
                STARTED.append(self)
                return self
        raise AssertionError("unreachable")

    def __init__(
        self,
        folder: Path,
        programs: build.Programs,
        *,
        audit: bool = True,
        apiserver_flags: Sequence[str] = (),
    ) -> None:
        self.folder = folder.absolute()
        self.folder.mkdir(parents=True, exist_ok=True)
        if any(self.folder.iterdir()):
            raise ControlPlaneError(f"{self.folder} is not empty: each cluster needs its own folder")
        self.folder.chmod(0o700)  # it holds keys, and `kubectl exec` starts there
        self.programs = programs
        self.apiserver_flags = list(apiserver_flags)
        self.authentication_config: Path | None = None

        self._etcd_port, self._etcd_peer_port, self.port, self._kubelet_port = free_ports(4)
        self.url = f"https://127.0.0.1:{self.port}"
        self.issuer = self.url  # the API server is its own OpenID Connect provider
        pki = self.folder / "pki"
        self.ca_file = pki / "ca.crt"
        self.ca_key_file = pki / "ca.key"  # signs client certificates that the API server accepts
        self.service_account_key = pki / "serviceaccounts.key"  # signs tokens of this issuer
        self.admin_token = secrets.token_urlsafe(24)
        self.admin_kubeconfig = self.folder / "admin.kubeconfig"
        self.kubectl = str(programs.kubectl)
        self.audit_log = self.folder / "audit.jsonl" if audit else None
        self.pod_log = self.folder / "pod.log"  # text; what `kubectl logs` shows of every pod
        self.pod_files = self.folder / "pod"  # where `kubectl exec` starts

        self._pki = pki
        self._servers: dict[str, Server] = {}
        self._greeter: http.server.ThreadingHTTPServer | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    # Starting and stopping --------------------------------------------------------------

    def _start(self, kwok: bool, progress: Progress) -> None:
        self._write_files()
        self._start_greeter()
        progress("starting etcd")
        self._serve("etcd", self._etcd_argv(), [self._etcd_port, self._etcd_peer_port])
        self._wait_until(self._etcd_is_healthy, "etcd")
        progress("starting kube-apiserver")
        self.start_apiserver()
        progress("starting kube-controller-manager" + (" and kwok" if kwok else ""))
        self._serve("kube-controller-manager", self._controllers_argv())
        self._make_issuer_public()
        if kwok:
            self._serve("kubelet", self._kubelet_argv(), [self._kubelet_port])
            self._add_node()
            self._serve("kwok", self._kwok_argv())
            self._wait_until(self._node_is_ready, "kwok")
            self._wait_until(lambda: listens(self._kubelet_port), "kubelet")
        self._wait_until(self._controllers_work, "kube-controller-manager")

    def start_apiserver(self) -> None:
        """Start it on its port and wait until it is ready."""
        running = self._servers.get("kube-apiserver")
        if running and running.alive():
            return
        self._serve("kube-apiserver", self._apiserver_argv(), [self.port])
        self._wait_until(self._apiserver_is_ready, "kube-apiserver")

    def stop_apiserver(self) -> None:
        """End it as an upgrade does: SIGTERM first, and wait until the port is free."""
        if server := self._servers.get("kube-apiserver"):
            server.stop(grace=STOP_TIME)

    def restart_apiserver(self) -> None:
        self.stop_apiserver()
        self.start_apiserver()

    def stop(self) -> None:
        """End everything, at once: nothing of it is kept but the files. May be repeated."""
        for server in self._servers.values():
            server.kill()
        for server in self._servers.values():
            server.stop()
        if self._greeter:
            self._greeter.shutdown()
            self._greeter.server_close()
            self._greeter = None

    def _serve(self, name: str, argv: Sequence[str], ports: Sequence[int] = ()) -> None:
        # Asked first: kube-apiserver tries for half a minute, and whoever holds the
        # port may look like a server that is ready.
        if taken := [port for port in ports if not is_free(port)]:
            raise PortTaken(f"{name}: port {taken[0]} was taken by another process")
        server = Server(name, argv, self.folder)
        self._servers[name] = server
        server.start()

    def _wait_until(self, ready: Callable[[], bool], name: str) -> None:
        """Poll, and say what is in the log if it takes too long or the server ends."""
        server, deadline = self._servers[name], time.monotonic() + START_TIME
        while not ready():
            if not server.alive():
                message = f"{name} ended with code {server.code()}; {server.tail()}"
                if "address already in use" in message:
                    raise PortTaken(message)
                raise ControlPlaneError(message)
            if time.monotonic() > deadline:
                raise ControlPlaneError(f"{name} not ready after {START_TIME} s; {server.tail()}")
            time.sleep(POLL)

    # What is ready ----------------------------------------------------------------------

    def _etcd_is_healthy(self) -> bool:
        context = ssl.create_default_context(cafile=str(self.ca_file))
        context.load_cert_chain(self._pki / "etcd.crt", self._pki / "etcd.key")
        connection = http.client.HTTPSConnection("127.0.0.1", self._etcd_port, timeout=REQUEST_TIME, context=context)
        with contextlib.closing(connection):
            try:
                connection.request("GET", "/health")
                return connection.getresponse().status == http.HTTPStatus.OK
            except (OSError, http.client.HTTPException):
                return False

    def _apiserver_is_ready(self) -> bool:
        try:
            return self.request("GET", "/readyz", token=self._health_token)[0] == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False

    def _controllers_work(self) -> bool:
        path = "/api/v1/namespaces/default/serviceaccounts/default"
        return self.request("GET", path, token=self._health_token)[0] == http.HTTPStatus.OK

    def _node_is_ready(self) -> bool:
        node = self.api("GET", f"/api/v1/nodes/{NODE}", token=self._health_token)
        conditions = {c["type"]: c["status"] for c in node["status"].get("conditions", ())}
        return conditions.get("Ready") == "True"

    # The servers ------------------------------------------------------------------------

    def _etcd_argv(self) -> list[str]:
        clients, peers = (f"https://127.0.0.1:{port}" for port in (self._etcd_port, self._etcd_peer_port))
        argv = [
            *(str(self.programs.cluster), "until-eof", "etcd"),
            *("--name=test", f"--data-dir={self.folder / 'etcd'}"),
            *(f"--listen-client-urls={clients}", f"--advertise-client-urls={clients}"),
            *(f"--listen-peer-urls={peers}", f"--initial-advertise-peer-urls={peers}"),
            f"--initial-cluster=test={peers}",
            "--unsafe-no-fsync",
            "--log-level=warn",
        ]
        for prefix in ("--", "--peer-"):
            argv += [
                f"{prefix}client-cert-auth",
                f"{prefix}trusted-ca-file={self.ca_file}",
                f"{prefix}cert-file={self._pki / 'etcd.crt'}",
                f"{prefix}key-file={self._pki / 'etcd.key'}",
            ]
        return argv

    def _apiserver_argv(self) -> list[str]:
        argv = [
            *(str(self.programs.cluster), "until-eof", "kube-apiserver"),
            f"--etcd-servers=https://127.0.0.1:{self._etcd_port}",
            f"--etcd-cafile={self.ca_file}",
            f"--etcd-certfile={self._pki / 'etcd.crt'}",
            f"--etcd-keyfile={self._pki / 'etcd.key'}",
            *("--bind-address=127.0.0.1", f"--secure-port={self.port}"),
            # Nobody reaches it through the Service `kubernetes`, and a loopback
            # address may not be an endpoint. Given, so that no network is needed.
            *("--advertise-address=127.0.0.1", "--endpoint-reconciler-type=none"),
            f"--tls-cert-file={self._pki / 'apiserver.crt'}",
            f"--tls-private-key-file={self._pki / 'apiserver.key'}",
            f"--client-ca-file={self.ca_file}",
            f"--token-auth-file={self.folder / 'tokens.csv'}",
            f"--service-account-key-file={self.service_account_key}",
            f"--service-account-signing-key-file={self.service_account_key}",
            f"--service-account-issuer={self.issuer}",
            # By default this one names the machine's address.
            f"--service-account-jwks-uri={self.issuer}/openid/v1/jwks",
            "--api-audiences=https://kubernetes.default.svc",
            "--authorization-mode=Node,RBAC",
            "--service-cluster-ip-range=10.0.0.0/24",
            "--allow-privileged",
            f"--kubelet-certificate-authority={self.ca_file}",
            f"--kubelet-client-certificate={self._pki / 'kubelet-client.crt'}",
            f"--kubelet-client-key={self._pki / 'kubelet-client.key'}",
            "--kubelet-preferred-address-types=InternalIP,Hostname",
            "--shutdown-delay-duration=0",
            # Else the controllers' watches keep it for as long as it may drain.
            "--shutdown-watch-termination-grace-period=1s",
        ]
        if self.audit_log:
            argv += [
                f"--audit-policy-file={self.folder / 'audit-policy.yaml'}",
                f"--audit-log-path={self.audit_log}",
                "--audit-log-format=json",
                "--audit-log-mode=blocking",
                "--audit-log-maxsize=100000",  # megabytes: never rotated
            ]
        if self.authentication_config:
            argv.append(f"--authentication-config={self.authentication_config}")
        return argv + self.apiserver_flags

    def _controllers_argv(self) -> list[str]:
        return [
            *(str(self.programs.cluster), "until-eof", "kube-controller-manager"),
            f"--kubeconfig={self.folder / 'controllers.kubeconfig'}",
            f"--service-account-private-key-file={self.service_account_key}",
            f"--root-ca-file={self.ca_file}",
            f"--cluster-signing-cert-file={self.ca_file}",
            f"--cluster-signing-key-file={self.ca_key_file}",
            "--leader-elect=false",
            "--secure-port=0",
            # The played node sends no heartbeats, and the API server is restarted
            # by tests: nobody shall evict the pods for that.
            "--controllers=*,-node-lifecycle-controller",
            *("--kube-api-qps=200", "--kube-api-burst=400"),
        ]

    def _kubelet_argv(self) -> list[str]:
        return [
            *(str(self.programs.cluster), "until-eof", "kubelet"),
            f"-address=127.0.0.1:{self._kubelet_port}",
            f"-cert={self._pki / 'kubelet.crt'}",
            f"-key={self._pki / 'kubelet.key'}",
            f"-client-ca={self.ca_file}",
            f"-log-file={self.pod_log}",
            f"-work-dir={self.pod_files}",
            f"-forward-to=127.0.0.1:{self.portforward_target}",
        ]

    def _kwok_argv(self) -> list[str]:
        return [
            *(str(self.programs.kwok), "until-eof"),
            f"--kubeconfig={self.folder / 'kwok.kubeconfig'}",
            f"--config={self.programs.kwok_stages}",
            "--manage-all-nodes=true",
            *("--node-ip=127.0.0.1", "--node-name=127.0.0.1", "--cidr=10.244.0.0/16"),
            "--node-port=0",  # no server of its own: ours is in go/kubelet.go
            "--node-lease-duration-seconds=0",
        ]

    # Files ------------------------------------------------------------------------------

    def _write_files(self) -> None:
        for folder in (self._pki, self.pod_files, self.folder / "home"):
            folder.mkdir()
        subprocess.run(
            [self.programs.cluster, "pki", self._pki],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=START_TIME,
            check=True,
        )
        self.pod_log.write_text("the pod has started\nlistening on :8080\n")
        (self.folder / "audit-policy.yaml").write_text(AUDIT_POLICY)

        # Names that the audit policy leaves out; all may do everything.
        tokens = {name: secrets.token_urlsafe(24) for name in ("controllers", "kwok", "health")}
        self._health_token = tokens["health"]
        users = {"controllers": "system:kube-controller-manager"}
        rows = [f"{self.admin_token},admin,admin,system:masters"]
        rows += [f"{t},{users.get(name, name)},{name},system:masters" for name, t in tokens.items()]
        write_private(self.folder / "tokens.csv", "\n".join(rows) + "\n")
        for name in ("controllers", "kwok"):
            path = self.folder / f"{name}.kubeconfig"
            self.kubeconfig(path, self.url, self.ca_file, token=tokens[name])
        self.kubeconfig(self.admin_kubeconfig, self.url, self.ca_file, token=self.admin_token)

    def _start_greeter(self) -> None:
        """The server inside every pod. Its port is the kernel's choice, and held from now on."""
        self._greeter = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Greeter)
        self._greeter.daemon_threads = True
        threading.Thread(target=self._greeter.serve_forever, args=(POLL,), daemon=True).start()

    @property
    def portforward_target(self) -> int:
        """
        The local port behind `kubectl port-forward` to a pod's ports below 10000. Those
        from 10000 on lead to the same port of this machine, where a test may listen.
        """
        assert self._greeter, "not started"
        return int(self._greeter.server_address[1])

    def _make_issuer_public(self) -> None:
        name = "system:service-account-issuer-discovery"
        group = "rbac.authorization.k8s.io"
        binding = {
            "metadata": {"name": "test-issuer-discovery"},
            "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": name},
            "subjects": [{"apiGroup": group, "kind": "Group", "name": "system:unauthenticated"}],
        }
        path = f"/apis/{group}/v1/clusterrolebindings"
        self.api("POST", path, binding, token=self._health_token)

    def _add_node(self) -> None:
        """With both address types: kwok else writes its own list, empty at every other time."""
        addresses = [{"type": kind, "address": "127.0.0.1"} for kind in ("InternalIP", "Hostname")]
        endpoints = {"kubeletEndpoint": {"Port": self._kubelet_port}}
        node = {
            "metadata": {"name": NODE, "labels": {"kubernetes.io/hostname": NODE}},
            "status": {"addresses": addresses, "daemonEndpoints": endpoints},
        }
        self.api("POST", "/api/v1/nodes", node, token=self._health_token)

    # For tests --------------------------------------------------------------------------

    def request(self, method: str, path: str, body: object = None, *, token: str | None = None) -> tuple[int, bytes]:
        """One request straight to the API server: with no token as the admin, with "" as nobody."""
        context = ssl.create_default_context(cafile=str(self.ca_file))
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=REQUEST_TIME, context=context)
        headers = {}
        if token != "":
            headers["Authorization"] = f"Bearer {token or self.admin_token}"
        if body is not None:
            headers["Content-Type"] = "application/json"
        with contextlib.closing(connection):
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            return response.status, response.read()

    def api(self, method: str, path: str, body: object = None, *, token: str | None = None) -> Any:
        """The same, as JSON; an error status is an error."""
        status, text = self.request(method, path, body, token=token)
        if status >= http.HTTPStatus.BAD_REQUEST:
            answer = text.decode(errors="replace")
            raise ControlPlaneError(f"{method} {path}: {status} {answer}")
        return json.loads(text)

    def run_kubectl(
        self,
        *args: str,
        kubeconfig: Path | None = None,
        input: str | None = None,  # noqa: A002 - as in subprocess.run
        timeout: float = 30,
        check: bool = True,
        env: Mapping[str, str] | None = None,
        program: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run our kubectl (or `program`), as the admin if no kubeconfig is given."""
        command = [program or self.kubectl, *args]
        try:
            result = subprocess.run(
                command,
                env=self.kubectl_env(kubeconfig) | dict(env or {}),
                timeout=timeout,
                text=True,
                capture_output=True,
                check=False,
                **({"stdin": subprocess.DEVNULL} if input is None else {"input": input}),
            )
        except subprocess.TimeoutExpired as e:
            said = [text.decode(errors="replace") for text in (e.stdout, e.stderr) if text]
            raise ControlPlaneError(f"kubectl {' '.join(args)}: no end after {timeout} s: {said}") from e
        if check and result.returncode:
            text = result.stderr.strip() or result.stdout.strip()
            raise ControlPlaneError(f"kubectl {' '.join(args)}: exit {result.returncode}: {text}")
        return result

    def kubectl_env(self, kubeconfig: Path | None = None) -> dict[str, str]:
        """The environment for a kubectl: its own home, so that caches of the user's are not met."""
        return base_environment(self.folder / "home") | {"KUBECONFIG": str(kubeconfig or self.admin_kubeconfig)}

    @functools.cached_property
    def kubectl_old(self) -> str | None:
        """This machine's own kubectl, if it has one: another version than ours."""
        path = shutil.which("kubectl")
        if not path or Path(path).resolve() == Path(self.kubectl).resolve():
            return None
        result = self.run_kubectl("version", "--client", program=path, check=False)
        return path if result.returncode == 0 else None

    def token(
        self,
        namespace: str,
        serviceaccount: str,
        audience: str | None = "tollgate",
        seconds: int = 3600,
    ) -> str:
        """
        A ServiceAccount's token, made by the TokenRequest API. The API server refuses
        less than 600 seconds. With None the audience is the API server itself.
        """
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{serviceaccount}/token"
        spec: dict[str, object] = {"expirationSeconds": seconds}
        if audience is not None:
            spec["audiences"] = [audience]
        answer = self.api("POST", path, {"spec": spec}, token=self._health_token)
        return str(answer["status"]["token"])

    def kubeconfig(
        self,
        path: Path,
        server: str,
        ca_file: Path,
        *,
        token: str | None = None,
        token_file: Path | None = None,
        namespace: str = "default",
    ) -> Path:
        """Write a kubeconfig for one server and one token."""
        user = {"token": token} if token_file is None else {"tokenFile": str(token_file)}
        cluster = {"server": server, "certificate-authority": str(ca_file)}
        context = {"cluster": "test", "user": "test", "namespace": namespace}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": "test", "user": user}],
            "contexts": [{"name": "test", "context": context}],
            "current-context": "test",
        }
        return write_private(path, json.dumps(config, indent=2) + "\n")

    def gateway_kubeconfig(self, path: Path | None = None) -> Path:
        """The gateway's own access: the ServiceAccount tollgate/gateway of content.yaml."""
        token = self.token("tollgate", "gateway", audience=None, seconds=GATEWAY_TOKEN_TIME)
        path = path or self.folder / "gateway.kubeconfig"
        return self.kubeconfig(path, self.url, self.ca_file, token=token)

    def seed(self, content: Path = CONTENT) -> None:
        """Fill the cluster (again: put its content right), and wait until every pod runs."""
        self.run_kubectl("apply", "-f", str(content), timeout=SEED_TIME)
        self.wait_for_pods()

    def wait_for_pods(self) -> None:
        """Until every deployment has the pods that it wants. Played pods need well under a second."""
        deadline = time.monotonic() + SEED_TIME
        while waiting := self._incomplete_deployments():
            if time.monotonic() > deadline:
                names = self._servers.keys() & {"kube-controller-manager", "kwok"}
                logs = "; ".join(self._servers[name].tail() for name in sorted(names))
                raise ControlPlaneError(f"no pods after {SEED_TIME} s: {waiting}; {logs}")
            time.sleep(POLL)

    def _incomplete_deployments(self) -> list[str]:
        # By the pods themselves: a deployment's status is written after the fact.
        missing = []
        for deployment in self._items("/apis/apps/v1/deployments"):
            namespace, name = deployment["metadata"]["namespace"], deployment["metadata"]["name"]
            labels = deployment["spec"]["selector"]["matchLabels"]
            pods = self.pods(namespace, ",".join(f"{key}={value}" for key, value in labels.items()))
            if len(pods) != deployment["spec"]["replicas"]:
                missing.append(f"{namespace}/{name}")
        return missing

    def pods(self, namespace: str, selector: str = "") -> list[str]:
        """Names of the pods that run there and are not being deleted."""
        query = urllib.parse.urlencode({"labelSelector": selector})
        return [
            pod["metadata"]["name"]
            for pod in self._items(f"/api/v1/namespaces/{namespace}/pods?{query}")
            if pod["status"].get("phase") == "Running" and "deletionTimestamp" not in pod["metadata"]
        ]

    def _items(self, path: str) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = self.api("GET", path, token=self._health_token)["items"]
        return items

    def audit_position(self) -> int:
        """The audit log's length, to read from later."""
        assert self.audit_log, "started without audit"
        return self.audit_log.stat().st_size if self.audit_log.exists() else 0

    def audit_events(self, since: int = 0) -> list[dict[str, Any]]:
        """What arrived at the API server, from a position on; requests of clients only."""
        assert self.audit_log, "started without audit"
        if not self.audit_log.exists():
            return []
        with self.audit_log.open("rb") as file:
            file.seek(since)
            text = file.read()
        # Up to the last newline: a line may be half written.
        return [json.loads(line) for line in text[: text.rfind(b"\n") + 1].splitlines()]

    def wait_for_audit(
        self, matches: Callable[[dict[str, Any]], bool], *, since: int = 0, timeout: float = 5
    ) -> dict[str, Any]:
        """The first such event. The server writes it when it has answered, so it may be late."""
        deadline = time.monotonic() + timeout
        while True:
            events = self.audit_events(since)
            for event in events:
                if matches(event):
                    return event
            if time.monotonic() > deadline:
                raise ControlPlaneError(f"no such audit event within {timeout} s, of {len(events)}")
            time.sleep(POLL)

    def request_info(self, requests: Iterable[Mapping[str, object]]) -> list[dict[str, Any]]:
        """What Kubernetes takes requests for; see `requestinfo`."""
        return request_info(requests, self.programs)


class Server:
    """One process with its own log, in its own process group, on a lifeline."""

    def __init__(self, name: str, argv: Sequence[str], folder: Path) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self._argv, self._folder = argv, folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._argv,
                # `until-eof`: it ends when this pipe closes, which the kernel does
                # however this process ends.
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=self._folder,
                env=base_environment(self._folder / "home"),
                start_new_session=True,  # Ctrl-C is for us, not for it
            )

    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def code(self) -> int | None:
        return self._process.returncode if self._process else None

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def stop(self, grace: float = 0) -> None:
        """End it and all that it started; with a grace time, politely first."""
        if self._process is None:
            return
        if grace:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(grace)
        self.kill()
        self._process.wait()
        if self._process.stdin:
            self._process.stdin.close()

    def _signal(self, number: signal.Signals) -> None:
        if self.alive():
            assert self._process
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    def tail(self, lines: int = 15) -> str:
        """The end of the log, for a message."""
        try:
            text = self.log.read_text(errors="replace").splitlines()[-lines:]
        except OSError as e:
            return f"no log: {e}"
        return f"end of {self.log}:\n" + "\n".join(text)


class Greeter(http.server.BaseHTTPRequestHandler):
    """Greets, and gives back what it is sent."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(POD_GREETING)

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def _answer(self, body: bytes) -> None:
        self.send_response(http.HTTPStatus.OK)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


# Kubernetes' own answers ------------------------------------------------------------------


def request_info(
    requests: Iterable[Mapping[str, object]], programs: build.Programs | None = None
) -> list[dict[str, Any]]:
    """
    What kube-apiserver takes each request for: {"method": "GET", "url": "/api/v1/pods"},
    or, for bytes that text cannot hold, {"method": ..., "target": base64}. No cluster needed.
    """
    return [json.loads(line) for line in _answers("requestinfo", requests, programs)]


def meaning(requests: Iterable[Mapping[str, object]], programs: build.Programs | None = None) -> list[dict[str, Any]]:
    """
    What kube-apiserver's handlers read from each whole request: RequestInfo, options, the object or the
    effect of the patch on `onto`; {"error": ...} for what they refuse. Bodies are base64. No cluster needed.
    """
    return [json.loads(line) for line in _answers("meaning", requests, programs)]


def encode(objects: Iterable[object], programs: build.Programs | None = None) -> list[str]:
    """
    The Kubernetes protobuf encoding of objects, in base64; a field that the type does
    not have is an error. No cluster needed.
    """
    lines = _answers("encode", ({"object": o} for o in objects), programs)
    for line in lines:
        if line.startswith("{"):
            raise ControlPlaneError(f"encode: {json.loads(line)['error']}")
    return lines


def _answers(program: str, questions: Iterable[Mapping[str, object]], programs: build.Programs | None) -> list[str]:
    programs = programs or build.build()
    result = subprocess.run(
        [programs.cluster, program],
        input="".join(json.dumps(question) + "\n" for question in questions),
        text=True,
        encoding="utf-8",
        errors="replace",  # an error message may quote bytes of a body
        capture_output=True,
        timeout=120,
        check=True,
    )
    return result.stdout.split("\n")[:-1]  # splitlines would also split at U+0085, which Go does not escape


# Helpers ------------------------------------------------------------------------------------


def free_ports(count: int) -> list[int]:
    """Different ports of 127.0.0.1 that nobody uses, and that the kernel will not give away."""
    numbers, chosen = random.SystemRandom(), []
    with contextlib.ExitStack() as held:
        for port in numbers.sample(PORTS, len(PORTS)):
            listener = held.enter_context(socket.socket())
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                continue
            chosen.append(port)
            if len(chosen) == count:
                return chosen
    raise ControlPlaneError(f"no {count} free ports from {PORTS.start} to {PORTS.stop}")


def is_free(port: int) -> bool:
    with socket.socket() as listener:
        # As Go does: connections of the last server that linger are no obstacle.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def listens(port: int) -> bool:
    with socket.socket() as client:
        client.settimeout(REQUEST_TIME)
        return client.connect_ex(("127.0.0.1", port)) == 0


def base_environment(home: Path) -> dict[str, str]:
    """Little of the user's: no proxies, no KUBECONFIG, no cluster that we may run in."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR", "GOMAXPROCS") if name in os.environ}
    return kept | {"HOME": str(home)}


def write_private(path: Path, text: str) -> Path:
    """Write a file that only this user can read, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with os.fdopen(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    scratch.replace(path)
    return path
