"""
The pictures of the docs, taken of the real thing: a control plane, the gateway in mitmweb, kubectl on a terminal.

    python -m tests.screenshots                 into docs/images
    python -m tests.screenshots --out FOLDER    elsewhere
    python -m tests.screenshots --no-browser    only the terminals

Needs the test's environment, and Chromium for the pictures of mitmweb.
"""

import argparse
import asyncio
import io
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.cluster.build import BuildError
from tests.cluster.controlplane import ControlPlane, ControlPlaneError
from tests.e2e.gateway import ROOT
from tests.screenshots import browser, scene, terminal
from tests.screenshots.scene import Scene

OUT = ROOT / "docs" / "images"
TERMINALS = ("blocked.svg", "approval-kubectl.svg", "approval-watch.svg")
PAGES = ("mitmweb.png", "mitmweb-secret.png")
COLUMNS = 116
WIDE = 138  # kubectl's table of approvals
SIZE = (1400, 790)  # of mitmweb's window
COLOURS = 200  # of a PNG: enough for an interface, and half the size
LIMIT = 60  # seconds

HELD = "kubectl delete namespace shop"
WEB = """(path => [...document.querySelectorAll("tr")].filter(row => row.innerText.includes(path)).at(-1))"""


def tell(text: str) -> None:
    print(f"screenshots: {text}", file=sys.stderr, flush=True)


def blocked(at: Scene) -> str:
    """What an agent may do, and what it may not."""
    lines = (
        "kubectl get pods -n shop",
        "kubectl delete configmap checkout-critical -n prod-web",
        "kubectl get secret db-password -n shop -o yaml",
    )
    return "\n".join(at.say("agent", line, COLUMNS) for line in lines)


def decided_by_kubectl(at: Scene) -> str:
    """A question, and kubectl's yes."""
    line = "kubectl create namespace web"
    with at.start("agent", line, WIDE) as asks:
        name = waiting(at)
        decision = """'{"spec":{"decision":"Approved","reason":"for the new shop"}}'"""
        said = [
            at.say("approver", "kubectl get approvals", WIDE),
            at.say("approver", f"kubectl patch approval {name} --type=merge -p {decision}", WIDE),
        ]
        return "\n".join([*said, f"{scene.prompt('agent', line)}    # waited all the time\n{asks.finish()}"])


def decided_one_by_one(at: Scene, asks: terminal.Program) -> str:
    """A question on the approver's terminal, and a no with its reason."""
    line = "./run.sh approvals watch -i"
    with at.start("approver", line, COLUMNS) as watch:
        watch.wait_for("[s]kip: ")
        watch.type("n\n")
        watch.wait_for("Reason (may be empty): ")
        watch.type("not while the shop is open\n")
        watch.wait_for("denied\n")
        answer = watch.printed
    return f"{scene.prompt('approver', line)}\n{answer}\n{scene.prompt('agent', HELD)}\n{asks.finish()}"


def waiting(at: Scene) -> str:
    """The name of the one approval that waits, once it does."""
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        if names := at.pending():
            return names[0]
        time.sleep(1)  # each look is a line in mitmweb
    raise terminal.NotSeen("nothing waits for an approval")


async def listed(page: browser.Page, at: Scene) -> bytes:
    """mitmweb's list, while a request is held."""
    url, token = at.interface()
    await page.size(*SIZE)
    await page.open(f"{url}/?token={token}")
    await page.until(f"{WEB}('namespaces/shop')?.innerText.includes('hold')")
    return await page.picture()


async def opened(page: browser.Page) -> bytes:
    """The answer with a Secret in it, as mitmweb shows it."""
    await page.run(f"{WEB}('secrets/db-password').click()")
    await page.until("location.hash.includes('/flows/')")
    await page.run("""[...document.querySelectorAll("a")].find(tab => tab.innerText == "Response").click()""")
    await page.until("document.body.innerText.includes('**masked:')")
    return await page.picture()


def smaller(png: bytes) -> bytes:
    """The same with few colours, where Pillow is there."""
    try:
        from PIL import Image
    except ImportError:
        return png
    made = io.BytesIO()
    with Image.open(io.BytesIO(png)) as picture:
        picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(made, "PNG", optimize=True)
    return made.getvalue()


async def take(at: Scene, folder: Path, out: Path, with_browser: bool) -> None:
    """All pictures, in the order in which a visitor would see them."""

    def write(name: str, transcript: str, columns: int, title: str) -> None:
        (out / name).write_text(terminal.svg(transcript, title, columns), encoding="utf-8")
        tell(name)

    await asyncio.to_thread(at.quiet, "agent", "kubectl get pods -A")  # kubectl looks up the API once
    write("blocked.svg", await asyncio.to_thread(blocked, at), COLUMNS, "an agent")
    for who, line in (
        ("agent", "kubectl scale deployment web -n shop --replicas=2"),
        ("engineer", "kubectl get secret db-password -n shop -o yaml"),
    ):
        await asyncio.to_thread(at.quiet, who, line)
    transcript = await asyncio.to_thread(decided_by_kubectl, at)
    write("approval-kubectl.svg", transcript, WIDE, "an approver")
    with at.start("agent", HELD, COLUMNS) as asks:
        await asyncio.to_thread(waiting, at)
        if with_browser:
            async with browser.page(folder) as page:
                (out / "mitmweb.png").write_bytes(smaller(await listed(page, at)))
                (out / "mitmweb-secret.png").write_bytes(smaller(await opened(page)))
            tell("mitmweb.png, mitmweb-secret.png")
        transcript = await asyncio.to_thread(decided_one_by_one, at, asks)
    write("approval-watch.svg", transcript, COLUMNS, "an approver, one question after the other")


def main(argv: Sequence[str]) -> None:
    p = argparse.ArgumentParser(
        prog="python -m tests.screenshots", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    p.add_argument("--out", type=Path, default=OUT, metavar="FOLDER", help="default: docs/images")
    p.add_argument("--no-browser", action="store_true", help="only the pictures of terminals")
    args = p.parse_args(argv)
    if not args.no_browser and browser.program() is None:
        raise SystemExit("screenshots: this machine has no Chromium; install it, or give --no-browser")
    args.out.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="tollgate-screenshots-"))
    try:
        with ControlPlane.start(folder / "plane", progress=tell) as cluster:
            cluster.seed()
            own = cluster.gateway_kubeconfig(folder / "own.kubeconfig")
            with scene.web(folder / "gateway", cluster, own) as at:
                asyncio.run(take(at, folder, args.out, not args.no_browser))
    except (BuildError, ControlPlaneError, browser.BrowserError, terminal.NotSeen) as e:
        raise SystemExit(f"screenshots: {e}") from e
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1:])
