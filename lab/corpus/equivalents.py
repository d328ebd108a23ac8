"""Which systematic faults are without effect, and why: no packet, and nobody who looks at the node, can tell.

Each reason rests on what the steps in datapath/reload/ do. Whoever changes a step reads the reasons that name it, and
has a new or changed reason checked by somebody else (docs/corpus.md says when that was done last).
"""

from __future__ import annotations

from fnmatch import fnmatchcase

_FETCHED_AGAIN = "the template cache returns the template that it has just returned"
_WRITTEN_AGAIN = "the same bytes replace the file that nobody has read yet; taking it back twice removes it once"
_MOVED_AGAIN = (
    "the second time no map is pinned at the places that were cleared, what lies beside them is known to be of this "
    "reload, and the lock is held: nothing is moved"
)
_OPENED_AGAIN = "the maps that the first time made are used by nothing, are not pinned, and close with the reload"
_FILLED_AGAIN = (
    "nothing uses the new maps yet, and updates wait for the lock: each entry is written again, as the old map has it "
    "by then, and the pin is found; that entries do not fit is warned of twice"
)
_SLOTS_AGAIN = "each slot is given the program that it has; connections are merged once more, as the commit does it too"
_POLICY_AGAIN = "each slot is given the program that it has; the undo puts this one back and then the old one"
_ROUTES_AGAIN = "the routes are as the step wants them: it finds nothing to do, or installs the same route again"
_FILTERS_AGAIN = "no filter of ours is left in that direction: it finds nothing to do"
_NO_UNDO = "the step registers no undo: there is none to leave out"
_ONE_OBJECT = (
    "nothing can fail between the publication of the only object and the point of no return; a signal could come "
    "between these two statements, and then the object on the disk is newer than the programs until the next reload"
)
_IDLE = (_NO_UNDO, _ONE_OBJECT)

_PINNED_LATER = (
    "a program refers to its maps, not to their pins, and runs only once it is attached; nobody else can pin a map "
    "of the same name meanwhile: who would waits for the lock on the maps, or on the endpoint, that the reload holds"
)
_OTHER_OBJECT = "the two steps belong to two objects; connections, which both know, are carried over for each of them"
_TO_AND_FROM = (
    "the policy slot and the routes are met on the way to the pod, the ingress program on the way from it, and each is "
    "complete by itself; what meets both, a connection or a frame to the pod itself, meets an old and a new one in "
    "either order"
)
_POLICY_OF_THE_HOST = (
    "the next step attaches cil_to_host to cilium_host, which runs what the tunnel brings for the host; the host's "
    "policy slot is met by what pods send to the host, and with endpoint routes by what the host sends to them: no "
    "packet and no connection meets both. The slot's program uses nothing of the host's calls map, cil_from_host, "
    "which sends for both, is attached later in either order, pods are built to call the slot only after the host's "
    "reload, and without its firewall nothing is inserted"
)
_HOSTS_OWN = (
    "the next step replaces or removes cil_from_netdev, which meets what comes by a device; what comes by cilium_net "
    "has left by cilium_host, whose programs are attached before either. cil_to_host there asks only for packets to "
    "the host's own addresses, and those the host has sent itself: the device brings no packet and no answer of their "
    "connections. A packet for other addresses that meets both is asked nothing at cilium_net"
)
_TWO_HOOKS = (
    "each program is complete by itself, and cil_to_overlay only counts; a packet that is sent back into the tunnel "
    "meets an old and a new one in either order"
)
_SAME_MAPS = (
    "the object comes from the same template as the host's own, and has the same pinned maps but for the calls map: "
    "the host's steps, earlier in the plan, have moved aside what does not fit and filled and pinned what is missing; "
    "a map that they made fits, and until the reload ends nobody else moves or removes it: who would waits for the "
    "lock on the maps, or on the endpoint; so only maps that every load makes anew are left, which this fault moves as "
    "well, and which this step never fills"
)

REASONS: dict[str, str] = {
    "*/compile/twice": _FETCHED_AGAIN,
    "*/compile/not-undone": _NO_UNDO,
    "*/write-object*/twice": _WRITTEN_AGAIN,
    "*/repin-maps*/twice": _MOVED_AGAIN,
    "*/open-maps*/twice": _OPENED_AGAIN,
    "*/open-maps*/not-undone": _NO_UNDO,
    "*/migrate-maps*/twice": _FILLED_AGAIN,
    "*/migrate-maps*/swapped": _PINNED_LATER,
    "*/load-programs*/not-undone": _NO_UNDO,
    "*/fill-arrays*/twice": _SLOTS_AGAIN,
    "*/fill-arrays*/not-undone": _NO_UNDO,
    "*/insert-policy/twice": _POLICY_AGAIN,
    "*/install-routes/twice": _ROUTES_AGAIN,
    "*/remove-routes/twice": _ROUTES_AGAIN,
    "*/detach-*/twice": _FILTERS_AGAIN,
    "pod*/commit/not-undone": _ONE_OBJECT,
    "overlay/commit/not-undone": _ONE_OBJECT,
    "host/fill-arrays:*/swapped": _OTHER_OBJECT,
    "host/repin-maps:cilium_net/calls-only": _SAME_MAPS,
    "host/repin-maps:device/calls-only": _SAME_MAPS,
    "host/migrate-maps:cilium_net/unfilled": _SAME_MAPS,
    "host/migrate-maps:device/unfilled": _SAME_MAPS,
    "pod*/insert-policy/swapped": _TO_AND_FROM,
    "pod*/attach-ingress/swapped": _TO_AND_FROM,
    "host/insert-policy/swapped": _POLICY_OF_THE_HOST,
    "host/attach-ingress:cilium_net/swapped": _HOSTS_OWN,
    "overlay/attach-ingress/swapped": _TWO_HOOKS,
}
"""The reasons, by patterns of names of faults; the first that fits counts."""


def reason(name: str) -> str:
    """Return why a fault is without effect, "" if it is not."""
    return next((why for pattern, why in REASONS.items() if fnmatchcase(name, pattern)), "")


def is_idle(name: str) -> bool:
    """Tell whether the reason is that a fault never takes effect: then no scenario can exercise it."""
    return reason(name) in _IDLE
