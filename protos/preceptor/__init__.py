"""What a student and a teacher must agree on: the protocol, its tensors and the codec.

`preceptor.v1` holds the generated protocol, `preceptor.wire` turns torch tensors into protocol tensors and
back, `preceptor.codec` builds the encoder and decoder modules. This package knows neither side.
"""

__version__ = "0.1.0"
