"""Two recommenders: a foundation model that knows everybody's ratings, and a team's small student.

Both are an embedding, residual blocks and a head, under the names `embed`, `blocks` and `head`, so that a
teacher service can split the one and a tap can reach into the other by module path. This module knows no data
set and no training.

Shapes: B batch, U users, I items, G genres, E embedding width, D hidden size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from examples.movielens.data import Ratings

__all__ = ["Block", "Recommender", "Student"]

_EMBEDDING_STD = 0.1
_STUDENT_EMBEDDING_STD = 0.02
_DAMPING = 10.0


class Block(nn.Module):
    """A residual block, LayerNorm and two affine maps; any leading axes."""

    def __init__(self, hidden_size: int, intermediate_size: int, dropout: float) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.LayerNorm(hidden_size),
            nn.Linear(hidden_size, intermediate_size),
            nn.GELU(),
            nn.Linear(intermediate_size, hidden_size),
            nn.Dropout(dropout),
        )

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Maps [..., D] to [..., D]."""
        change: Tensor = self.body(hidden_states)
        return hidden_states + change


class History(nn.Module):
    """Describes a row by what it rated (or by who rated it): its residuals and the bare fact that it rated.

    The rating that is asked for is left out, so that the model can't read its own target.
    """

    def __init__(self, num_columns: int, embedding_dim: int) -> None:
        super().__init__()
        self.by_residual = nn.Parameter(torch.randn(num_columns, embedding_dim) * _EMBEDDING_STD)
        self.by_presence = nn.Parameter(torch.randn(num_columns, embedding_dim) * _EMBEDDING_STD)

    def forward(self, residuals: Tensor, known: Tensor, left_out: Tensor) -> Tensor:
        """Sums over a row's known columns, over the root of their number.

        Args:
            residuals: [B, columns], float32, in stars; 0 where not known.
            known: [B, columns], bool.
            left_out: [B], int64, the column to leave out of each row.

        Returns:
            [B, E].
        """
        presence = known.to(residuals.dtype).scatter(1, left_out[:, None], 0.0)
        scale = presence.sum(-1, keepdim=True).clamp_min(1).rsqrt()
        return scale * ((residuals * presence) @ self.by_residual + presence @ self.by_presence)


class RecommenderEmbedding(nn.Module):
    """A user and an item, each with its history and the item with its genres, as one vector.

    Buffers hold the genres and the training ratings; they travel with the weights, so that the inputs stay
    user and item.
    """

    genres: Tensor
    residuals: Tensor
    known: Tensor
    residuals_by_item: Tensor
    known_by_item: Tensor

    def __init__(
        self,
        num_users: int,
        num_items: int,
        num_genres: int,
        embedding_dim: int,
        hidden_size: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.user = nn.Embedding(num_users, embedding_dim)
        self.item = nn.Embedding(num_items, embedding_dim)
        self.genre = nn.Linear(num_genres, embedding_dim, bias=False)
        self.user_history = History(num_items, embedding_dim)
        self.item_history = History(num_users, embedding_dim)
        self.dropout = nn.Dropout(dropout)
        self.mix = nn.Linear(3 * embedding_dim, hidden_size)
        nn.init.normal_(self.user.weight, std=_EMBEDDING_STD)
        nn.init.normal_(self.item.weight, std=_EMBEDDING_STD)
        self.register_buffer("genres", torch.zeros(num_items, num_genres))
        self.register_buffer("residuals", torch.zeros(num_users, num_items))
        self.register_buffer("known", torch.zeros(num_users, num_items, dtype=torch.bool))
        # The same by item: reading columns out of the above would take most of a forward pass.
        self.register_buffer("residuals_by_item", torch.zeros(num_items, num_users))
        self.register_buffer("known_by_item", torch.zeros(num_items, num_users, dtype=torch.bool))

    def remember(self, ratings: Ratings, genres: Tensor) -> None:
        """Takes in training ratings and the items' genres [I, G]; replaces what was there.

        A residual is a rating less the global mean and damped biases of its item and its user.
        """
        user, item, centered = ratings.user, ratings.item, ratings.rating - ratings.rating.mean()
        centered = centered - _damped_means(item, centered, len(self.genres))[item]
        centered = centered - _damped_means(user, centered, len(self.known))[user]
        self.genres.copy_(genres)
        self.residuals.zero_()[user, item] = centered
        self.known.zero_()[user, item] = True
        self.residuals_by_item.copy_(self.residuals.T)
        self.known_by_item.copy_(self.known.T)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        """Embeds user [B] and item [B], int64, as [B, D]."""
        of_user = self.user(user) + self.user_history(
            self.residuals.index_select(0, user), self.known.index_select(0, user), item
        )
        of_item = self.item(item) + self.genre(self.genres[item])
        residuals = self.residuals_by_item.index_select(0, item)
        known = self.known_by_item.index_select(0, item)
        of_item = of_item + self.item_history(residuals, known, user)
        of_user, of_item = self.dropout(of_user), self.dropout(of_item)
        hidden_states: Tensor = self.mix(torch.cat([of_user, of_item, of_user * of_item], dim=-1))
        return hidden_states


def _damped_means(groups: Tensor, values: Tensor, num_groups: int) -> Tensor:
    """Returns the mean of `values` by group, drawn to 0 where there are few; [num_groups]."""
    sums = torch.zeros(num_groups).index_add_(0, groups, values)
    return sums / (torch.bincount(groups, minlength=num_groups) + _DAMPING)


class Recommender(nn.Module):
    """The foundation model: predicts a rating of any user and item.

    Args:
        num_users: one more than the largest user id.
        num_items: one more than the largest item id.
        num_genres: genres an item can have.
        embedding_dim: width of a user's and an item's embedding.
        hidden_size: width of the hidden states.
        num_layers: residual blocks.
        dropout: of embeddings and blocks, in training.
        mean_rating: what the head starts from, in stars.
    """

    def __init__(
        self,
        *,
        num_users: int,
        num_items: int,
        num_genres: int,
        embedding_dim: int = 32,
        hidden_size: int = 128,
        num_layers: int = 4,
        dropout: float = 0.3,
        mean_rating: float = 3.5,
    ) -> None:
        super().__init__()
        self.embed = RecommenderEmbedding(
            num_users, num_items, num_genres, embedding_dim, hidden_size, dropout
        )
        self.blocks = nn.ModuleList(Block(hidden_size, hidden_size, dropout) for _ in range(num_layers))
        self.head = _rating_head(hidden_size, mean_rating)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        """Predicts the ratings of user [B] and item [B], int64; [B, 1], in stars."""
        return _run(self.embed(user=user, item=item), self.blocks, self.head)


class StudentEmbedding(nn.Module):
    """A user and an item as one vector, without histories and genres."""

    def __init__(
        self, num_users: int, num_items: int, embedding_dim: int, hidden_size: int, dropout: float
    ) -> None:
        super().__init__()
        self.user = nn.Embedding(num_users, embedding_dim)
        self.item = nn.Embedding(num_items, embedding_dim)
        self.dropout = nn.Dropout(dropout)
        self.mix = nn.Linear(3 * embedding_dim, hidden_size)
        nn.init.normal_(self.user.weight, std=_STUDENT_EMBEDDING_STD)
        nn.init.normal_(self.item.weight, std=_STUDENT_EMBEDDING_STD)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        """Embeds user [B] and item [B], int64, as [B, D]."""
        of_user, of_item = self.dropout(self.user(user)), self.dropout(self.item(item))
        hidden_states: Tensor = self.mix(torch.cat([of_user, of_item, of_user * of_item], dim=-1))
        return hidden_states


class Student(nn.Module):
    """A team's recommender, small enough to serve anywhere; it runs alone after training.

    Args:
        num_users: one more than the largest user id.
        num_items: one more than the largest item id.
        embedding_dim: width of a user's and an item's embedding.
        hidden_size: width of the hidden states.
        num_layers: residual blocks; the lower states are those of `blocks.0`, the upper those of the last.
        dropout: of embeddings and blocks, in training.
        mean_rating: what the head starts from, in stars.
    """

    def __init__(
        self,
        *,
        num_users: int,
        num_items: int,
        embedding_dim: int = 16,
        hidden_size: int = 32,
        num_layers: int = 2,
        dropout: float = 0.2,
        mean_rating: float = 3.5,
    ) -> None:
        super().__init__()
        self.embed = StudentEmbedding(num_users, num_items, embedding_dim, hidden_size, dropout)
        self.blocks = nn.ModuleList(Block(hidden_size, hidden_size, dropout) for _ in range(num_layers))
        self.head = _rating_head(hidden_size, mean_rating)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        """Predicts the ratings of user [B] and item [B], int64; [B, 1], in stars."""
        return _run(self.embed(user=user, item=item), self.blocks, self.head)


def _rating_head(hidden_size: int, mean_rating: float) -> nn.Sequential:
    """Returns LayerNorm and an affine map to one rating that starts from the mean rating."""
    affine = nn.Linear(hidden_size, 1)
    nn.init.constant_(affine.bias, mean_rating)
    return nn.Sequential(nn.LayerNorm(hidden_size), affine)


def _run(hidden_states: Tensor, blocks: nn.ModuleList, head: nn.Module) -> Tensor:
    for block in blocks:
        hidden_states = block(hidden_states)
    ratings: Tensor = head(hidden_states)
    return ratings
