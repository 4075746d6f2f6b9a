import io
import json
from pathlib import Path

import pytest

from addons.cli import policy

ROOT = Path(__file__).parents[3]
PACK = ROOT / "policies" / "packs" / "storage.yaml"
HEAD = "apiVersion: tollgate.dev/v1alpha1\nkind: Policy\nmetadata: {name: p}\nrules:\n"
READ = "- {name: read, action: allow, match: {verbs: [get], resources: [pods]}}\n"
LOOK = "- {name: look, action: deny, match: {resources: [pods], verbs: [create]}, when: object.spec.hostNetwork}\n"
CREATE = "- {name: create, action: allow, match: {verbs: [create], resources: [pods]}}\n"


@pytest.fixture
def file(tmp_path):
    file = tmp_path / "p.yaml"
    file.write_text(HEAD + READ + LOOK + CREATE)
    return file


def run(*arguments):
    out = io.StringIO()
    return policy.main([str(a) for a in arguments], out), out.getvalue()


def test_check_says_that_it_is_good(file):
    code, out = run("check", file)
    assert code == 0
    assert out.startswith("good: 3 rules in p, revision ")


def test_check_names_the_place_of_a_mistake(file, capsys):
    file.write_text(HEAD + READ.replace("pods", "podz") + READ)
    code, out = run("check", file)
    assert (code, out) == (1, "")
    said = capsys.readouterr().err
    assert f"{file}:5: rules[0].match.resources[0]: unknown resource 'podz'; did you mean pods?" in said
    assert "2 mistakes" in said


def test_check_warns(file):
    file.write_text(HEAD + READ + "- {name: none, action: deny, match: {verbs: [get]}}\n")
    code, out = run("check", file)
    assert code == 0
    assert f"warning: {file}:5: rule p/read: rule p/none denies all that it matches" in out


def test_test_is_a_table():
    code, out = run("test", PACK)
    assert code == 0
    assert "ok      hold     delete-claim             delete a claim\n" in out
    assert out.endswith("cases, 0 failed\n")
    assert "\033" not in out


def test_test_fails_with_a_failed_case(file):
    cases = file.with_name("p.cases.yaml")
    cases.write_text(
        "identities: {a: {username: a}}\ncases:\n- {name: one, request: GET /api/v1/pods/x, verdict: deny}\n"
        "- {name: two, request: GET /api/v1/namespaces/a/pods/x, verdict: deny, rule: look}\n"
    )
    code, out = run("test", file)
    assert code == 1
    assert f"FAILED  allow    read  two\n       {cases}:4: should be deny look" in out
    assert out.endswith("2 cases, 2 failed\n")


def test_test_without_a_table(file, capsys):
    assert run("test", file)[0] == 1
    assert "has no table of cases beside it" in capsys.readouterr().err


def test_colours_on_a_terminal_only(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    out = Terminal()
    policy.main(["test", str(PACK)], out)
    assert "\033[33mhold   \033[0m" in out.getvalue()
    monkeypatch.setenv("NO_COLOR", "1")
    out = Terminal()
    policy.main(["test", str(PACK)], out)
    assert "\033" not in out.getvalue()


def explain(file, *words, user="bot"):
    return run("explain", "--user", user, "--groups", "a,b", "--policies", file, "--", *words)


def test_explain_says_of_every_rule_why(file):
    code, out = explain(file, "get", "pod", "web-1", "-n", "shop")
    assert code == 0
    assert out.splitlines() == [
        "GET /api/v1/namespaces/shop/pods/web-1",
        "get pods web-1 in namespace shop (read), by bot, an agent",
        "deny   p/look    no: verbs: get is not in [create]",
        "allow  p/create  no: verbs: get is not in [create]",
        "allow  p/read    matches",
        "=>  allow  by p/read",
        "=> mask: what is secret in the answer is masked",
    ]


def test_explain_says_what_is_masked(file):
    file.write_text(HEAD + READ + "mask:\n- {name: m, match: {resources: [pods], namespaces: [shop]}, mask: never}\n")
    out = explain(file, "get", "pod", "web-1", "-n", "shop")[1]
    assert out.endswith("mask   p/m  matches\n=> mask: nothing is masked\n")
    out = explain(file, "get", "pods", "-A")[1]
    assert out.endswith(
        "mask   p/m  matches: shows nothing, namespaces: no namespace, so all of them, is not in [shop]\n"
        "=> mask: what is secret in the answer is masked\n"
    )


def test_explain_of_what_hangs_on_objects(file):
    _, out = explain(file, "create", "pod", "web-1", "-n", "shop")
    assert "deny   p/look    may match: hangs on object\n" in out
    assert "=> hangs on object, which the gateway fetches; where that fails:\n=>  deny  by p/look\n" in out


HOLD = """\
- name: hold
  action: hold
  match: {verbs: [delete], resources: [pods]}
  approval: {groups: [oncall], maxTokenAge: 5m, require: reason}
  grant: {for: 30m}
"""


def test_explain_says_on_what_terms_it_is_approved(file):
    file.write_text(HEAD + HOLD)
    lines = explain(file, "delete", "pod", "web-1", "-n", "shop")[1].splitlines()
    assert lines[2:6] == [
        "hold   p/hold  matches",
        "       approved by 1 of group oncall, who logged in at most 5m before; waits 25s, valid 15m",
        "       a decision says why",
        "       a yes opens the rule for 30m, in the namespace",
    ]
    assert "approved by" not in explain(file, "get", "pod", "web-1")[1]  # it does not match


def test_check_says_that_nobody_can_approve(file):
    file.write_text(HEAD + HOLD)
    assert run("check", file)[1].startswith("note: no policy says who people are (`people:`)")
    file.write_text(HEAD.replace("rules:", "people: identity.username == 'ann'\nrules:") + HOLD)
    assert run("check", file)[1].startswith("good: ")


def test_explain_shows_what_the_client_reads(file):
    _, out = explain(file, "get", "--raw", "/metrics")
    assert "=>  deny  since no rule matches\n   no rule allows get /metrics for bot; use what the policy allows" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        pytest.param((), "request: is missing", id="no request"),
        pytest.param(("delete", "pods", "--all"), "one request for each object", id="a fan-out"),
        pytest.param(("GET", "/api//v1"), "request: the gateway refuses it as it is: ", id="refused anyway"),
    ],
)
def test_explain_in_one_sentence(file, capsys, words, message):
    assert explain(file, *words)[0] == 1
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_schema():
    code, out = run("schema")
    assert code == 0
    assert json.loads(out)["title"] == "Tollgate policy"


def test_the_shipped_policies_have_no_warning():
    code, out = run("check", ROOT / "policies", ROOT / "policies" / "packs")
    assert (code, [line.partition(":")[0] for line in out.splitlines()]) == (0, ["note", "good"])
