"""What somebody may see of a service's status: an operator all of it, a tenant its own part and the sums."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from preceptor.v1 import status_pb2 as pb
from services.teacher.signals import OTHERS

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["cut_to", "history_of"]

_MAX_CONVERSATIONS = 1000
_MAX_REFUSALS = 200
_MAX_TENANTS_IN_HISTORY = 50


def cut_to(response: pb.GetStatusResponse, tenant: str | None) -> None:
    """Takes out what is not for a tenant, puts the rest in order and bounds it.

    Args:
        response: without history; it is changed.
        tenant: who asks; None: who sees all.
    """
    tenants = [each for each in response.tenants if tenant in (None, each.name)]
    tenants.sort(key=lambda each: (not each.num_conversations, each.name))
    conversations = [each for each in response.conversations if tenant in (None, each.tenant)]
    conversations.sort(key=lambda each: (each.closed_s > 0, -(each.closed_s or each.opened_s)))
    refusals = [each for each in response.refusals if tenant in (None, each.tenant)]
    refusals.sort(key=lambda each: -each.time_s)
    kept = pb.GetStatusResponse(
        tenants=tenants, conversations=conversations[:_MAX_CONVERSATIONS], refusals=refusals[:_MAX_REFUSALS]
    )
    if tenant is not None:
        for conversation in kept.conversations:
            conversation.peer = ""
        for refusal in kept.refusals:
            refusal.peer = ""
    for field in ("tenants", "conversations", "refusals"):
        response.ClearField(field)
    response.MergeFrom(kept)


def history_of(samples: Iterable[bytes], tenant: str | None) -> list[pb.StatusSample]:
    """Returns samples with what is for a tenant; who sees all sees those by name who did the most.

    Args:
        samples: as `StatusSample`, the oldest first.
        tenant: who asks; None: who sees all.
    """
    history = [pb.StatusSample.FromString(sample) for sample in samples]
    tokens: Counter[str] = Counter()
    for sample in history:
        tokens.update({each.name: each.num_tokens for each in sample.tenants})
    named = (
        {tenant} if tenant is not None else {name for name, _ in tokens.most_common(_MAX_TENANTS_IN_HISTORY)}
    )
    for sample in history:
        own = [each for each in sample.tenants if each.name in named]
        rest = [each for each in sample.tenants if each.name not in named]
        if len(own) < len(sample.tenants):
            del sample.tenants[:]
            sample.tenants.extend(own)
            if tenant is None:
                sample.tenants.append(_sum(rest))
    return history


def _sum(samples: Iterable[pb.TenantSample]) -> pb.TenantSample:
    total = pb.TenantSample(name=OTHERS)
    for each in samples:
        total.num_turns += each.num_turns
        total.num_tokens += each.num_tokens
        total.queue_s += each.queue_s
        total.compute_s += each.compute_s
        total.num_refusals += each.num_refusals
    return total
