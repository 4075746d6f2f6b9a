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
