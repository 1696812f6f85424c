"""What a newcomer's conversation is like, and what is said to one who names what is not there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from preceptor.terms import Reading
from student_client import TeacherTalk
from student_client.talk_config import TalkConfig
from tests.toy import STUDENT_DIM
from tests.toy_frames import MESSAGE_DIM, ids

if TYPE_CHECKING:
    from tests.toy_server import ToyServer


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"reading": "besides"}, "reading: got 'besides', expected one of replace, beside, add"),
        (
            {"compression": "int4"},
            "compression: got 'int4', expected one of float32, float16, bfloat16, int8",
        ),
    ],
)
def test_unknown_names_are_refused_before_the_teacher_is_asked(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TeacherTalk.connect("127.0.0.1:1", student_dim=STUDENT_DIM, message_dim=MESSAGE_DIM, **fields)


def test_messages_are_added_to_the_teachers_own_reading_where_nothing_else_is_said(server: ToyServer) -> None:
    talk = TeacherTalk.connect(
        f"preceptor://{server.address}", student_dim=STUDENT_DIM, message_dim=MESSAGE_DIM
    )
    assert talk.reading is TalkConfig().reading is Reading.ADD
    states = torch.randn(2, 4, STUDENT_DIM)
    assert talk(states, inputs={"ids": ids(2, 5)}).decoded.shape == states.shape
    with pytest.raises(ValueError, match=r"inputs: got None, expected .* for reading 'add'; 'replace' needs"):
        talk(states)
    talk.close()
