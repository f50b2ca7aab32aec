"""The whole program, for real, in network namespaces."""
