"""The Open Inference Protocol with the extensions of Triton, KServe and MLServer, over HTTP, and what gRPC shares."""
