"""The page pool: KV memory as a fixed number of pages, reference counted, with freed pages kept as cache.

A page holds the keys and values of `page_size` consecutive tokens of a sequence. Sequences with the same prefix share
its pages. A page whose last owner left keeps its content, and its key, until it is allocated again: the free list is
the cache, in least-recently-used order. Every operation is O(1) (PagedAttention: Kwon et al., 2023).
"""

from hashlib import blake2b

from octavo.backends.protocol import Int32

KEY_BYTES = 16


def root_key(tenant: str, salt: str) -> bytes:
    """The parent of a sequence's first page. Tenants never share pages, nor requests with different salts."""
    own = tenant.encode()
    return blake2b(len(own).to_bytes(8) + own + salt.encode(), digest_size=KEY_BYTES).digest()


def page_key(parent: bytes, token_ids: Int32) -> bytes:
    """The key of a full page: its tokens, Int32[page_size], and through `parent` all tokens before them."""
    return blake2b(parent + token_ids.tobytes(), digest_size=KEY_BYTES).digest()


class PagePool:
    """Which pages are free, who shares which, and which hold a known prefix.

    The free list is doubly linked through two lists of integers, with index `num_pages` as its sentinel: the page after
    the sentinel is the next to be allocated, the page before it was freed last.
    """

    def __init__(self, num_pages: int, page_size: int) -> None:
        self.num_pages = num_pages
        self.page_size = page_size
        self.free_count = num_pages
        self._references = [0] * num_pages
        self._keys: list[bytes | None] = [None] * num_pages
        self._page_of_key: dict[bytes, int] = {}
        ring = num_pages + 1
        self._next = [(page + 1) % ring for page in range(ring)]
        self._previous = [(page - 1) % ring for page in range(ring)]

    @property
    def used_count(self) -> int:
        """Pages that at least one sequence owns."""
        return self.num_pages - self.free_count

    def references(self, page: int) -> int:
        """How many sequences own the page."""
        return self._references[page]

    def allocate(self) -> int:
        """Take the least recently used free page; what it cached is evicted. The caller checks `free_count`."""
        page = self._next[self.num_pages]
        if page == self.num_pages:
            raise IndexError("no free page")
        self._unlink(page)
        key = self._keys[page]
        if key is not None:
            del self._page_of_key[key]
            self._keys[page] = None
        self._references[page] = 1
        return page

    def share(self, page: int) -> None:
        """Add an owner; a cached page comes back to life."""
        if self._references[page] == 0:
            self._unlink(page)
        self._references[page] += 1

    def release(self, page: int) -> None:
        """Drop an owner. The last one's page becomes cache or, when it has no key, the next to be reused."""
        self._references[page] -= 1
        if self._references[page] > 0:
            return
        sentinel = self.num_pages
        before = self._previous[sentinel] if self._keys[page] is not None else sentinel
        after = self._next[before]
        self._next[before] = self._previous[after] = page
        self._previous[page], self._next[page] = before, after
        self.free_count += 1

    def publish(self, page: int, key: bytes) -> None:
        """Make a full page findable. When another page holds the same prefix already, that one stays the known one."""
        if self._keys[page] is None and key not in self._page_of_key:
            self._keys[page] = key
            self._page_of_key[key] = page

    def lookup(self, key: bytes) -> int | None:
        """The page, owned or cached, that holds this prefix."""
        return self._page_of_key.get(key)

    def _unlink(self, page: int) -> None:
        before, after = self._previous[page], self._next[page]
        self._next[before], self._previous[after] = after, before
        self.free_count -= 1

    def check(self) -> None:
        """Verify the pool's own invariants; O(pages), for tests and debugging."""
        free = set()
        page, previous = self._next[self.num_pages], self.num_pages
        while page != self.num_pages:
            assert self._previous[page] == previous, f"free list broken at page {page}"
            assert page not in free, f"page {page} is twice in the free list"
            free.add(page)
            previous, page = page, self._next[page]
        assert len(free) == self.free_count, f"{len(free)} pages are free, {self.free_count} counted"
        for page in range(self.num_pages):
            assert (self._references[page] == 0) == (page in free), f"page {page} is both free and owned, or neither"
        for key, page in self._page_of_key.items():
            assert self._keys[page] == key, f"page {page} does not hold the prefix it is known for"
