"""The site: what is public, the pages that are made of it, and what MkDocs calls. `mkdocs build --strict` builds it."""
