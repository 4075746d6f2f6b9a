import pytest

from addons.core.maskmessages import plain_part

PLAIN = [
    'secrets "db" not found',
    'deployments.apps "web" already exists',
    'secrets "db" is forbidden: User "oidc:ann" cannot get resource "secrets" in API group "" in the namespace "shop"',
    'secrets is forbidden: User "ann" cannot list resource "secrets" in API group "" at the cluster scope',
    'Operation cannot be fulfilled on secrets "db": the object has been modified; '
    "please apply your changes to the latest version and try again",
    "the server could not find the requested resource",
    "too old resource version: 7 (12)",
    "Unauthorized",
]


@pytest.mark.parametrize("message", PLAIN)
def test_messages_that_quote_nothing_pass_whole(message):
    assert plain_part(message, strict=True) == len(message)


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        pytest.param(
            'Secret "db" is invalid: type: Invalid value: "hunter2": field is immutable',
            'Secret "db" is invalid: type: Invalid value: ',
            id="a value",
        ),
        pytest.param(
            'Secret "db" is invalid: [data[a]: Invalid value: "hunter2": x, type: Required value]',
            'Secret "db" is invalid: [data[a]: Invalid value: ',
            id="several",
        ),
        pytest.param('Invalid value: "hunter2": field is immutable', "Invalid value: ", id="a cause"),
        pytest.param('Unsupported value: "hunter2"', "Unsupported value: ", id="unsupported"),
        pytest.param('admission webhook "x" denied the request: hunter2', "", id="a webhook"),
        pytest.param("anything else hunter2", "", id="anything else"),
        pytest.param('secrets "db" not found hunter2', "", id="more than the sentence"),
        pytest.param('secrets "hunter 2 with blanks" not found', "", id="a name that is none"),
        pytest.param("", "", id="empty"),
    ],
)
def test_everything_else_is_cut(message, shown):
    assert message[: plain_part(message, strict=True)] == shown


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        pytest.param(
            'Deployment.apps "web" is invalid: spec.replicas: Invalid value: -1: must be greater than 0',
            None,
            id="a number",
        ),
        pytest.param(
            'Pod "p" is invalid: spec.containers[0].image: Invalid value: " x": must not have blanks', None, id="a text"
        ),
        pytest.param(
            'Job.batch "j" is invalid: spec.template: Invalid value: core.PodTemplateSpec{Env: "hunter2"}: immutable',
            'Job.batch "j" is invalid: spec.template: Invalid value: ',
            id="a template",
        ),
        pytest.param(
            'Pod "p" is invalid: spec: Invalid value: "core.PodSpec{Env: hunter2}": immutable',
            'Pod "p" is invalid: spec: Invalid value: ',
            id="a template in quotes",
        ),
        pytest.param(
            'Pod "p" is invalid: spec: Forbidden: pod updates may not change fields other than `image`\n {hunter2}',
            'Pod "p" is invalid: spec: Forbidden: pod updates may not change fields other than',
            id="a diff",
        ),
        pytest.param(
            'admission webhook "w" denied the request: env hunter2',
            'admission webhook "w" denied the request: ',
            id="a webhook",
        ),
    ],
)
def test_of_workloads_what_prints_a_template_is_cut(message, shown):
    assert message[: plain_part(message, strict=False)] == (message if shown is None else shown)
