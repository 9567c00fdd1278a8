"""GET /docs: the OpenAPI document in Swagger UI, all of it served from here.

The page and its scripts need no key and say nothing of this server; the document does, and its
calls carry the key that the user types.
"""

from __future__ import annotations

from saccade_server.api.pages import Part, policy

DOCS = "/docs"

OURS, SWAGGER = "saccade_server.api.openapi", "fastapi_swagger.resources"

# Swagger UI sets styles of single elements.
DOCS_POLICY = policy(styles="'self' 'unsafe-inline'")

DOCS_PARTS = {
    DOCS: Part(OURS, "page.html"),
    f"{DOCS}/page.css": Part(OURS, "page.css"),
    f"{DOCS}/page.js": Part(OURS, "page.js"),
    f"{DOCS}/swagger-ui.css": Part(SWAGGER, "swagger-ui.css"),
    f"{DOCS}/swagger-ui-bundle.js": Part(SWAGGER, "swagger-ui-bundle.js"),
}
"""What is sent, by path."""
