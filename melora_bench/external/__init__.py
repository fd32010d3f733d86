"""What comes from outside: files, JSON, config values, the hub and the package index; checked before it is used."""
