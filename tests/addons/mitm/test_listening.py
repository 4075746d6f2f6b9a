import socket

import pytest

from tests import proxy


async def test_only_tcp_is_bound(tls, confdir):
    async with proxy.running(1, tls.combined, tls.ca_file, confdir) as port:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            s.bind(("127.0.0.1", port))  # fails while somebody listens for HTTP/3 there


async def test_a_port_is_nobody_elses_unless_both_say_so(tls, confdir):
    async with proxy.running(1, tls.combined, tls.ca_file, confdir) as port:
        with socket.socket() as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            with pytest.raises(OSError, match="in use"):
                s.bind(("127.0.0.1", port))
