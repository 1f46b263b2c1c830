"""The tests; a package, so that no installed one of the same name (torch-fidelity brings one) hides it."""
