"""Policies that e2e tests run the gateway with."""

from pathlib import Path

from addons.cli import demo

# RBAC alone decides: for tests of the way itself.
EVERYTHING = """
apiVersion: tollgate.dev/v1alpha1
kind: Policy
metadata: {name: everything}
rules:
- name: everything
  action: allow
  match: {verbs: ["*"], resources: ["*", "*/*"]}
- name: everything-else
  action: allow
  match: {verbs: ["*"], nonResourceURLs: ["*"]}
"""
# The same, and nothing is masked: SPDY and port-forwards pass for nobody else.
UNMASKED = EVERYTHING.replace("rules:", 'people: "true"\nrules:', 1)


def patient(folder: Path) -> Path:
    """The demo's policies, but what is held waits long enough for a machine that is busy."""
    path = demo.write_policies(folder) / "default.yaml"
    held = f'groups: ["{demo.APPROVERS}"]'
    text = path.read_text(encoding="utf-8")
    assert held in text
    path.write_text(text.replace(held, f"{held}, wait: 3m"), encoding="utf-8")
    return folder
