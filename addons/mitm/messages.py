"""Copies of requests and responses, cheaper than mitmproxy's own."""

from mitmproxy import http


def twin[M: (http.Request, http.Response)](message: M) -> M:
    """
    Another message of the same parts, without mitmproxy's checks of each part's type: they passed when the message
    was made. The parts are immutable, but for the headers, of which it has its own. Trailers are shared.
    """
    kind, data, headers = type(message), message.data, http.Headers.__new__(http.Headers)
    headers.fields = message.headers.fields
    made = kind.__new__(kind)
    made.data = type(data).__new__(type(data))
    vars(made.data).update(vars(data), headers=headers)
    return made
