"""HTTP/2 for servers whose requests are many and small: gRPC's."""
