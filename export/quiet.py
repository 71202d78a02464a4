"""Keeps the noise of torch's exporter from the user."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Discard warnings, log lines and prints of what runs inside; exceptions pass.

    The exporter warns about its own internals (deprecated calls, torchvision not installed),
    which no user can act on.
    """
    level = logging.root.manager.disable
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(level)
