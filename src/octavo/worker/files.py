"""How many files a process may have open."""

import resource

MAX_FILES = 65536


def raise_file_limit() -> None:
    """Every connection is an open file, and every block of shared memory; the usual limit of 1024 is one that a process
    may raise itself."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_FILES if hard == resource.RLIM_INFINITY else min(MAX_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
