"""
The address of the server inside this process, for the guard: the one place beside the API server
that a flow may be sent to.
"""

_addresses: list[tuple[str, int]] = []


def serve_at(address: tuple[str, int] | None) -> None:
    """Set by the addon that runs the server; None when it stops."""
    _addresses[:] = [address] if address else []


def address() -> tuple[str, int] | None:
    return _addresses[0] if _addresses else None
