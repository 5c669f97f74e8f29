"""Compliance as the core sees it (`gateway.core.ports.Compliance`): in this process, or in a service of its own."""
