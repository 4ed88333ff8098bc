"""What happens to traffic no rule decided about: the stateful default actions of strict order.

Source: AWS Network Firewall developer guide, "Evaluation order for stateful rule groups", field
``StatefulDefaultActions``; the names here go without the ``aws:`` prefix, which is accepted too. Four conditions, each
with a drop and an alert action:

strict                   every packet
established              packets to the server of an established connection
app_layer                packets of an established connection, as soon as what is needed to judge it is there: an
                         incomplete ClientHello or request head waits
app_layer_to_server      the same, packets to the server only

Where nothing is established (UDP, ICMP) the last three mean every packet.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from engines.stateful.signature import Action, RuleType, Signature
from engines.verdict import Direction, RuleRef

_TCP = 6


class Condition(enum.Enum):
    """When a default action applies. The value is the name's end and the sid AWS logs for it."""

    STRICT = ("strict", 2)
    ESTABLISHED = ("established", 4)
    APP_LAYER = ("established_app_layer", 6)
    APP_LAYER_TO_SERVER = ("established_app_layer_to_server", 8)

    @property
    def suffix(self) -> str:
        return self.value[0]

    @property
    def sid(self) -> int:
        return self.value[1]

    @property
    def waits(self) -> bool:
        """Lets what is incomplete go on until it can be judged."""
        return self in (Condition.APP_LAYER, Condition.APP_LAYER_TO_SERVER)

    def applies(self, protocol: int, direction: Direction, established: bool) -> bool:
        """Whether a packet of IP protocol number ``protocol`` is one the condition is about."""
        if self is Condition.STRICT or protocol != _TCP:
            return True
        return established and (self is Condition.APP_LAYER or direction is Direction.TO_SERVER)


@dataclass(frozen=True, slots=True)
class DefaultAction:
    """One default action and the generated rule it is logged as. ``index`` is its place in the hit counters."""

    name: str
    drops: bool
    condition: Condition
    index: int
    signature: Signature

    @property
    def ref(self) -> RuleRef:
        return self.signature.ref


@dataclass(frozen=True, slots=True)
class Defaults:
    """The default actions of a rule set: at most one drop, any alerts."""

    drop: DefaultAction | None = None
    alerts: tuple[DefaultAction, ...] = ()

    @property
    def all(self) -> tuple[DefaultAction, ...]:
        """In the order of their ``index``."""
        return tuple(sorted(((self.drop,) if self.drop else ()) + self.alerts, key=lambda action: action.index))

    def __bool__(self) -> bool:
        return self.drop is not None or bool(self.alerts)

    @property
    def waits(self) -> bool:
        """A drop depends on what the application says, so incomplete units must not leave before they are judged."""
        return self.drop is not None and self.drop.condition.waits


NAMES: dict[str, tuple[bool, Condition]] = {
    f"{verb}_{condition.suffix}": (verb == "drop", condition) for condition in Condition for verb in ("drop", "alert")
}
"""Every default action's name -> (drops, condition)."""


def check_default_actions(names: Sequence[str]) -> list[str]:
    """What is wrong with a list of default actions, one sentence each; empty when AWS would accept it.

    At most one drop; more than one alert only when one of them is ``alert_strict``; the ``established`` and
    ``app_layer`` families do not mix.
    """
    errors: list[str] = []
    known: list[str] = []
    for name in names:
        short = name.removeprefix("aws:")
        if short not in NAMES:
            errors.append(f"unknown default action {name!r}; known are {', '.join(NAMES)}")
        elif short in known:
            errors.append(f"default action {name!r} is given twice")
        else:
            known.append(short)
    drops = [name for name in known if NAMES[name][0]]
    if len(drops) > 1:
        errors.append(f"at most one drop default action is possible, not {' and '.join(drops)}")
    alerts = [name for name in known if not NAMES[name][0]]
    if len(alerts) > 1 and "alert_strict" not in alerts:
        errors.append(f"{' and '.join(alerts)} can be combined only together with alert_strict")
    families: dict[bool, list[str]] = {}
    for name in known:
        condition = NAMES[name][1]
        if condition is not Condition.STRICT:
            families.setdefault(condition.waits, []).append(name)
    if len(families) > 1:
        errors.append(f"{families[False][0]} and {families[True][0]} cannot be combined: choose one family")
    return errors


def make_defaults(names: Sequence[str]) -> Defaults:
    """The value of a list of names; raises ValueError with all of :func:`check_default_actions`."""
    errors = check_default_actions(names)
    if errors:
        raise ValueError("; ".join(errors))
    drop: DefaultAction | None = None
    alerts: list[DefaultAction] = []
    for index, name in enumerate(names):
        short = name.removeprefix("aws:")
        drops, condition = NAMES[short]
        ref = RuleRef(engine="stateful", id=condition.sid, msg=f"aws:{short} action")
        action = DefaultAction(
            short, drops, condition, index, default_signature(ref, Action.DROP if drops else Action.ALERT)
        )
        if drops:
            drop = action
        else:
            alerts.append(action)
    return Defaults(drop, tuple(alerts))


def default_signature(ref: RuleRef, action: Action) -> Signature:
    """What the alert of a default names as its rule."""
    return Signature(
        action=action,
        ref=ref,
        text="",
        protocol="ip",
        ip_protocols=frozenset(),
        app_proto="",
        source=None,
        source_port=None,
        destination=None,
        destination_port=None,
        bidirectional=False,
        rule_type=RuleType.PKT,
    )
