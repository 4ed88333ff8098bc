"""`make bench`: what nfw costs, each row a ratio to a named peer measured in the same run.

measure.py says what a row is and how it is measured; rulesets.py makes policies and rules; through_the_lab.py measures
the program between network namespaces, pure.py an engine by itself, etopen.py a rule set that people really load.
"""
