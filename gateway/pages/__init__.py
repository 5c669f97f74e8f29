"""Hand-written pages for people, and what they are made of. Served by `Site`, which asks nobody else for anything."""
