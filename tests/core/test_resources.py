import pytest

from addons.core import resources


@pytest.mark.parametrize(
    ("group", "resource", "may"),
    [
        pytest.param("", "services", True, id="service"),
        pytest.param("rbac.authorization.k8s.io", "roles", True, id="role"),
        pytest.param("", "pods", False, id="pod"),
        pytest.param("apps", "deployments", False, id="deployment"),
        pytest.param("tollgate.dev", "approvals", False, id="an approval is made by a held request"),
        pytest.param("example.com", "widgets", True, id="who knows what an aggregated api does"),
        pytest.param("apps", "gadgets", True, id="unknown resource of a known group"),
    ],
)
def test_put_may_create(group, resource, may):
    assert resources.put_may_create(group, resource) is may


def test_events_are_the_same_objects_in_two_groups():
    assert ("events.k8s.io", "events", "") in resources.same_objects("", "events", "")
    assert ("", "events", "") in resources.same_objects("events.k8s.io", "events", "")


def test_bindings_are_bindings_of_pods():
    assert ("", "pods", "binding") in resources.same_objects("", "bindings", "")
    assert ("", "bindings", "") in resources.same_objects("", "pods", "binding")


def test_everything_else_is_itself():
    assert resources.same_objects("", "pods", "exec") == (("", "pods", "exec"),)


@pytest.mark.parametrize(
    ("group", "resource", "expected"),
    [
        pytest.param("", "services", ("proxy", "status"), id="service"),
        pytest.param("apps", "deployments", ("status", "scale"), id="scaled"),
        pytest.param("", "configmaps", ("status",), id="whatever has no others"),
        pytest.param("tollgate.dev", "approvals", (), id="approval"),
    ],
)
def test_subresources(group, resource, expected):
    assert resources.subresources(group, resource) == expected


def test_groups_of():
    assert resources.groups_of("events") == ("", "events.k8s.io")
    assert resources.groups_of("deployments") == ("apps",)
    assert resources.groups_of("widgets") == ()
