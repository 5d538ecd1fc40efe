"""What is in a registry, entry by entry, and what is wrong with it: what the command line prints."""
