"""Policies of AWS Network Firewall, read as they are and written back.

::

    describe-* output, bare bodies,      documents ──┐
    files, folders                                   ├──► rule_group, tls, firewall_policy ──► Policy ──► write
    CloudFormation template ──cloudformation─────────┘              ▲
    map file (what AWS keeps elsewhere) ───────── mapfile ──────────┘

What AWS refuses is refused with AWS's own words, so far as they are known, and a sentence on what was expected.

Source: the service model NetworkFirewall 2020-11-12 (shapes, enumerations, bounds) and the developer guide.
"""
