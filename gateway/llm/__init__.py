"""Who says a prompt better: a language model behind an OpenAI-compatible endpoint, or the catalogue's own phrases."""
