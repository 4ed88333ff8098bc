"""Which bytes of a flow must not leave yet, because the unit they belong to was not judged."""

from __future__ import annotations

from engines.stateful.app.detect import Detector
from engines.stateful.conversation import Conversation
from engines.stateful.flowrules import FlowRules
from engines.stateful.layer import Layer
from engines.stateful.ruleset import RuleSet
from engines.stateful.segment import BOTH
from engines.verdict import Direction


class Holding:
    """One per flow. ``held[direction]`` counts from the end of that direction's stream."""

    __slots__ = ("_closed", "_conversation", "_expired", "_rules", "_ruleset", "_tcp", "held")

    def __init__(self, ruleset: RuleSet, conversation: Conversation, rules: FlowRules, tcp: bool) -> None:
        self._ruleset = ruleset
        self._conversation = conversation
        self._rules = rules
        self._tcp = tcp
        self.held = [0, 0]
        self._closed = [False, False]
        self._expired = [False, False]  # waited long enough: bytes of an unfinished unit go on

    def release(self) -> None:
        """The flow is decided: nothing is held."""
        self.held[:] = (0, 0)

    def close(self, direction: Direction) -> None:
        """That direction ended: its last unit stays as it is."""
        self._closed[direction] = self._expired[direction] = True

    def expire(self) -> None:
        """Nobody can wait any longer for what is held now."""
        for side in BOTH:
            self._expired[side] = self._expired[side] or self.held[side] > 0

    def update(self) -> str | None:
        """Recount what must not leave yet. Answers why the flow cannot go on, if it cannot."""
        held, conversation = self.held, self._conversation
        held[0] = held[1] = 0
        layer = conversation.top
        if conversation.detector is not None:
            if self._tcp:
                for side in BOTH:
                    early = len(conversation.early[side])
                    held[side] = early if early and self._at_stake(conversation.detector, side) else 0
        elif layer is not None and layer.parser is not None:
            inside = conversation.inside
            if self.enforces(layer):
                if layer.parser.gave_up:
                    return "app_layer_error"
                held[0], held[1] = layer.parser.held(BOTH[0]), layer.parser.held(BOTH[1])
            elif inside is None:
                return None
            if inside is not None and inside.parser is not None and self.enforces(inside):
                for side in BOTH:
                    held[side] = max(held[side], inside.parser.held(side))
        else:
            return None
        for side in BOTH:
            if held[side] == 0:
                self._expired[side] = self._closed[side]
            elif self._expired[side]:
                held[side] = 0
            elif held[side] > self._ruleset.limits.hold_bytes:
                held[side] = 0
                return "hold_overflow"
        return None

    def _at_stake(self, detector: Detector, side: Direction) -> bool:
        """What that side's first bytes may still begin could be decided against."""
        if detector.final_for(side):
            return False
        if self._ruleset.defaults.drop is not None:
            return True
        stakes, covers = self._ruleset.stakes[side], self._rules.any_covers
        return covers(stakes.until_final) or any(covers(stakes.on.get(name, ())) for name in detector.possible(side))

    def enforces(self, layer: Layer) -> bool:
        """Something could be decided against what this layer carries."""
        return not layer.log_only and (layer.group.denies or self._ruleset.defaults.drop is not None)

    def judgeable(self, direction: Direction) -> bool:
        """Nothing is missing to say what the application is up to."""
        if not self._tcp or self._expired[direction]:
            return True
        conversation = self._conversation
        if conversation.detector is not None:
            return conversation.detector.final_for(direction)
        if self.held[0] or self.held[1]:
            return False
        layer = conversation.top
        if layer is None or layer.parser is None or layer.parser.gave_up or layer.parser.finished or layer.log_only:
            return True
        return layer.known
