"""A frozen teacher, served: config, model families, engine, conversation, servicer, Ray Serve application."""
