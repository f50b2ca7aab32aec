"""Any bytes at all for the parser, chosen by what they make it do."""
