"""The native CPU backend: a whole step is one call into C++, with the GIL released (sources in `native/`)."""
