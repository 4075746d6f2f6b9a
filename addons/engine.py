from mitmproxy import ctx
import gc
from addons.mitm import dispatch, inlining, trimming
class Engine:
    name = "tollgate_engine"
    def load(self, loader):
        import logging
        for m in (dispatch, inlining, trimming):
            r = m.install()
            if r: logging.getLogger(__name__).warning("engine: %s", r)
        for n in "browser blocklist anticache anticomp comment cut disableh2c export onboarding proxyauth serverplayback mapremote maplocal modifybody modifyheaders stickyauth stickycookie save savehar upstreamauth dumper keepserving readfilestdin".split():
            a = ctx.master.addons.get(n)
            if a: ctx.master.addons.remove(a)
            else: print("no", n)
    def running(self):
        import asyncio
        def f():
            gc.collect(); gc.freeze(); gc.set_threshold(20000, 20, 100)
        asyncio.get_running_loop().call_later(3, f)
addons = [Engine()]
