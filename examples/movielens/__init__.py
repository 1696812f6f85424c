"""MovieLens-100K: one foundation recommender teaches the small recommenders of three teams."""
