"""The GPU side of imgen: the worker, its renderer, the contract it speaks and the local serverless endpoint."""
