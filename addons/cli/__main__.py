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
  revoke       the kill switch: refuse a user, a token, all agents: ./run.sh revoke --help
  backup       copy the state while the gateway runs: ./run.sh backup FILE
  restore      put a backup in the state's place; what was approved is void then
  policy       check, test and explain policies: ./run.sh policy --help
  sessions     what was recorded: who, when, how much was changed and refused
  show         the story of a recorded session: commands, verdicts, what changed
  verify       find the first edit, loss or insertion in a recording
  report       one HTML page about what was recorded
  backtest     recorded requests through another policy: what would change
  replay       send a recorded session to a staging cluster, as a dry run
  doctor       check what can be wrong: the cluster, issuers, policies, folders, and what the gateway itself could do
  alive        whether the gateway answers, for health checks
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
        case "doctor":
            from addons.cli import doctor

            raise SystemExit(doctor.main(rest))
        case "alive":
            from addons.cli import alive

            raise SystemExit(alive.main(rest))
        case "approvals":
            from addons.cli import approvals

            raise SystemExit(approvals.main(rest))
        case "revoke":
            from addons.cli import revoke

            raise SystemExit(revoke.main(rest))
        case "backup" | "restore":
            from addons.cli import backup

            raise SystemExit(backup.main(command, rest))
        case "policy":
            from addons.cli import policy

            raise SystemExit(policy.main(rest))
        case "sessions":
            from addons.cli import sessions

            raise SystemExit(sessions.main(rest))
        case "show":
            from addons.cli import show

            raise SystemExit(show.main(rest))
        case "verify":
            from addons.cli import verify

            raise SystemExit(verify.main(rest))
        case "report":
            from addons.cli import report

            raise SystemExit(report.main(rest))
        case "backtest":
            from addons.cli import backtest

            raise SystemExit(backtest.main(rest))
        case "replay":
            from addons.cli import replay

            raise SystemExit(replay.main(rest))
        case "demo":
            from addons.cli import demo

            demo.main(rest)
        case _:
            print(HELP, end="", file=sys.stderr)
            raise SystemExit(f"tollgate: there is no command {command!r}")


if __name__ == "__main__":
    main(sys.argv[1:])
