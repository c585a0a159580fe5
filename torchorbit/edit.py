"""Edit graphs: put other layers in place of some, further ones behind vertices, and vertices into blocks."""

from torchorbit.graph.editing import insert_after, replace_layers, users
from torchorbit.graph.grouping import group

__all__ = ["group", "insert_after", "replace_layers", "users"]
