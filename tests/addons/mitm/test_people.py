from addons.core.model import Identity
from addons.mitm import people

BOB = Identity("bob")


def test_everybody_is_an_agent_until_somebody_says_otherwise():
    assert people.is_agent(BOB)

    def judge(identity):
        return identity.username != "bob"

    def later(identity):
        return True

    people.judged_by(judge)
    try:
        assert not people.is_agent(BOB)
        assert people.is_agent(Identity("eve"))
        people.judged_by(later)
        assert people.is_agent(BOB)
        people.no_longer(later)
        people.no_longer(later)
        assert not people.is_agent(BOB)
    finally:
        people.no_longer(judge)
    assert people.is_agent(BOB)
