"""The kernel's packet filter: the rules (ruleset) and the doors in them (sets)."""
