"""What writes captions: CoCa with fast decoding behind one captioner interface."""
