from pathlib import Path

import pytest

from addons.core import policycases
from addons.core.policycases import CaseError

POLICY = """
apiVersion: tollgate.dev/v1alpha1
kind: Policy
metadata: {name: p}
rules:
- name: big
  action: deny
  match: {resources: [deployments.apps], verbs: [create, update, patch]}
  when: object.spec.replicas > 3 && oldObject == null
- {name: nodes, action: hold, match: {resources: [nodes]}, approval: {groups: [oncall]}}
"""
HEAD = "identities:\n  agent: {username: bot}\n  ann: {username: ann, groups: [g], extra: {team: [a]}}\ncases:\n"
DEPLOY = "POST /apis/apps/v1/namespaces/shop/deployments, body: {metadata: {name: a}}"


def table(tmp_path: Path, *cases: str, head: str = HEAD) -> Path:
    (tmp_path / "p.yaml").write_text(POLICY)
    file = tmp_path / "p.cases.yaml"
    file.write_text(head + "".join(f"- {{{case}}}\n" for case in cases))
    return file


def outcome(tmp_path, case):
    file = table(tmp_path, case)
    [loaded] = policycases.load(file)
    return policycases.run(loaded, policycases.load_policies(policycases.policy_of(file)))


@pytest.mark.parametrize(
    ("case", "verdict", "good"),
    [
        pytest.param(
            f"name: a, request: {DEPLOY}, object: {{spec: {{replicas: 4}}}}, verdict: deny, rule: big",
            "deny",
            True,
            id="as said",
        ),
        pytest.param(
            f"name: a, request: {DEPLOY}, object: {{spec: {{replicas: 4}}}}, verdict: none",
            "deny",
            False,
            id="not as said",
        ),
        pytest.param(
            f"name: a, request: {DEPLOY}, object: {{spec: {{replicas: 2}}}}, verdict: none", "none", True, id="none"
        ),
        pytest.param(
            f"name: a, request: {DEPLOY}, verdict: deny, rule: big",
            "deny",
            False,
            id="an object that is not given proves nothing",
        ),
        pytest.param("name: a, request: GET /api/v1/nodes, verdict: hold, rule: nodes", "hold", True, id="hold"),
        pytest.param("name: a, request: GET /api//v1, verdict: deny", "refused", False, id="refused before any policy"),
        pytest.param("name: a, as: ann, request: GET /api/v1/pods, verdict: none", "none", True, id="somebody else"),
    ],
)
def test_run(tmp_path, case, verdict, good):
    found = outcome(tmp_path, case)
    assert (found.verdict, found.good) == (verdict, good)


def test_a_policy_that_allows_is_run_alone(tmp_path):
    file = table(tmp_path, "name: a, request: GET /api/v1/pods, verdict: deny")
    (tmp_path / "p.yaml").write_text(POLICY + "- {name: ok, action: allow, match: {verbs: [watch]}}\n")
    [case] = policycases.load(file)
    assert policycases.run(case, policycases.load_policies(tmp_path / "p.yaml")).good


@pytest.mark.parametrize(
    ("case", "message"),
    [
        pytest.param("name: a, request: GET /x", ":5: verdict: is missing", id="no verdict"),
        pytest.param(
            "name: a, request: GET /x, verdict: maybe", ":5: verdict: 'maybe' is none of", id="no such verdict"
        ),
        pytest.param("name: a, request: /x, verdict: deny", ":5: request: is not METHOD /PATH", id="no method"),
        pytest.param("name: a, request: GET /x, verdict: deny, rul: b", ":5: rul: unknown field", id="misspelled"),
        pytest.param("name: 1, request: GET /x, verdict: deny", ":5: name: has the wrong type", id="a number"),
        pytest.param("name: a, as: bob, request: GET /x, verdict: deny", ":5: as: nobody", id="nobody"),
        pytest.param(
            "name: a, request: POST /x, verdict: deny, body: {a: 2026-01-01}",
            ":5: body: has a value that JSON",
            id="a date",
        ),
        pytest.param("a", ":5: a: unknown field", id="no case"),
    ],
)
def test_mistakes(tmp_path, case, message):
    with pytest.raises(CaseError) as e:
        policycases.load(table(tmp_path, case))
    assert message in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("a: [", ":1: is not YAML", id="not YAML"),
        pytest.param("- a", ":1: is not a map", id="a list"),
        pytest.param("identities: {a: {username: b}}\ncases: []", "cases: is no list, or empty", id="no case"),
        pytest.param("cases: [{name: a}]", "identities: is no map, or empty", id="nobody asks"),
        pytest.param("identities: {a: {name: b}}\ncases: [{name: a}]", "identities.a: needs a username", id="no name"),
    ],
)
def test_broken_tables(tmp_path, text, message):
    (tmp_path / "x.cases.yaml").write_text(text)
    with pytest.raises(CaseError) as e:
        policycases.load(tmp_path / "x.cases.yaml")
    assert message in str(e.value)


def test_two_cases_of_one_name(tmp_path):
    case = "name: a, request: GET /x, verdict: deny"
    with pytest.raises(CaseError, match=r":6: name: another case is called 'a'"):
        policycases.load(table(tmp_path, case, case))


def test_tables(tmp_path):
    file = table(tmp_path, "name: a, request: GET /x, verdict: deny")
    (tmp_path / "lonely.yaml").write_text(POLICY)
    assert policycases.tables([tmp_path, file, tmp_path / "p.yaml"]) == [file]
    with pytest.raises(CaseError, match=r"has no table of cases beside it \(lonely\.cases\.yaml\)"):
        policycases.tables([tmp_path / "lonely.yaml"])
    with pytest.raises(CaseError, match="cannot be read"):
        policycases.load(tmp_path / "absent.cases.yaml")
