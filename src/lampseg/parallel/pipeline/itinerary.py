"""Itinerary: the order of one device's messages in one step, so that they match without tags and never deadlock.

**Order.** The messages of one kind from one device to another arrive in the order in which they are sent (NCCL has no
tags), which is that of the sender's actions and, within an action, that of its routes. Every rank knows the timetable,
so the receiver posts its receives in that order, whatever the order in which it reads them.

**Waiting.** A send holds its tensor until the receiver has it, so it must be waited for some day, and a send may only
be done once the receiver has come to the action that receives. It is waited for at an action of its sender that, by the
timetable, is fed (its device is free, and what it reads is there) after the receiving action is and not before that has
ended. Then no ring of processes can wait for each other: let every action wait for the one before it on its device, for
those whose messages it reads, and for those that receive what it waits for. None of these is fed later by the timetable,
and those of the last sort are fed earlier. A ring would have to come back to the time it set out from, so none of its
waits is of the last sort; and without these the actions are those of the timetable, which are in order. How long the
actions really take does not matter.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import NamedTuple

from lampseg.parallel.pipeline.routes import Route, Routes
from lampseg.parallel.world import Kind
from lampseg.partition.schedule import Action, Entry, Timetable


class Message(NamedTuple):
    """One value or gradient on its way between two devices."""

    action: Action
    """That receives it."""
    route: Route


Channel = tuple[Kind, int]
"""Messages of one kind from one device."""


class Itinerary:
    """One device's part of a step.

    Args:
        timetable: of the whole pipeline; the same on every rank.
        device: mine.
        places: the device of each stage.
        routes: for each micro-batch, those of every stage.
    """

    def __init__(
        self, timetable: Timetable, *, device: int, places: Sequence[int], routes: Sequence[Sequence[Routes]]
    ) -> None:
        self.device, self.places = device, tuple(places)
        self.order = timetable.order(device)
        self._routes = routes
        self._fed = [entry.fed for entry in timetable.devices[device]]
        self._entries: dict[Action, Entry] = {e.action: e for entries in timetable.devices for e in entries}
        self.inbound: dict[Channel, list[Message]] = {}
        """What comes from each device, in the order in which it is sent."""
        for peer in range(len(timetable.devices)):
            for action in timetable.order(peer) if peer != device else ():
                for route in self.routes(action).leaving(action.kind):
                    stage = route.receiver(action.kind)
                    if self.places[stage] == device:
                        message = Message(Action(action.kind, stage, action.micro_batch), route)
                        self.inbound.setdefault((action.kind, peer), []).append(message)
        self._needed: dict[Action, dict[Channel, int]] = {}
        for channel, messages in self.inbound.items():
            for number, message in enumerate(messages, start=1):
                self._needed.setdefault(message.action, {})[channel] = number

    def routes(self, action: Action) -> Routes:
        """Those of an action's stage and micro-batch."""
        return self._routes[action.micro_batch][action.stage]

    def needed(self, action: Action) -> dict[Channel, int]:
        """How many messages of each channel must have been posted for an action: its own and all that come before."""
        return self._needed.get(action, {})

    def may_wait(self, receiving: Action) -> int:
        """The first of my actions (its number) at which I may wait for a send; beyond the last: at the end."""
        entry = self._entries[receiving]
        # Of an action that takes no time, the two are one: strictly later than it is fed.
        return max(bisect_left(self._fed, entry.end), bisect_right(self._fed, entry.fed))
