"""What `./run.sh` runs once the environment is there: one module a command."""

import sys
from collections.abc import Sequence

HELP = """\
Tollgate: a gateway that makes it safe to give an AI agent a Kubernetes cluster.

usage: ./run.sh [COMMAND] [OPTIONS]

  serve        the gateway before an existing cluster (the default command)
  web          the same with mitmproxy's web interface
  demo         a throwaway cluster with the gateway in front of it, to try things
  kubeconfig   print a kubeconfig for a client of the gateway
  approvals    see and decide what waits for a human's yes: ./run.sh approvals --help
  policy       check, test and explain policies: ./run.sh policy --help
  classify     read requests as JSON lines, print what the gateway takes them for
  test         run every test
  bench        measure it against a bare mitmdump, with a table and a picture

Each command has --help. Start with: ./run.sh demo
"""


def main(argv: Sequence[str]) -> None:
    if argv and argv[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return
    command, rest = (argv[0], argv[1:]) if argv and not argv[0].startswith("-") else ("serve", argv)
    match command:  # modules are imported only when asked for: `classify` should not wait for mitmproxy
        case "serve" | "web":
            from addons.cli import serve

            serve.main(command, rest)
        case "kubeconfig":
            from addons.cli import kubeconfig

            kubeconfig.main(rest)
        case "classify":
            from addons.cli import classify

            raise SystemExit(classify.main(rest))
        case "approvals":
            from addons.cli import approvals

            raise SystemExit(approvals.main(rest))
        case "policy":
            from addons.cli import policy

            raise SystemExit(policy.main(rest))
        case "demo":
            from addons.cli import demo

            demo.main(rest)
        case _:
            print(HELP, end="", file=sys.stderr)
            raise SystemExit(f"tollgate: there is no command {command!r}")


if __name__ == "__main__":
    main(sys.argv[1:])
