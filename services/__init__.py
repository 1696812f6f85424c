"""The services that students talk to."""
