"""The rendered world: scenes of exactly known content, their captions, and ways to read both back."""
