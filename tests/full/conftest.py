"""The suites in here with an environment of their own are collected only inside it."""

import os

collect_ignore = [] if os.environ.get("FOVEAL_PEERS") else ["peers"]
