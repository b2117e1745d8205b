"""The labelling page: a small server over a store of comparisons, and the page that it serves.

The server is FastAPI on uvicorn (the extra ``label``). The page is one hand-written module without
any library, in ``static/``.
"""
