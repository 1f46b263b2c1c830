"""How good, how honest and how varied captions are; nothing here needs a model or Java.

Functions take captions as lists of words, see `tokens.tokenise`.
"""
