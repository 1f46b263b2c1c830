"""How things run: the verbs of the command line, and work over shards on Ray."""

import os

# Before Ray is imported, which also other libraries do: without the first, its servers listen on
# every interface.
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
