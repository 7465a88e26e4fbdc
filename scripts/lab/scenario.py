"""The list of scenarios: a function, what it needs, how long it may take."""

import dataclasses
import typing

ALL = {}


@dataclasses.dataclass
class Scenario:
    name: str
    run: typing.Callable  # takes True for the full form
    need: typing.Callable  # raises Skip
    seconds: int  # as long as it may take; the suite is patient with a busy machine
    full_seconds: int

    @property
    def summary(self):
        return (self.run.__doc__ or "").strip().splitlines()[0]


def scenario(need, seconds=60, full_seconds=None):
    """Registers `def name(full)`; its name in the suite has dashes for underscores."""
    def register(run):
        name = run.__name__.replace("_", "-")
        ALL[name] = Scenario(name, run, need, seconds, full_seconds or seconds)
        return run
    return register
