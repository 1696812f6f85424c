"""Generated from `tensor.proto` and `teacher.proto` by `make proto`."""
