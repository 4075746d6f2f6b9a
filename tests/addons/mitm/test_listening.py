import socket

from tests import proxy


async def test_only_tcp_is_bound(tls, confdir):
    async with proxy.running(1, tls.combined, tls.ca_file, confdir) as port:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            s.bind(("127.0.0.1", port))  # fails while somebody listens for HTTP/3 there
