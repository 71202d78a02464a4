"""What both sides share: messages, topics, blobs, bundles, limits, errors, the transport seam.

Invariant: this package imports none of the others (`tests/test_architecture.py`).
"""

__version__ = "0.1.0"
