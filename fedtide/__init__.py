"""What both sides share: messages, topics, blobs, bundles, limits, errors, the transport seam.

Invariant: this package imports none of the others (`tests/test_architecture.py`).
"""

import os

__version__ = "0.1.0"

# From 1.29 on, onnxruntime makes an id of the machine and reports to its vendor, sizes and digests
# of graphs and weights included, unless this is there when it is first imported. Nothing leaves a
# device but what fedtide sends; only somebody who says 0 is not contradicted.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
