"""The student's side: talk to a served teacher from any PyTorch loop, or train with Ray Train.

talk = TeacherTalk.connect("preceptor://127.0.0.1:41500", student_dim=64, message_dim=16, message_len=4)
heard = talk(lower_states, inputs=texts)
loss = task_loss + losses.interaction(upper_states, heard.decoded)
"""

from preceptor.compression import Compression, WireType
from preceptor.terms import ObservationKind, Reading
from student_client import losses
from student_client.client import TeacherClient
from student_client.errors import (
    AccessError,
    DeadlineExceededError,
    FrameTooLargeError,
    InvalidMessageError,
    OverloadedError,
    TeacherChangedError,
    TeacherError,
    TeacherUnavailableError,
    TurnConflictError,
    UnsupportedByTeacherError,
)
from student_client.options import ClientOptions
from student_client.talk import Talk, TeacherTalk
from student_client.taps import Taps

__all__ = [
    "AccessError",
    "ClientOptions",
    "Compression",
    "DeadlineExceededError",
    "FrameTooLargeError",
    "InvalidMessageError",
    "ObservationKind",
    "OverloadedError",
    "Reading",
    "Talk",
    "Taps",
    "TeacherChangedError",
    "TeacherClient",
    "TeacherError",
    "TeacherTalk",
    "TeacherUnavailableError",
    "TurnConflictError",
    "UnsupportedByTeacherError",
    "WireType",
    "losses",
]
