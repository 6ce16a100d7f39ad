"""What an answer must look like: constraints over the bytes of tokens, through llguidance.

Frontends compile a grammar for certain before anything is asked of an engine (`compiler`); engines compile it again and
follow it (`matcher`). llguidance is imported by whoever needs it first: a server without such requests never does.
"""
