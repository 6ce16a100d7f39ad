"""gRPC: the Open Inference Protocol on a port of its own, imported when a hosted model is offered."""
