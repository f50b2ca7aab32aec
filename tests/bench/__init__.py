"""Figures beside a peer, in one run."""
