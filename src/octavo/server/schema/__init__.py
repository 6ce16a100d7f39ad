"""What request bodies are made of. Null counts as absent, and so does an empty list where one is optional; unknown
fields are ignored.

What would constrain or change the output and is not supported is refused by name: a client that asks for valid JSON
must not get text that merely looks like it.
"""
