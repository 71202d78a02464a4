"""`python -m simulator`."""

import os
import sys

# Before numpy: the vectors are small, and each process has a core of its own.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from simulator.faults.command import main

sys.exit(main())
