"""One module per ``volspike`` command; each imports what it needs when it runs."""
