"""A fleet of devices under virtual time: conditions, policies, records (docs/simulate.md)."""
