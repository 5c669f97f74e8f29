"""The desk: the whole stack on one machine, as child processes that each can be started again alone."""

from gateway.desk.claim import Claim, DeskError
from gateway.desk.supervisor import Backoff, Child, Desk, Start

__all__ = ["Backoff", "Child", "Claim", "Desk", "DeskError", "Start"]
