"""What is probably not meant in a policy that loads: warnings of ``nfw policy check``, never errors.

Nothing here changes what a policy does, and nothing is guessed: a rule is called shadowed or never matching only where
that follows from the rules themselves; where it cannot be decided within bounds, nothing is said.
"""

from __future__ import annotations

from nfw.policy.check.stateful import check_stateful
from nfw.policy.check.stateless import check_stateless
from nfw.policy.errors import MAX_PROBLEMS, Level, PolicyError
from nfw.policy.model import Policy


def check_policy(policy: Policy) -> list[PolicyError]:
    """Warnings, each with file and line where there is one, in the order of the policy's stages.

    At most :data:`nfw.policy.errors.MAX_PROBLEMS` of them, then one that says how many more there are.
    """
    found: list[PolicyError] = []
    check_stateless(policy.stateless, found.append)
    check_stateful(policy, found.append)
    if len(found) > MAX_PROBLEMS:
        more = len(found) - MAX_PROBLEMS
        found[MAX_PROBLEMS:] = [PolicyError(str(policy.file), 0, 0, f"and {more} more warnings", Level.WARNING)]
    return found
