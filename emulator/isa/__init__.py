"""Instructions that need no unit of their own, and how every instruction becomes a step."""
