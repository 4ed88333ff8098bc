"""Default actions: names, combinations, which packets each is about. Source: AWS Network Firewall developer guide."""

from __future__ import annotations

import pytest

from engines.stateful.defaults import NAMES, Condition, check_default_actions, make_defaults
from engines.verdict import Direction

TO_SERVER, TO_CLIENT = Direction.TO_SERVER, Direction.TO_CLIENT
TCP, UDP, ICMP = 6, 17, 1


def test_all_eight_are_known() -> None:
    assert sorted(NAMES) == [
        "alert_established",
        "alert_established_app_layer",
        "alert_established_app_layer_to_server",
        "alert_strict",
        "drop_established",
        "drop_established_app_layer",
        "drop_established_app_layer_to_server",
        "drop_strict",
    ]


@pytest.mark.parametrize(
    "names",
    [
        [],
        ["drop_strict"],
        ["aws:drop_established", "aws:alert_established"],
        ["drop_strict", "alert_strict", "alert_established"],
        ["drop_established_app_layer", "alert_strict"],
        ["drop_established_app_layer_to_server", "alert_established_app_layer_to_server"],
        ["alert_strict", "alert_established_app_layer", "alert_established_app_layer_to_server"],
    ],
)
def test_combinations_that_fit(names: list[str]) -> None:
    assert check_default_actions(names) == []


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["drop"], "unknown default action 'drop'"),
        (["drop_strict", "drop_strict"], "is given twice"),
        (["drop_strict", "drop_established"], "at most one drop"),
        (["alert_established_app_layer", "alert_established_app_layer_to_server"], "only together with alert_strict"),
        (["drop_established", "alert_established_app_layer"], "cannot be combined"),
        (["alert_strict", "alert_established", "alert_established_app_layer"], "cannot be combined"),
    ],
)
def test_combinations_that_do_not(names: list[str], message: str) -> None:
    errors = check_default_actions(names)
    assert len(errors) == 1
    assert message in errors[0]
    with pytest.raises(ValueError, match=message):
        make_defaults(names)


def test_every_mistake_is_reported() -> None:
    assert (
        len(check_default_actions(["nonsense", "drop_strict", "drop_established", "alert_established_app_layer"])) == 3
    )


@pytest.mark.parametrize(
    ("name", "sid"),
    [
        ("drop_strict", 2),
        ("alert_established", 4),
        ("drop_established_app_layer", 6),
        ("drop_established_app_layer_to_server", 8),
    ],
)
def test_generated_rules(name: str, sid: int) -> None:
    (action,) = make_defaults([f"aws:{name}"]).all
    assert (action.ref.engine, action.ref.id, action.ref.msg, action.ref.rev) == (
        "stateful",
        sid,
        f"aws:{name} action",
        0,
    )
    assert str(action.ref) == f"stateful:{sid}"


@pytest.mark.parametrize(
    ("condition", "protocol", "direction", "established", "expected"),
    [
        (Condition.STRICT, TCP, TO_SERVER, False, True),
        (Condition.STRICT, TCP, TO_CLIENT, False, True),
        (Condition.ESTABLISHED, TCP, TO_SERVER, False, False),
        (Condition.ESTABLISHED, TCP, TO_SERVER, True, True),
        (Condition.ESTABLISHED, TCP, TO_CLIENT, True, False),
        (Condition.ESTABLISHED, UDP, TO_CLIENT, False, True),
        (Condition.ESTABLISHED, ICMP, TO_SERVER, False, True),
        (Condition.APP_LAYER, TCP, TO_CLIENT, True, True),
        (Condition.APP_LAYER, TCP, TO_CLIENT, False, False),
        (Condition.APP_LAYER_TO_SERVER, TCP, TO_CLIENT, True, False),
        (Condition.APP_LAYER_TO_SERVER, TCP, TO_SERVER, True, True),
        (Condition.APP_LAYER_TO_SERVER, UDP, TO_SERVER, False, True),
    ],
)
def test_which_packets(
    condition: Condition, protocol: int, direction: Direction, established: bool, expected: bool
) -> None:
    assert condition.applies(protocol, direction, established) is expected
