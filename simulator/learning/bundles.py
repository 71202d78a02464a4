"""A bundle by the name of a model: exported once, and kept."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from export.fingerprint import __doc__ as _unused  # noqa: F401
