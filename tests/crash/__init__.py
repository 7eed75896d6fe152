"""Crash harness: faults at system calls, power loss replayed from a trace, a scan for leaked keys, and its controls.

`python -m crash` with tests/ on the path; docs/testing.md says what each part checks.
"""
