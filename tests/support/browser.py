"""The browser of tests that look at a page."""

import shutil

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
