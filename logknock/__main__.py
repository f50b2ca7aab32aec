"""`python -m logknock` is the logknock command."""

from .cli import main

main()
