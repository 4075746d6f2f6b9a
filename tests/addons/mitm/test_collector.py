import gc

from addons.mitm import collector


def test_what_is_there_is_no_longer_looked_at():
    before = gc.get_threshold()
    try:
        collector.settle()
        assert gc.get_freeze_count() > 10_000
        assert gc.get_threshold() == (collector.YOUNG, collector.MIDDLE, collector.OLD)
        cycle: list[object] = []
        cycle.append(cycle)
        del cycle
        assert gc.collect() >= 1  # what comes later is collected as ever
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)
