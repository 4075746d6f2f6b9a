"""
The address of the server inside this process, for the guard: the one place beside the API server
that a flow may be sent to.
"""

_addresses: list[tuple[str, int]] = []


def serve_at(address: tuple[str, int]) -> None:
    """Said by the addon that runs the server. Of two, while a script is loaded anew, the later counts."""
    _addresses.append(address)


def stop_serving(address: tuple[str, int]) -> None:
    """What is said twice does no harm."""
    if address in _addresses:
        _addresses.remove(address)


def address() -> tuple[str, int] | None:
    return _addresses[-1] if _addresses else None
