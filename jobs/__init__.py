"""How things run: the verbs of the command line, and work over shards on Ray."""
