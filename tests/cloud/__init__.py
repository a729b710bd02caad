"""The cloud room against loopback servers: real clients, checked requests, no network."""
