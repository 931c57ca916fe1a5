from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Signed(_message.Message):
    __slots__ = ("header", "signature", "body")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    header: bytes
    signature: bytes
    body: bytes
    def __init__(self, header: _Optional[bytes] = ..., signature: _Optional[bytes] = ..., body: _Optional[bytes] = ...) -> None: ...

class Header(_message.Message):
    __slots__ = ("protocol", "session", "sequence", "sender", "recipient", "kind", "study", "run", "round", "action", "body_sha256", "body_size", "encoding", "plain_size", "reply_to", "sent_at_ms", "audit", "ledger", "witnessed")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    SENDER_FIELD_NUMBER: _ClassVar[int]
    RECIPIENT_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    STUDY_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    BODY_SHA256_FIELD_NUMBER: _ClassVar[int]
    BODY_SIZE_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    PLAIN_SIZE_FIELD_NUMBER: _ClassVar[int]
    REPLY_TO_FIELD_NUMBER: _ClassVar[int]
    SENT_AT_MS_FIELD_NUMBER: _ClassVar[int]
    AUDIT_FIELD_NUMBER: _ClassVar[int]
    LEDGER_FIELD_NUMBER: _ClassVar[int]
    WITNESSED_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    session: bytes
    sequence: int
    sender: str
    recipient: str
    kind: str
    study: str
    run: str
    round: int
    action: str
    body_sha256: bytes
    body_size: int
    encoding: str
    plain_size: int
    reply_to: bytes
    sent_at_ms: int
    audit: Head
    ledger: Head
    witnessed: Head
    def __init__(self, protocol: _Optional[int] = ..., session: _Optional[bytes] = ..., sequence: _Optional[int] = ..., sender: _Optional[str] = ..., recipient: _Optional[str] = ..., kind: _Optional[str] = ..., study: _Optional[str] = ..., run: _Optional[str] = ..., round: _Optional[int] = ..., action: _Optional[str] = ..., body_sha256: _Optional[bytes] = ..., body_size: _Optional[int] = ..., encoding: _Optional[str] = ..., plain_size: _Optional[int] = ..., reply_to: _Optional[bytes] = ..., sent_at_ms: _Optional[int] = ..., audit: _Optional[_Union[Head, _Mapping]] = ..., ledger: _Optional[_Union[Head, _Mapping]] = ..., witnessed: _Optional[_Union[Head, _Mapping]] = ...) -> None: ...

class Head(_message.Message):
    __slots__ = ("length", "hash")
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    length: int
    hash: bytes
    def __init__(self, length: _Optional[int] = ..., hash: _Optional[bytes] = ...) -> None: ...

class Range(_message.Message):
    __slots__ = ("session", "message", "offset")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    message: bytes
    offset: int
    def __init__(self, session: _Optional[bytes] = ..., message: _Optional[bytes] = ..., offset: _Optional[int] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("offset", "data")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    offset: int
    data: bytes
    def __init__(self, offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class Part(_message.Message):
    __slots__ = ("message", "chunk")
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    message: Signed
    chunk: Chunk
    def __init__(self, message: _Optional[_Union[Signed, _Mapping]] = ..., chunk: _Optional[_Union[Chunk, _Mapping]] = ...) -> None: ...

class Beat(_message.Message):
    __slots__ = ("session", "number")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    number: int
    def __init__(self, session: _Optional[bytes] = ..., number: _Optional[int] = ...) -> None: ...

class Notice(_message.Message):
    __slots__ = ("number", "roster_version", "studies_version", "tasks", "closed")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    ROSTER_VERSION_FIELD_NUMBER: _ClassVar[int]
    STUDIES_VERSION_FIELD_NUMBER: _ClassVar[int]
    TASKS_FIELD_NUMBER: _ClassVar[int]
    CLOSED_FIELD_NUMBER: _ClassVar[int]
    number: int
    roster_version: int
    studies_version: int
    tasks: _containers.RepeatedCompositeFieldContainer[Signed]
    closed: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, number: _Optional[int] = ..., roster_version: _Optional[int] = ..., studies_version: _Optional[int] = ..., tasks: _Optional[_Iterable[_Union[Signed, _Mapping]]] = ..., closed: _Optional[_Iterable[bytes]] = ...) -> None: ...
