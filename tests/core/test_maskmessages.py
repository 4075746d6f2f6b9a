import pytest

from addons.core.maskmessages import plain_part, plain_warnings

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


FIELD = r'299 - "unknown field \"metadata.nonsense\""'
OLD = '299 - "v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice"'


@pytest.mark.parametrize(
    ("header", "shown"),
    [
        pytest.param(FIELD, FIELD, id="a field"),
        pytest.param(OLD, OLD, id="an old version"),
        pytest.param(f"{FIELD}, {OLD}", f"{FIELD}, {OLD}", id="both"),
        pytest.param('299 - "it has hunter2"', '299 - "***"', id="anything"),
        pytest.param(f'{FIELD}, 299 - "it has hunter2", {OLD}', f'{FIELD}, 299 - "***", {OLD}', id="one of them"),
        pytest.param(r'299 - "a\" hunter2"', '299 - "***"', id="an escaped quote"),
        pytest.param("hunter2", '299 - "***"', id="no warning"),
        pytest.param(f"{FIELD} hunter2", '299 - "***"', id="something behind"),
        pytest.param(f'{FIELD}, 299 - "hunter2', f'{FIELD}, 299 - "***"', id="half of one"),
        pytest.param(r'299 - "unknown field \"hunter2 x\""', '299 - "***"', id="a field with a blank"),
        pytest.param("", "", id="nothing"),
    ],
)
def test_warnings(header, shown):
    assert plain_warnings(header, lambda _: "***") == shown
