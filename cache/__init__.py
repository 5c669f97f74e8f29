"""The semantic cache: texts to vectors, vectors to what was drawn for them, and what must agree before that counts.

A library with no web framework and no database of jobs; the gateway says what to keep and what a hit is worth.
"""
