"""The key layouts of the frameworks, a file each, and what they share: Go's JSON and URLs, and the pace of writes."""
