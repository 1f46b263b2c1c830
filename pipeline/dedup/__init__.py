"""Which samples show the same: exactly, nearly, or in meaning; and which of them stays."""
