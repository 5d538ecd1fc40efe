"""What an application holds: registries of every kind, the channels they give, and what they report themselves."""
