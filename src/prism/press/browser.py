"""The browser that draws pictures of figures."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")


def find_browser() -> str | None:
    """Path of a Chromium-like browser: `BROWSER_PATH`, else one on the path, else the one that kaleido finds."""
    if given := os.environ.get("BROWSER_PATH"):
        return given if Path(given).exists() else None
    on_path = next(filter(None, map(shutil.which, NAMES)), None)
    try:
        from choreographer.browsers.chromium import Chromium

        return on_path or Chromium.find_browser(skip_local=False)
    except ImportError:
        return on_path
