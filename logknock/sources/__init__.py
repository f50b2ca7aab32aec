"""Log sources: each turns one kind of log into Packets. Siblings know nothing of each other."""
