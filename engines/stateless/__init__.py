"""Stateless rules: the header of one packet against an ordered list; the first match decides: pass, drop or forward.

:mod:`engines.stateless.rule` has the values, :mod:`engines.stateless.filter` compiles and matches them. Text becomes
rules in ``nfw.policy``.
"""
