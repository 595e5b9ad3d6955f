"""The suites in here with an environment of their own are collected only inside it."""

import os

collect_ignore = [folder for folder in ("peers", "browser") if not os.environ.get(f"FOVEAL_{folder.upper()}")]
