"""
Messages of the API server about what is masked: errors quote what they refuse.

A JSON patch that moves a password into another field gets a 422 that says the password; an
update of a Job prints the whole pod template, environment included, in Go's own syntax.
"""

import re
from collections.abc import Callable

# What quotes nothing of an object but its name (apimachinery's api/errors and the authorizer).
_NAME = r'"[A-Za-z0-9.:@/_-]{0,253}"'
_PLAIN = re.compile(
    rf"""
    [a-z0-9.]+\ {_NAME}\ (?:not\ found|already\ exists)
    | [a-z0-9.]+(?:\ {_NAME})?\ is\ forbidden:\ User\ {_NAME}\ cannot\ [a-z]+\ resource\ "[a-z0-9./]+"
      \ in\ API\ group\ "[a-z0-9.]*"(?:\ in\ the\ namespace\ "[a-z0-9-]*"|\ at\ the\ cluster\ scope)
    | Operation\ cannot\ be\ fulfilled\ on\ [a-z0-9.]+\ {_NAME}:\ the\ object\ has\ been\ modified;
      \ please\ apply\ your\ changes\ to\ the\ latest\ version\ and\ try\ again
    | the\ server\ could\ not\ find\ the\ requested\ resource
    | the\ server\ does\ not\ allow\ this\ method\ on\ the\ requested\ resource
    | Unauthorized | Forbidden | Required\ value | Too\ many\ requests,\ please\ try\ again\ later\.
    | too\ old\ resource\ version:\ \d+\ \(\d+\)
    | The\ resourceVersion\ for\ the\ provided\ (?:watch|list)\ is\ too\ old\.
    """,
    re.VERBOSE,
)
_OBJECT = re.compile(rf"[A-Za-z]+(?:\.[a-z0-9.]+)? {_NAME} is invalid: ")
_FIELD = re.compile(
    r"\[?[A-Za-z0-9_.\[\]-]{0,200}(?:: )?"
    r"(?:Invalid value|Unsupported value|Duplicate value|Not found|Too long|Forbidden): ?"
)
# A value that is neither a number nor a plain text, or a whole object in it.
_ECHO = re.compile(
    r'(?:Invalid|Unsupported|Duplicate) value: (?=[^"\d-]|"[^"]{0,400}[{\\])'
    r"|pod updates may not change fields other than"
    r"|denied the request: "
)
# Of a Warning header: code, agent, the text; several are joined by commas.
_WARNING = re.compile(r'([0-9]{3} [^\s"]{1,100} )"((?:[^"\\]|\\.)*)"(\s*,\s*|\s*$)')
_FIELD_NAME = r'\\"[A-Za-z0-9._\[\]-]{1,200}\\"'
# What the server itself says of a request, and of the resource that it is about.
_PLAIN_WARNING = re.compile(
    rf"(?:unknown|duplicate) field {_FIELD_NAME}"
    r"|[a-z0-9./]{1,100} [A-Za-z]{1,100} is deprecated in v[0-9.]+\+(?:, unavailable in v[0-9.]+\+)?"
    r"(?:; use [a-z0-9./]{1,100} [A-Za-z]{1,100})?"
)


def plain_warnings(text: str, replacement: Callable[[str], str]) -> str:
    """A Warning header in which each text that is not known to quote nothing is replaced; the very same if none is."""
    pieces = []
    at = 0
    while at < len(text):
        found = _WARNING.match(text, at)
        if found is None:
            # direction: what is no warning in good order may be anything.
            pieces.append(f'299 - "{replacement(text[at:])}"')
            return "".join(pieces)
        said = found[2]
        pieces.append(found[0] if _PLAIN_WARNING.fullmatch(said) else f'{found[1]}"{replacement(said)}"{found[3]}')
        at = found.end()
    return "".join(pieces)


def plain_part(message: str, *, strict: bool) -> int:
    """
    How many of a message's letters, from its beginning, quote nothing of a masked object.

    strict: about Secrets and fields of rules, where what is not known to be plain is not. Else
    about workloads: only what prints whole pod templates is cut.
    """
    if not strict:
        found = _ECHO.search(message)
        return found.end() if found else len(message)
    if _PLAIN.fullmatch(message):
        return len(message)
    begin = _OBJECT.match(message)
    at = begin.end() if begin else 0
    error = _FIELD.match(message, at)
    return error.end() if error else at
