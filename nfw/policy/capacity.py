"""Capacity units, as AWS Network Firewall counts them.

Source: AWS Network Firewall developer guide, "Setting rule group capacity": a stateless rule costs the product of the
numbers of elements of its match settings, a stateful rule one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from engines.stateless.rule import StatelessRule

MAX_CAPACITY = 30_000  # of one rule group, and of all of a policy's of one kind


def stateless_units(rules: Iterable[StatelessRule]) -> int:
    return sum(stateless_rule_units(rule) for rule in rules)


def stateless_rule_units(rule: StatelessRule) -> int:
    settings = (rule.sources, rule.destinations, rule.source_ports, rule.destination_ports, rule.protocols)
    return math.prod(max(1, len(setting)) for setting in settings)
