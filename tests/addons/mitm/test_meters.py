from addons.mitm import meters


def test_notes_reach_who_listens():
    heard = []

    def listener(*said):
        heard.append(said)

    meters.note("x")
    assert not meters.listened()
    meters.listen(listener)
    try:
        meters.note("x", 2, "a")
        assert meters.listened()
    finally:
        meters.leave(listener)
        meters.leave(listener)
    meters.note("x", 3)
    assert heard == [("x", ("a",), 2)]


def test_a_script_that_is_loaded_again_takes_the_place_of_the_one_before():
    def old():
        return []

    def new():
        return []

    meters.offer("a", old)
    meters.offer("a", new)
    meters.withdraw("a", old)
    assert dict(meters.sources())["a"] is new
    meters.withdraw("a", new)
    assert "a" not in dict(meters.sources())


def test_who_counts_wrongly_stops_nobody(caplog):
    def broken(*said):
        raise KeyError("x")

    heard = []
    meters.listen(broken)
    meters.listen(lambda *said: heard.append(said))
    try:
        meters.note("x")
    finally:
        meters.leave(broken)
        meters._listeners.clear()
    assert heard
    assert "could not be counted" in caplog.text
