"""Runs on a device before anything is installed there: imports Python's own library and itself."""
