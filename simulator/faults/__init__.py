"""The federation under virtual time, with faults: what must hold (docs/simulation.md)."""
