"""Each IP packet of a captured frame: what the link carried, what fragments add up to, what tunnels carry.

As in Suricata every layer is a packet of its own, with its own flow and the number of the frame it came in; so a rule
about addresses can match once for each. A fragment is one of them, and the datagram it completed is the next.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from engines.decode.defrag import DefragLimits, Defragmenter, FragmentPolicy, Outcome
from engines.decode.link import ARP, IPV4, IPV6, Frame, decode_link
from engines.decode.tunnels import TunnelPorts, carried
from engines.packet import Packet, decode

MAX_LAYERS = 16
"""Packets of one frame; what is deeper is not looked at, and the last has the event ``too_many_layers``. (Suricata:
``decoder.max-layers``.)"""


@dataclass(frozen=True, slots=True)
class Layer:
    """``packet``: None for what is no IP, then ``frame`` says what it is. ``events``: those that the packet alone does
    not show, of defragmentation and of depth. ``rebuilt``: put together from fragments, so none of the wire's."""

    frame: Frame
    packet: Packet | None
    events: tuple[str, ...] = ()
    rebuilt: bool = False

    @property
    def vlans(self) -> tuple[int, ...]:
        return self.frame.vlans

    @property
    def is_arp(self) -> bool:
        return self.frame.ethertype == ARP


def _bsd(address: bytes) -> FragmentPolicy:
    return FragmentPolicy.BSD


class Layers:
    """Reads the frames of one capture, in order. ``policy``: fragment policy of a receiver's packed address."""

    def __init__(
        self,
        policy: Callable[[bytes], FragmentPolicy] = _bsd,
        limits: DefragLimits | None = None,
        ports: TunnelPorts | None = None,
    ) -> None:
        self.defragmenter = Defragmenter(policy, limits)
        self._ports = ports or TunnelPorts()

    def read(self, linktype: int, data: bytes, now: float) -> tuple[Layer, ...]:
        """The layers of a frame that came at ``now`` (seconds), outermost first; at least one. Never raises."""
        frame: Frame | None = decode_link(linktype, data)
        layers: list[Layer] = []
        vlans: tuple[int, ...] = ()
        while frame is not None:
            if len(layers) >= MAX_LAYERS:
                last = layers[-1]
                layers[-1] = Layer(last.frame, last.packet, (*last.events, "too_many_layers"), last.rebuilt)
                break
            if vlans:
                # A tunnel's packets belong to the VLAN its carrier came in.
                frame = Frame(vlans + frame.vlans, frame.ethertype, frame.payload, frame.problem, frame.ethernet)
            vlans = frame.vlans
            if frame.ethertype not in (IPV4, IPV6):
                layers.append(Layer(frame, None))
                break
            frame = self._ip(frame, now, layers)
        return tuple(layers)

    def _ip(self, frame: Frame, now: float, layers: list[Layer]) -> Frame | None:
        """Adds one IP packet, and the datagram it completes; gives what is carried inside."""
        packet = decode(frame.payload)
        part = self.defragmenter.add(frame.payload, now, frame.vlans)
        layers.append(Layer(frame, packet, part.events))
        while part.outcome is Outcome.REBUILT and len(layers) < MAX_LAYERS:
            packet = decode(part.datagram)
            whole = Frame(frame.vlans, frame.ethertype, part.datagram, None, frame.ethernet)
            part = self.defragmenter.add(part.datagram, now, frame.vlans)  # fragments of fragments
            layers.append(Layer(whole, packet, part.events, rebuilt=True))
        return carried(packet, self._ports)
