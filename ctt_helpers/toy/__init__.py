"""Where the embedded suite comes from.

A lexicon and a grammar of English, the minimal pairs, and the pretraining.
"""
