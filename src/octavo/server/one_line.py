"""What clients write, as it may stand in a header and in a line of a log."""


def one_line(text: str, most: int) -> str:
    """A text in printable ASCII, with at most so many characters."""
    escaped = text[: most + 1].encode("ascii", "backslashreplace").decode()
    plain = "".join(char if " " <= char <= "~" else f"\\x{ord(char):02x}" for char in escaped)
    return plain if len(plain) <= most else f"{plain[: most - 3]}..."
