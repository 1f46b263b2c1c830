"""How good what a generator makes is: distances of distributions, fit to the text, exact prompt following."""
