"""Tables and sentences that commands print about what the public functions return."""
