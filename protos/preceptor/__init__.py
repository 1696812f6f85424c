"""What a student and a teacher must agree on: the protocol, its tensors and the codec.

`preceptor.v1` holds the generated protocol, `preceptor.wire` turns torch tensors into protocol tensors and
back, `preceptor.codec` builds the encoder and decoder modules. This package knows neither side.
"""

import os

# gRPC's fork handlers start its threads anew in every forked child, where they crash about one child in five
# while a stream of its parent is open, also a child that never talks (a DataLoader's worker). A child of a
# process that has talked never talks here, so they are not needed. gRPC reads this once, on import.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

__version__ = "0.1.0"
