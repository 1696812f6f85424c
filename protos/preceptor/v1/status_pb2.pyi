from preceptor.v1 import teacher_pb2 as _teacher_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetStatusRequest(_message.Message):
    __slots__ = ("history_s",)
    HISTORY_S_FIELD_NUMBER: _ClassVar[int]
    history_s: int
    def __init__(self, history_s: _Optional[int] = ...) -> None: ...

class GetStatusResponse(_message.Message):
    __slots__ = ("time_s", "teacher", "service_version", "tenant", "sees_all", "replicas", "tenants", "conversations", "refusals", "history")
    TIME_S_FIELD_NUMBER: _ClassVar[int]
    TEACHER_FIELD_NUMBER: _ClassVar[int]
    SERVICE_VERSION_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    SEES_ALL_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    TENANTS_FIELD_NUMBER: _ClassVar[int]
    CONVERSATIONS_FIELD_NUMBER: _ClassVar[int]
    REFUSALS_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    time_s: float
    teacher: str
    service_version: str
    tenant: str
    sees_all: bool
    replicas: _containers.RepeatedCompositeFieldContainer[ReplicaStatus]
    tenants: _containers.RepeatedCompositeFieldContainer[TenantStatus]
    conversations: _containers.RepeatedCompositeFieldContainer[ConversationStatus]
    refusals: _containers.RepeatedCompositeFieldContainer[Refusal]
    history: _containers.RepeatedCompositeFieldContainer[StatusSample]
    def __init__(self, time_s: _Optional[float] = ..., teacher: _Optional[str] = ..., service_version: _Optional[str] = ..., tenant: _Optional[str] = ..., sees_all: bool = ..., replicas: _Optional[_Iterable[_Union[ReplicaStatus, _Mapping]]] = ..., tenants: _Optional[_Iterable[_Union[TenantStatus, _Mapping]]] = ..., conversations: _Optional[_Iterable[_Union[ConversationStatus, _Mapping]]] = ..., refusals: _Optional[_Iterable[_Union[Refusal, _Mapping]]] = ..., history: _Optional[_Iterable[_Union[StatusSample, _Mapping]]] = ...) -> None: ...

class ReplicaStatus(_message.Message):
    __slots__ = ("address", "uptime_s", "num_conversations", "queued_tokens", "queue_s", "tokens_per_s", "busy_share", "num_passes", "num_computed", "num_tenants_in_passes", "num_retained", "num_recomputed", "retained_bytes", "num_cached_rows", "num_read_rows", "cache_bytes", "memory_bytes")
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    UPTIME_S_FIELD_NUMBER: _ClassVar[int]
    NUM_CONVERSATIONS_FIELD_NUMBER: _ClassVar[int]
    QUEUED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_S_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_S_FIELD_NUMBER: _ClassVar[int]
    BUSY_SHARE_FIELD_NUMBER: _ClassVar[int]
    NUM_PASSES_FIELD_NUMBER: _ClassVar[int]
    NUM_COMPUTED_FIELD_NUMBER: _ClassVar[int]
    NUM_TENANTS_IN_PASSES_FIELD_NUMBER: _ClassVar[int]
    NUM_RETAINED_FIELD_NUMBER: _ClassVar[int]
    NUM_RECOMPUTED_FIELD_NUMBER: _ClassVar[int]
    RETAINED_BYTES_FIELD_NUMBER: _ClassVar[int]
    NUM_CACHED_ROWS_FIELD_NUMBER: _ClassVar[int]
    NUM_READ_ROWS_FIELD_NUMBER: _ClassVar[int]
    CACHE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    address: str
    uptime_s: float
    num_conversations: int
    queued_tokens: int
    queue_s: float
    tokens_per_s: float
    busy_share: float
    num_passes: int
    num_computed: int
    num_tenants_in_passes: int
    num_retained: int
    num_recomputed: int
    retained_bytes: int
    num_cached_rows: int
    num_read_rows: int
    cache_bytes: int
    memory_bytes: int
    def __init__(self, address: _Optional[str] = ..., uptime_s: _Optional[float] = ..., num_conversations: _Optional[int] = ..., queued_tokens: _Optional[int] = ..., queue_s: _Optional[float] = ..., tokens_per_s: _Optional[float] = ..., busy_share: _Optional[float] = ..., num_passes: _Optional[int] = ..., num_computed: _Optional[int] = ..., num_tenants_in_passes: _Optional[int] = ..., num_retained: _Optional[int] = ..., num_recomputed: _Optional[int] = ..., retained_bytes: _Optional[int] = ..., num_cached_rows: _Optional[int] = ..., num_read_rows: _Optional[int] = ..., cache_bytes: _Optional[int] = ..., memory_bytes: _Optional[int] = ...) -> None: ...

class TenantStatus(_message.Message):
    __slots__ = ("name", "num_conversations", "num_turns", "num_tokens", "request_bytes", "answer_bytes", "queue_s", "compute_s", "num_refusals", "weight", "queue_p50_ms", "queue_p99_ms")
    NAME_FIELD_NUMBER: _ClassVar[int]
    NUM_CONVERSATIONS_FIELD_NUMBER: _ClassVar[int]
    NUM_TURNS_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_BYTES_FIELD_NUMBER: _ClassVar[int]
    ANSWER_BYTES_FIELD_NUMBER: _ClassVar[int]
    QUEUE_S_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_S_FIELD_NUMBER: _ClassVar[int]
    NUM_REFUSALS_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    QUEUE_P50_MS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_P99_MS_FIELD_NUMBER: _ClassVar[int]
    name: str
    num_conversations: int
    num_turns: int
    num_tokens: int
    request_bytes: int
    answer_bytes: int
    queue_s: float
    compute_s: float
    num_refusals: int
    weight: float
    queue_p50_ms: float
    queue_p99_ms: float
    def __init__(self, name: _Optional[str] = ..., num_conversations: _Optional[int] = ..., num_turns: _Optional[int] = ..., num_tokens: _Optional[int] = ..., request_bytes: _Optional[int] = ..., answer_bytes: _Optional[int] = ..., queue_s: _Optional[float] = ..., compute_s: _Optional[float] = ..., num_refusals: _Optional[int] = ..., weight: _Optional[float] = ..., queue_p50_ms: _Optional[float] = ..., queue_p99_ms: _Optional[float] = ...) -> None: ...

class ConversationStatus(_message.Message):
    __slots__ = ("id", "tenant", "peer", "replica", "opened_s", "closed_s", "why", "num_turns", "num_tokens", "num_bytes", "queue_s", "compute_s", "num_refusals")
    ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    OPENED_S_FIELD_NUMBER: _ClassVar[int]
    CLOSED_S_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    NUM_TURNS_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    QUEUE_S_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_S_FIELD_NUMBER: _ClassVar[int]
    NUM_REFUSALS_FIELD_NUMBER: _ClassVar[int]
    id: str
    tenant: str
    peer: str
    replica: str
    opened_s: float
    closed_s: float
    why: str
    num_turns: int
    num_tokens: int
    num_bytes: int
    queue_s: float
    compute_s: float
    num_refusals: int
    def __init__(self, id: _Optional[str] = ..., tenant: _Optional[str] = ..., peer: _Optional[str] = ..., replica: _Optional[str] = ..., opened_s: _Optional[float] = ..., closed_s: _Optional[float] = ..., why: _Optional[str] = ..., num_turns: _Optional[int] = ..., num_tokens: _Optional[int] = ..., num_bytes: _Optional[int] = ..., queue_s: _Optional[float] = ..., compute_s: _Optional[float] = ..., num_refusals: _Optional[int] = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("time_s", "tenant", "peer", "replica", "conversation", "reason", "message", "count")
    TIME_S_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    CONVERSATION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    time_s: float
    tenant: str
    peer: str
    replica: str
    conversation: str
    reason: _teacher_pb2.Reason
    message: str
    count: int
    def __init__(self, time_s: _Optional[float] = ..., tenant: _Optional[str] = ..., peer: _Optional[str] = ..., replica: _Optional[str] = ..., conversation: _Optional[str] = ..., reason: _Optional[_Union[_teacher_pb2.Reason, str]] = ..., message: _Optional[str] = ..., count: _Optional[int] = ...) -> None: ...

class StatusSample(_message.Message):
    __slots__ = ("time_s", "tenants", "queued_tokens", "busy_share", "num_replicas")
    TIME_S_FIELD_NUMBER: _ClassVar[int]
    TENANTS_FIELD_NUMBER: _ClassVar[int]
    QUEUED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    BUSY_SHARE_FIELD_NUMBER: _ClassVar[int]
    NUM_REPLICAS_FIELD_NUMBER: _ClassVar[int]
    time_s: float
    tenants: _containers.RepeatedCompositeFieldContainer[TenantSample]
    queued_tokens: int
    busy_share: float
    num_replicas: int
    def __init__(self, time_s: _Optional[float] = ..., tenants: _Optional[_Iterable[_Union[TenantSample, _Mapping]]] = ..., queued_tokens: _Optional[int] = ..., busy_share: _Optional[float] = ..., num_replicas: _Optional[int] = ...) -> None: ...

class TenantSample(_message.Message):
    __slots__ = ("name", "num_turns", "num_tokens", "queue_s", "compute_s", "num_refusals")
    NAME_FIELD_NUMBER: _ClassVar[int]
    NUM_TURNS_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_S_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_S_FIELD_NUMBER: _ClassVar[int]
    NUM_REFUSALS_FIELD_NUMBER: _ClassVar[int]
    name: str
    num_turns: int
    num_tokens: int
    queue_s: float
    compute_s: float
    num_refusals: int
    def __init__(self, name: _Optional[str] = ..., num_turns: _Optional[int] = ..., num_tokens: _Optional[int] = ..., queue_s: _Optional[float] = ..., compute_s: _Optional[float] = ..., num_refusals: _Optional[int] = ...) -> None: ...
