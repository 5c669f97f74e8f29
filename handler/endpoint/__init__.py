"""The local serverless endpoint: RunPod's public API for clients, RunPod's worker protocol for its SDK.

It is what runs on the desk instead of RunPod's cloud, with the same limits, so that a failure shows here first.
"""
