"""The fake's metadata store: what experiments need."""

from typing import Any

from google.cloud.aiplatform_v1 import types


class Metadata:
    """One store per region, and its contexts."""

    def __init__(self) -> None:
        super().__init__()
        self.contexts: dict[str, types.Context] = {}
        self.children: dict[str, list[str]] = {}

    def get_metadata_store(self, request: Any) -> types.MetadataStore:
        return types.MetadataStore(name=request.name)

    def get_context(self, request: Any) -> types.Context:
        from tests.cloud.fake_vertex import Refusal

        if request.name not in self.contexts:
            raise Refusal(404, f"context {request.name} not found")
        return self.contexts[request.name]

    def create_context(self, request: Any) -> types.Context:
        context = request.context
        context.name = f"{request.parent}/contexts/{request.context_id}"
        self.contexts[context.name] = context
        return context

    def update_context(self, request: Any) -> types.Context:
        self.contexts[request.context.name] = request.context
        return request.context

    def list_contexts(self, request: Any) -> types.ListContextsResponse:
        found = [c for name, c in self.contexts.items() if name.startswith(request.parent)]
        return types.ListContextsResponse(contexts=found)

    def add_context_children(self, request: Any) -> None:
        self.children.setdefault(request.context, []).extend(request.child_contexts)
