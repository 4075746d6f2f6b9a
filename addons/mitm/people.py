"""Who is an agent, by the policies of this moment: said by the addon that has them, asked by those before it."""

from collections.abc import Callable

from addons.core.model import Identity

type IsAgent = Callable[[Identity], bool]

_judges: list[IsAgent] = []


def judged_by(judge: IsAgent) -> None:
    """Of two, while a script is loaded anew, the later counts."""
    _judges.append(judge)


def no_longer(judge: IsAgent) -> None:
    """What is said twice does no harm."""
    if judge in _judges:
        _judges.remove(judge)


def is_agent(identity: Identity) -> bool:
    """Direction: where no policies are, everybody is one."""
    return _judges[-1](identity) if _judges else True
