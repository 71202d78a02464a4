"""What runs on the server: round machine, cohort, strategy, store, runner.

Invariant: imports `fedtide` and nothing else of the project.
"""
