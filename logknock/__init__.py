"""logknock: port knocking from the firewall's log."""

__version__ = "0.1.0"
