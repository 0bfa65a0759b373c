"""Where the embedded suite comes from: a lexicon, a grammar of English, minimal pairs, and the pretraining."""
