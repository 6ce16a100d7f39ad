"""The messages of gRPC and of models' configurations: what is on the wire and in files, not what is done with it."""
