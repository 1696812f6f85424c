from preceptor.v1 import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Modality(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MODALITY_UNSPECIFIED: _ClassVar[Modality]
    MODALITY_TEXT: _ClassVar[Modality]
    MODALITY_TENSORS: _ClassVar[Modality]

class Reading(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    READING_UNSPECIFIED: _ClassVar[Reading]
    READING_REPLACE: _ClassVar[Reading]
    READING_BESIDE: _ClassVar[Reading]
    READING_ADD: _ClassVar[Reading]

class ObservationKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OBSERVATION_KIND_UNSPECIFIED: _ClassVar[ObservationKind]
    OBSERVATION_KIND_LOWER_MESSAGE: _ClassVar[ObservationKind]
    OBSERVATION_KIND_UPPER_MESSAGE: _ClassVar[ObservationKind]
    OBSERVATION_KIND_STATE_CONSISTENCY: _ClassVar[ObservationKind]
    OBSERVATION_KIND_LOWER_STATE: _ClassVar[ObservationKind]
    OBSERVATION_KIND_UPPER_STATE: _ClassVar[ObservationKind]
    OBSERVATION_KIND_POOLED_STATE: _ClassVar[ObservationKind]
    OBSERVATION_KIND_LOGITS: _ClassVar[ObservationKind]

class CodecKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CODEC_KIND_UNSPECIFIED: _ClassVar[CodecKind]
    CODEC_KIND_LINEAR: _ClassVar[CodecKind]
    CODEC_KIND_TWO_LAYER: _ClassVar[CodecKind]

class Reason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REASON_UNSPECIFIED: _ClassVar[Reason]
    REASON_PROTOCOL_VIOLATION: _ClassVar[Reason]
    REASON_FIELD_INVALID: _ClassVar[Reason]
    REASON_TENSOR_INVALID: _ClassVar[Reason]
    REASON_SHAPE_MISMATCH: _ClassVar[Reason]
    REASON_DATA_TYPE_MISMATCH: _ClassVar[Reason]
    REASON_NOT_FINITE: _ClassVar[Reason]
    REASON_LIMIT_EXCEEDED: _ClassVar[Reason]
    REASON_TURN_CONFLICT: _ClassVar[Reason]
    REASON_TURN_UNKNOWN: _ClassVar[Reason]
    REASON_CODEC_UNKNOWN: _ClassVar[Reason]
    REASON_CODEC_CONFLICT: _ClassVar[Reason]
    REASON_UNSUPPORTED: _ClassVar[Reason]
    REASON_TEACHER_CHANGED: _ClassVar[Reason]
    REASON_OVERLOADED: _ClassVar[Reason]
    REASON_INTERNAL: _ClassVar[Reason]
    REASON_DRAINING: _ClassVar[Reason]
    REASON_ACCESS_DENIED: _ClassVar[Reason]

class GraphSource(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    GRAPH_SOURCE_UNSPECIFIED: _ClassVar[GraphSource]
    GRAPH_SOURCE_RETAINED: _ClassVar[GraphSource]
    GRAPH_SOURCE_RECOMPUTED: _ClassVar[GraphSource]
MODALITY_UNSPECIFIED: Modality
MODALITY_TEXT: Modality
MODALITY_TENSORS: Modality
READING_UNSPECIFIED: Reading
READING_REPLACE: Reading
READING_BESIDE: Reading
READING_ADD: Reading
OBSERVATION_KIND_UNSPECIFIED: ObservationKind
OBSERVATION_KIND_LOWER_MESSAGE: ObservationKind
OBSERVATION_KIND_UPPER_MESSAGE: ObservationKind
OBSERVATION_KIND_STATE_CONSISTENCY: ObservationKind
OBSERVATION_KIND_LOWER_STATE: ObservationKind
OBSERVATION_KIND_UPPER_STATE: ObservationKind
OBSERVATION_KIND_POOLED_STATE: ObservationKind
OBSERVATION_KIND_LOGITS: ObservationKind
CODEC_KIND_UNSPECIFIED: CodecKind
CODEC_KIND_LINEAR: CodecKind
CODEC_KIND_TWO_LAYER: CodecKind
REASON_UNSPECIFIED: Reason
REASON_PROTOCOL_VIOLATION: Reason
REASON_FIELD_INVALID: Reason
REASON_TENSOR_INVALID: Reason
REASON_SHAPE_MISMATCH: Reason
REASON_DATA_TYPE_MISMATCH: Reason
REASON_NOT_FINITE: Reason
REASON_LIMIT_EXCEEDED: Reason
REASON_TURN_CONFLICT: Reason
REASON_TURN_UNKNOWN: Reason
REASON_CODEC_UNKNOWN: Reason
REASON_CODEC_CONFLICT: Reason
REASON_UNSUPPORTED: Reason
REASON_TEACHER_CHANGED: Reason
REASON_OVERLOADED: Reason
REASON_INTERNAL: Reason
REASON_DRAINING: Reason
REASON_ACCESS_DENIED: Reason
GRAPH_SOURCE_UNSPECIFIED: GraphSource
GRAPH_SOURCE_RETAINED: GraphSource
GRAPH_SOURCE_RECOMPUTED: GraphSource

class FindReplicasRequest(_message.Message):
    __slots__ = ("opens_conversation",)
    OPENS_CONVERSATION_FIELD_NUMBER: _ClassVar[int]
    opens_conversation: bool
    def __init__(self, opens_conversation: bool = ...) -> None: ...

class FindReplicasResponse(_message.Message):
    __slots__ = ("replicas",)
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    replicas: _containers.RepeatedCompositeFieldContainer[Replica]
    def __init__(self, replicas: _Optional[_Iterable[_Union[Replica, _Mapping]]] = ...) -> None: ...

class Replica(_message.Message):
    __slots__ = ("address", "num_conversations", "queued_tokens")
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    NUM_CONVERSATIONS_FIELD_NUMBER: _ClassVar[int]
    QUEUED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    address: str
    num_conversations: int
    queued_tokens: int
    def __init__(self, address: _Optional[str] = ..., num_conversations: _Optional[int] = ..., queued_tokens: _Optional[int] = ...) -> None: ...

class DescribeTeacherRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DescribeTeacherResponse(_message.Message):
    __slots__ = ("teacher", "limits")
    TEACHER_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    teacher: TeacherDescription
    limits: Limits
    def __init__(self, teacher: _Optional[_Union[TeacherDescription, _Mapping]] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ...) -> None: ...

class TeacherDescription(_message.Message):
    __slots__ = ("name", "family", "num_layers", "hidden_size", "modality", "talking_layers", "default_split_layer", "data_type", "num_parameters", "fingerprint", "readings", "observations", "inputs", "service_version")
    NAME_FIELD_NUMBER: _ClassVar[int]
    FAMILY_FIELD_NUMBER: _ClassVar[int]
    NUM_LAYERS_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_SIZE_FIELD_NUMBER: _ClassVar[int]
    MODALITY_FIELD_NUMBER: _ClassVar[int]
    TALKING_LAYERS_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_SPLIT_LAYER_FIELD_NUMBER: _ClassVar[int]
    DATA_TYPE_FIELD_NUMBER: _ClassVar[int]
    NUM_PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    READINGS_FIELD_NUMBER: _ClassVar[int]
    OBSERVATIONS_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    SERVICE_VERSION_FIELD_NUMBER: _ClassVar[int]
    name: str
    family: str
    num_layers: int
    hidden_size: int
    modality: Modality
    talking_layers: _containers.RepeatedScalarFieldContainer[int]
    default_split_layer: int
    data_type: _tensor_pb2.DataType
    num_parameters: int
    fingerprint: str
    readings: _containers.RepeatedScalarFieldContainer[Reading]
    observations: _containers.RepeatedScalarFieldContainer[ObservationKind]
    inputs: _containers.RepeatedCompositeFieldContainer[InputDescription]
    service_version: str
    def __init__(self, name: _Optional[str] = ..., family: _Optional[str] = ..., num_layers: _Optional[int] = ..., hidden_size: _Optional[int] = ..., modality: _Optional[_Union[Modality, str]] = ..., talking_layers: _Optional[_Iterable[int]] = ..., default_split_layer: _Optional[int] = ..., data_type: _Optional[_Union[_tensor_pb2.DataType, str]] = ..., num_parameters: _Optional[int] = ..., fingerprint: _Optional[str] = ..., readings: _Optional[_Iterable[_Union[Reading, str]]] = ..., observations: _Optional[_Iterable[_Union[ObservationKind, str]]] = ..., inputs: _Optional[_Iterable[_Union[InputDescription, _Mapping]]] = ..., service_version: _Optional[str] = ...) -> None: ...

class InputDescription(_message.Message):
    __slots__ = ("name", "data_type", "shape", "required")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DATA_TYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    REQUIRED_FIELD_NUMBER: _ClassVar[int]
    name: str
    data_type: _tensor_pb2.DataType
    shape: _containers.RepeatedScalarFieldContainer[int]
    required: bool
    def __init__(self, name: _Optional[str] = ..., data_type: _Optional[_Union[_tensor_pb2.DataType, str]] = ..., shape: _Optional[_Iterable[int]] = ..., required: bool = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("max_frame_bytes", "max_batch_size", "max_message_len", "max_message_dim", "max_input_len", "max_turns_in_flight", "max_retained_turns", "max_codec_parameters")
    MAX_FRAME_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGE_LEN_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGE_DIM_FIELD_NUMBER: _ClassVar[int]
    MAX_INPUT_LEN_FIELD_NUMBER: _ClassVar[int]
    MAX_TURNS_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    MAX_RETAINED_TURNS_FIELD_NUMBER: _ClassVar[int]
    MAX_CODEC_PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    max_frame_bytes: int
    max_batch_size: int
    max_message_len: int
    max_message_dim: int
    max_input_len: int
    max_turns_in_flight: int
    max_retained_turns: int
    max_codec_parameters: int
    def __init__(self, max_frame_bytes: _Optional[int] = ..., max_batch_size: _Optional[int] = ..., max_message_len: _Optional[int] = ..., max_message_dim: _Optional[int] = ..., max_input_len: _Optional[int] = ..., max_turns_in_flight: _Optional[int] = ..., max_retained_turns: _Optional[int] = ..., max_codec_parameters: _Optional[int] = ...) -> None: ...

class ConverseRequest(_message.Message):
    __slots__ = ("open", "set_codec", "exchange", "backward", "observe", "close", "traceparent")
    OPEN_FIELD_NUMBER: _ClassVar[int]
    SET_CODEC_FIELD_NUMBER: _ClassVar[int]
    EXCHANGE_FIELD_NUMBER: _ClassVar[int]
    BACKWARD_FIELD_NUMBER: _ClassVar[int]
    OBSERVE_FIELD_NUMBER: _ClassVar[int]
    CLOSE_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    open: Open
    set_codec: SetCodec
    exchange: Exchange
    backward: Backward
    observe: Observe
    close: Close
    traceparent: str
    def __init__(self, open: _Optional[_Union[Open, _Mapping]] = ..., set_codec: _Optional[_Union[SetCodec, _Mapping]] = ..., exchange: _Optional[_Union[Exchange, _Mapping]] = ..., backward: _Optional[_Union[Backward, _Mapping]] = ..., observe: _Optional[_Union[Observe, _Mapping]] = ..., close: _Optional[_Union[Close, _Mapping]] = ..., traceparent: _Optional[str] = ...) -> None: ...

class ConverseResponse(_message.Message):
    __slots__ = ("opened", "reply", "gradients", "observation", "failed", "draining", "credit")
    OPENED_FIELD_NUMBER: _ClassVar[int]
    REPLY_FIELD_NUMBER: _ClassVar[int]
    GRADIENTS_FIELD_NUMBER: _ClassVar[int]
    OBSERVATION_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    CREDIT_FIELD_NUMBER: _ClassVar[int]
    opened: Opened
    reply: Reply
    gradients: Gradients
    observation: Observation
    failed: Failed
    draining: Draining
    credit: Credit
    def __init__(self, opened: _Optional[_Union[Opened, _Mapping]] = ..., reply: _Optional[_Union[Reply, _Mapping]] = ..., gradients: _Optional[_Union[Gradients, _Mapping]] = ..., observation: _Optional[_Union[Observation, _Mapping]] = ..., failed: _Optional[_Union[Failed, _Mapping]] = ..., draining: _Optional[_Union[Draining, _Mapping]] = ..., credit: _Optional[_Union[Credit, _Mapping]] = ...) -> None: ...

class CodecSpec(_message.Message):
    __slots__ = ("kind", "message_dim", "message_len", "hidden_dim")
    KIND_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_DIM_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_LEN_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_DIM_FIELD_NUMBER: _ClassVar[int]
    kind: CodecKind
    message_dim: int
    message_len: int
    hidden_dim: int
    def __init__(self, kind: _Optional[_Union[CodecKind, str]] = ..., message_dim: _Optional[int] = ..., message_len: _Optional[int] = ..., hidden_dim: _Optional[int] = ...) -> None: ...

class Open(_message.Message):
    __slots__ = ("codec", "reading", "split_layer", "compression", "expected_fingerprint", "deterministic", "tenant")
    CODEC_FIELD_NUMBER: _ClassVar[int]
    READING_FIELD_NUMBER: _ClassVar[int]
    SPLIT_LAYER_FIELD_NUMBER: _ClassVar[int]
    COMPRESSION_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    DETERMINISTIC_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    codec: CodecSpec
    reading: Reading
    split_layer: int
    compression: Compression
    expected_fingerprint: str
    deterministic: bool
    tenant: str
    def __init__(self, codec: _Optional[_Union[CodecSpec, _Mapping]] = ..., reading: _Optional[_Union[Reading, str]] = ..., split_layer: _Optional[int] = ..., compression: _Optional[_Union[Compression, _Mapping]] = ..., expected_fingerprint: _Optional[str] = ..., deterministic: bool = ..., tenant: _Optional[str] = ...) -> None: ...

class Compression(_message.Message):
    __slots__ = ("message", "reply", "gradient")
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    REPLY_FIELD_NUMBER: _ClassVar[int]
    GRADIENT_FIELD_NUMBER: _ClassVar[int]
    message: _tensor_pb2.DataType
    reply: _tensor_pb2.DataType
    gradient: _tensor_pb2.DataType
    def __init__(self, message: _Optional[_Union[_tensor_pb2.DataType, str]] = ..., reply: _Optional[_Union[_tensor_pb2.DataType, str]] = ..., gradient: _Optional[_Union[_tensor_pb2.DataType, str]] = ...) -> None: ...

class Opened(_message.Message):
    __slots__ = ("conversation_id", "teacher", "limits", "split_layer", "compression", "credit_bytes")
    CONVERSATION_ID_FIELD_NUMBER: _ClassVar[int]
    TEACHER_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    SPLIT_LAYER_FIELD_NUMBER: _ClassVar[int]
    COMPRESSION_FIELD_NUMBER: _ClassVar[int]
    CREDIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    conversation_id: str
    teacher: TeacherDescription
    limits: Limits
    split_layer: int
    compression: Compression
    credit_bytes: int
    def __init__(self, conversation_id: _Optional[str] = ..., teacher: _Optional[_Union[TeacherDescription, _Mapping]] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., split_layer: _Optional[int] = ..., compression: _Optional[_Union[Compression, _Mapping]] = ..., credit_bytes: _Optional[int] = ...) -> None: ...

class Credit(_message.Message):
    __slots__ = ("bytes",)
    BYTES_FIELD_NUMBER: _ClassVar[int]
    bytes: int
    def __init__(self, bytes: _Optional[int] = ...) -> None: ...

class SetCodec(_message.Message):
    __slots__ = ("version", "tensors", "complete")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    version: int
    tensors: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.NamedTensor]
    complete: bool
    def __init__(self, version: _Optional[int] = ..., tensors: _Optional[_Iterable[_Union[_tensor_pb2.NamedTensor, _Mapping]]] = ..., complete: bool = ...) -> None: ...

class Inputs(_message.Message):
    __slots__ = ("texts", "tensors")
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    texts: _containers.RepeatedScalarFieldContainer[str]
    tensors: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.NamedTensor]
    def __init__(self, texts: _Optional[_Iterable[str]] = ..., tensors: _Optional[_Iterable[_Union[_tensor_pb2.NamedTensor, _Mapping]]] = ...) -> None: ...

class Exchange(_message.Message):
    __slots__ = ("turn", "codec_version", "message", "mask", "inputs", "wants_gradient")
    TURN_FIELD_NUMBER: _ClassVar[int]
    CODEC_VERSION_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    MASK_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    WANTS_GRADIENT_FIELD_NUMBER: _ClassVar[int]
    turn: int
    codec_version: int
    message: _tensor_pb2.Tensor
    mask: _tensor_pb2.Tensor
    inputs: Inputs
    wants_gradient: bool
    def __init__(self, turn: _Optional[int] = ..., codec_version: _Optional[int] = ..., message: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., mask: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., inputs: _Optional[_Union[Inputs, _Mapping]] = ..., wants_gradient: bool = ...) -> None: ...

class Reply(_message.Message):
    __slots__ = ("turn", "reply", "receipt")
    TURN_FIELD_NUMBER: _ClassVar[int]
    REPLY_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    turn: int
    reply: _tensor_pb2.Tensor
    receipt: Receipt
    def __init__(self, turn: _Optional[int] = ..., reply: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., receipt: _Optional[_Union[Receipt, _Mapping]] = ...) -> None: ...

class Backward(_message.Message):
    __slots__ = ("turn", "gradients")
    TURN_FIELD_NUMBER: _ClassVar[int]
    GRADIENTS_FIELD_NUMBER: _ClassVar[int]
    turn: int
    gradients: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.NamedTensor]
    def __init__(self, turn: _Optional[int] = ..., gradients: _Optional[_Iterable[_Union[_tensor_pb2.NamedTensor, _Mapping]]] = ...) -> None: ...

class Gradients(_message.Message):
    __slots__ = ("turn", "message", "codec", "complete", "receipt")
    TURN_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    turn: int
    message: _tensor_pb2.Tensor
    codec: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.NamedTensor]
    complete: bool
    receipt: Receipt
    def __init__(self, turn: _Optional[int] = ..., message: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., codec: _Optional[_Iterable[_Union[_tensor_pb2.NamedTensor, _Mapping]]] = ..., complete: bool = ..., receipt: _Optional[_Union[Receipt, _Mapping]] = ...) -> None: ...

class Observe(_message.Message):
    __slots__ = ("turn", "codec_version", "inputs", "kinds", "mask", "wants_gradient", "ahead")
    TURN_FIELD_NUMBER: _ClassVar[int]
    CODEC_VERSION_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    KINDS_FIELD_NUMBER: _ClassVar[int]
    MASK_FIELD_NUMBER: _ClassVar[int]
    WANTS_GRADIENT_FIELD_NUMBER: _ClassVar[int]
    AHEAD_FIELD_NUMBER: _ClassVar[int]
    turn: int
    codec_version: int
    inputs: Inputs
    kinds: _containers.RepeatedScalarFieldContainer[ObservationKind]
    mask: _tensor_pb2.Tensor
    wants_gradient: bool
    ahead: bool
    def __init__(self, turn: _Optional[int] = ..., codec_version: _Optional[int] = ..., inputs: _Optional[_Union[Inputs, _Mapping]] = ..., kinds: _Optional[_Iterable[_Union[ObservationKind, str]]] = ..., mask: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., wants_gradient: bool = ..., ahead: bool = ...) -> None: ...

class Observation(_message.Message):
    __slots__ = ("turn", "values", "receipt")
    TURN_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    turn: int
    values: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.NamedTensor]
    receipt: Receipt
    def __init__(self, turn: _Optional[int] = ..., values: _Optional[_Iterable[_Union[_tensor_pb2.NamedTensor, _Mapping]]] = ..., receipt: _Optional[_Union[Receipt, _Mapping]] = ...) -> None: ...

class Close(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Failed(_message.Message):
    __slots__ = ("turn", "codec_version", "status_code", "reason", "message", "retry_after_ms")
    TURN_FIELD_NUMBER: _ClassVar[int]
    CODEC_VERSION_FIELD_NUMBER: _ClassVar[int]
    STATUS_CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    turn: int
    codec_version: int
    status_code: int
    reason: Reason
    message: str
    retry_after_ms: int
    def __init__(self, turn: _Optional[int] = ..., codec_version: _Optional[int] = ..., status_code: _Optional[int] = ..., reason: _Optional[_Union[Reason, str]] = ..., message: _Optional[str] = ..., retry_after_ms: _Optional[int] = ...) -> None: ...

class Draining(_message.Message):
    __slots__ = ("closes_in_ms",)
    CLOSES_IN_MS_FIELD_NUMBER: _ClassVar[int]
    closes_in_ms: int
    def __init__(self, closes_in_ms: _Optional[int] = ...) -> None: ...

class Receipt(_message.Message):
    __slots__ = ("queue_ms", "compute_ms", "tokens", "request_bytes", "num_conversations", "codec_version", "graph_source", "num_tenants", "num_cached_rows")
    QUEUE_MS_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_MS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_BYTES_FIELD_NUMBER: _ClassVar[int]
    NUM_CONVERSATIONS_FIELD_NUMBER: _ClassVar[int]
    CODEC_VERSION_FIELD_NUMBER: _ClassVar[int]
    GRAPH_SOURCE_FIELD_NUMBER: _ClassVar[int]
    NUM_TENANTS_FIELD_NUMBER: _ClassVar[int]
    NUM_CACHED_ROWS_FIELD_NUMBER: _ClassVar[int]
    queue_ms: float
    compute_ms: float
    tokens: int
    request_bytes: int
    num_conversations: int
    codec_version: int
    graph_source: GraphSource
    num_tenants: int
    num_cached_rows: int
    def __init__(self, queue_ms: _Optional[float] = ..., compute_ms: _Optional[float] = ..., tokens: _Optional[int] = ..., request_bytes: _Optional[int] = ..., num_conversations: _Optional[int] = ..., codec_version: _Optional[int] = ..., graph_source: _Optional[_Union[GraphSource, str]] = ..., num_tenants: _Optional[int] = ..., num_cached_rows: _Optional[int] = ...) -> None: ...
