"""A long run of the real daemon among everything that happens to one: `python -m tests.soak`."""
