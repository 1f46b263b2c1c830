"""What the data is and what we learn about it: shards, columns, captions, blends, the catalog."""
