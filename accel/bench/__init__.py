"""`accel bench`: dense attention against every policy and published rule, in one run, on the machine at hand.

cases.py says what is measured, runner.py in which order and within which time, timing.py how.
"""
