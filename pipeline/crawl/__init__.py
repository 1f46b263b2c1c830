"""From lists of URLs to shards: lists, addresses, courtesy, fetching, resizing, writing."""
