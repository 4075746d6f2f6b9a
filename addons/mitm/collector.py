"""
Python's garbage collector, told that what is there after the start stays.

A request makes and drops some thousand objects, nearly all freed at once by their counts. The collector looks for
cycles after every 700 by default, and now and then at everything there is: policies, schemas, patterns; 30 ms in
which nobody is answered. What is there after the start is taken out of its sight, and it looks less often: some
megabytes more memory.
"""

import gc

YOUNG = 20_000  # more objects made than freed until the young ones are looked at; some 20 requests
# Looks at the young ones until one at those that survived: while a list of 50 MB is parsed in a thread those are all,
# and the loop stands still for about 50 ms; after 20 it stood for 110.
MIDDLE = 5
OLD = 200  # looks at those until one at all, which by then are few


def settle() -> None:
    """Once everything is loaded."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, MIDDLE, OLD)
