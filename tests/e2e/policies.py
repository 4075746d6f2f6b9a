"""Policies that e2e tests run the gateway with."""

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
