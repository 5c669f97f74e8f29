"""The job store and the API keys, on SQLite or PostgreSQL.

`Database(url)` is shared by `SqlJobs` and `SqlKeys`; before it is opened, `await migrate(url)` brings its tables to the
newest shape.
"""
