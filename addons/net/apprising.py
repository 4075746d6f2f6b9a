"""
One notice through apprise (Slack, Teams, PagerDuty, mail and some hundred more): a program of its own.

`python -I addons/net/apprising.py`, with JSON on standard input: `{"check": [URL, …]}` prints the
numbers of those that apprise does not know; `{"url": …, "title": …, "text": …, "urgent": …}` sends.
In a process of its own since apprise blocks, and logs the secrets that its URLs carry; what hangs can
be ended here. Nothing of ours is imported: -I leaves the folder of this file off the path.
"""

import json
import logging
import sys
from typing import TextIO

SENT, NOT_SENT = 0, 1


def main(asked: TextIO, out: TextIO) -> int:
    import apprise  # an optional package, and slow to import: only here

    logging.disable()  # its lines have URLs in them
    request = json.load(asked)
    if "check" in request:
        known = [bool(apprise.Apprise.instantiate(url, suppress_exceptions=True)) for url in request["check"]]
        json.dump([number for number, good in enumerate(known) if not good], out)
        return SENT
    service = apprise.Apprise(asset=apprise.AppriseAsset(app_id="Tollgate", app_desc="Tollgate", app_url=""))
    if not service.add(request["url"]):
        return NOT_SENT
    sent = service.notify(
        title=request["title"],
        body=request["text"],
        # Plain text: for a service of HTML or Markdown it is escaped there once more.
        body_format=apprise.NotifyFormat.TEXT,
        notify_type=apprise.NotifyType.WARNING if request["urgent"] else apprise.NotifyType.INFO,
    )
    return SENT if sent else NOT_SENT


if __name__ == "__main__":
    raise SystemExit(main(sys.stdin, sys.stdout))
