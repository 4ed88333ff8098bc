"""`make fuzz`: whatever arrives, nothing raises, hangs or grows.

targets.py says what is tried and with which seeds; run.py runs one target for some time; __main__.py all of them.
"""
