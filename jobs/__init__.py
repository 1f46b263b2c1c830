"""How things run: the verbs of the command line, and work over shards on Ray."""

import os

# Before Ray is imported, which also other libraries do: without the first, its servers listen on
# every interface.
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
# A loaded machine needs more than the default half minute to start one.
os.environ.setdefault("RAY_gcs_server_port_wait_time_s", "90")
