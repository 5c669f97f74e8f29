"""The built-in model: the world it was trained on, the program that trained it, its judge and its weights."""
