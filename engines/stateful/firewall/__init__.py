"""Suricata 8's firewall mode: a rule set in front of the ordinary one, with default policies that drop.

::

    packet ──► packet:pre_flow ──► packet:pre_stream ──► packet:filter ──► app:filter ──► the ordinary rules (TD)
                    rules.py: text -> FirewallRule          policies.py: what happens where no rule matched
                    tables.py: rules by table and hook      hooks.py: how far a transaction is
                    filter.py: judges one flow              inspector.py: the two instances, one behind the other

Over captures only: the packet path of the firewall itself has policies for this. Source: Suricata user guide, "Firewall
Mode"; where it says nothing, Suricata's test suite.
"""
