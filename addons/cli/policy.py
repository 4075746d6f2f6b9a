"""`./run.sh policy check|test|explain|schema|reference`: policy as something people work with."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from addons.cli.arguments import split
from addons.core import (
    admission,
    classify,
    explain,
    kubectl,
    policy,
    policycases,
    policycheck,
    policyfile,
    policyreference,
    policyschema,
)
from addons.core import status as statuses
from addons.core.model import Action, Identity, Operation

ROOT = Path(__file__).resolve().parents[2]
HELP = """\
  check PATH...     mistakes with file and line (exit 1), and rules that have no effect (exit 0)
  test [PATH...]    run the tables of cases (*.cases.yaml) beside the policies; exit 1 if one fails
  explain           every rule, and why it matches a request or not
  schema            the JSON Schema of policy files, for editors
  reference         every field of a policy file, as a page

  ./run.sh policy check policies/
  ./run.sh policy test policies/packs/workloads.yaml
  ./run.sh policy explain --user ann --groups dev,oncall -- delete pod web-1 -n shop
  ./run.sh policy explain --user ann -- get --raw /metrics

Exit status: 0 good, 1 a mistake, a case that failed, or a file that cannot be read; 2 an option is not known.
"""
_COLOURS = {"allow": "32", "hold": "33", "deny": "31", "none": "2", "ok": "32", "FAILED": "1;31"}


class UsageError(Exception):
    """Something the caller has to change first; one sentence."""


def main(arguments: Sequence[str], out: TextIO | None = None) -> int:
    own, extra = split(arguments)
    p = argparse.ArgumentParser(
        prog="./run.sh policy", epilog=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = p.add_subparsers(dest="command", required=True, metavar="check|test|explain|schema|reference")
    for name in ("check", "test"):
        c = commands.add_parser(name)
        c.add_argument("paths", nargs="*", type=Path, metavar="PATH", help="files or folders; default: policies/")
    e = commands.add_parser("explain", usage="./run.sh policy explain --user U [--groups A,B] -- REQUEST")
    e.add_argument("--user", required=True, help="the verified name, e.g. oidc:ann")
    e.add_argument("--groups", default="", metavar="A,B", help="comma-separated")
    e.add_argument("--issuer", default="", metavar="URL", help="of the token")
    e.add_argument("--policies", default=str(ROOT / "policies"), metavar="PATH", help="several joined with ':'")
    commands.add_parser("schema")
    commands.add_parser("reference")
    args = p.parse_args(own)
    screen = _Screen(out or sys.stdout)
    try:
        match args.command:
            case "check":
                return check(args.paths or [ROOT / "policies"], screen)
            case "test":
                return test(args.paths or [ROOT / "policies", ROOT / "policies" / "packs"], screen)
            case "explain":
                identity = Identity(args.user, groups=tuple(filter(None, args.groups.split(","))), issuer=args.issuer)
                paths = [Path(part).expanduser() for part in args.policies.split(os.pathsep) if part]
                return explain_request(identity, paths, extra, screen)
            case "reference":
                screen.line(policyreference.page(policyschema.schema()).rstrip("\n"))
            case _:
                screen.line(schema_text().rstrip("\n"))
    except policy.PolicyError as error:
        print(error, file=sys.stderr)
        print(_count(len(error.problems), "mistake"), file=sys.stderr)
        return 1
    except (UsageError, policycases.CaseError, kubectl.WordsError) as error:
        print(f"tollgate: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        sys.stderr.close()  # no complaint at exit about the pipe that `head` closed
        return 1
    return 0


def check(paths: Sequence[Path], screen: "_Screen") -> int:
    """Mistakes are raised; what has no effect is said."""
    loaded = policyfile.load(paths)
    for warning in policycheck.warnings(loaded):
        screen.line(f"warning: {warning}")
    if note := policycheck.nobody_approves(loaded):
        screen.line(f"note: {note}")
    rules = sum(len(one.rules) for one in loaded.policies)
    names = ", ".join(one.name for one in loaded.policies)
    if rules > policycheck.MAX_RULES:
        screen.line(f"over {policycheck.MAX_RULES} rules are not compared with each other")
    screen.line(f"good: {_count(rules, 'rule')} in {names}, revision {loaded.revision}")
    return 0


def test(paths: Sequence[Path], screen: "_Screen") -> int:
    tables = policycases.tables(paths)
    if not tables:
        raise UsageError(f"{', '.join(map(str, paths))}: there is no table of cases (*{policycases.SUFFIX})")
    failed = total = 0
    for table in tables:
        policies = policycases.load_policies(policycases.policy_of(table))
        screen.line(str(table))
        outcomes = [policycases.run(case, policies) for case in policycases.load(table)]
        width = max(len(outcome.rule) for outcome in outcomes)
        for outcome in outcomes:
            total += 1
            mark = "ok" if outcome.good else "FAILED"
            screen.row((mark, 6), (outcome.verdict, 7), (outcome.rule, width), (outcome.case.name, 0))
            if not outcome.good:
                failed += 1
                wanted = f"{outcome.case.verdict} {outcome.case.rule}".strip()
                screen.line(f"       {outcome.case.place}: should be {wanted}; {outcome.message}")
    screen.line(f"{_count(total, 'case')}, {failed} failed")
    return 1 if failed else 0


test.__test__ = False  # type: ignore[attr-defined]  # for pytest, which would take it for a test


def explain_request(identity: Identity, paths: Sequence[Path], words: Sequence[str], screen: "_Screen") -> int:
    asked = kubectl.request(words)
    policies = policyfile.load(paths)
    headers = {"content-type": asked.content_type} if asked.content_type else {}
    try:
        operation = classify.classify(asked.method, asked.target, headers, asked.body)
    except statuses.Refused as refused:
        raise UsageError(f"request: the gateway refuses it as it is: {refused.refusal.message}") from None
    screen.line(f"{asked.method} {asked.target}")
    impacts = ", ".join(impact.word for impact in sorted(operation.impacts, reverse=True))
    who = "an agent" if policies.is_agent(identity) else "a person"
    screen.line(f"{policy.describe(operation)} ({impacts}), by {identity.username}, {who}")
    lines = explain.explain(policies, identity, operation)
    width = max((len(line.rule.full_name) for line in lines), default=0)
    for line in lines:
        word = line.rule.action.name.lower()
        answer = "may match" if line.why.startswith("hangs on") else "matches" if line.matches else "no"
        note = f"{answer}{': ' + line.why if line.why else ''}{' (observes only)' if line.observe else ''}"
        screen.row((word if line.matches else "none", 5, word), (line.rule.full_name, width), (note, 0))
        if line.matches and line.rule.action is Action.HOLD:
            for said in explain.approval_words(line.rule.approval):
                screen.line(f"       {said}")
    try:
        verdict = policies.evaluate(identity, operation)
    except admission.NeedsObjects as needs:
        names = " and ".join(name for name in admission.VARIABLES if name in needs.names)
        screen.line(f"=> hangs on {names}, which the gateway fetches; where that fails:")
        verdict = policies.evaluate(identity, operation, admission.NOT_FETCHED)
    action = verdict.action.name.lower()
    by = f"by {verdict.policy}/{verdict.rule}" if verdict.rule else "since no rule matches"
    screen.row(("=>", 2), (action, 0), (by, 0))
    if verdict.action is not Action.ALLOW:
        screen.line(f"   {statuses.one_line(policy.refusal(verdict, identity, operation).message)}")
    explain_masking(policies, identity, operation, screen)
    return 0


def explain_masking(policies: policy.PolicySet, identity: Identity, operation: Operation, screen: "_Screen") -> None:
    """Every mask rule, and what of the answer would be masked."""
    lines = explain.explain_masks(policies, identity, operation)
    width = max((len(line.rule.full_name) for line in lines), default=0)
    for line in lines:
        note = f"{'matches' if line.matches else 'no'}{': ' + line.why if line.why else ''}"
        screen.row(
            ("mask", 5), (line.rule.full_name, width), (f"{note}{' (observes only)' if line.observe else ''}", 0)
        )
    for said in explain.masking_words(policies, identity, operation):
        screen.line(f"=> mask: {statuses.one_line(said)}")


def schema_text() -> str:
    """What is in policies/schema.json."""
    return json.dumps(policyschema.schema(), indent=2, ensure_ascii=False) + "\n"


class _Screen:
    """Lines and columns; colours on a terminal only."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._colours = out.isatty() and "NO_COLOR" not in os.environ

    def line(self, text: str) -> None:
        self._out.write(text + "\n")

    def row(self, *columns: Any) -> None:
        """Columns of (text, width) or (colour of this word, width, text)."""
        cells = []
        for word, width, *text in columns:
            shown = (text[0] if text else word).ljust(width)
            colour = _COLOURS.get(word) if self._colours else None
            cells.append(f"\033[{colour}m{shown}\033[0m" if colour else shown)
        self._out.write("  ".join(cells).rstrip() + "\n")


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
