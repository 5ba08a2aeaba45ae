"""FastAPI routers, one per public protocol. Knows neither Ray nor torch."""
