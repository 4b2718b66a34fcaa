"""The database: where driftd keeps what must survive it. docs/database.md describes the tables and their guarantees.

rows.py         typed records that go in and come out; instant to import
store.py        Store: checkpoints, positions, and the door to everything else
folding.py      the transaction of the fold
outbox.py  references.py  reports.py    the parts of Store, by what they are for
retention.py    deletes what is older or more than settings allow
ageing.py       adds up summaries of old blocks
history.py      reads what is stored of closed blocks, for replay
backfills.py    which history was scored, and is being scored
lane.py         the same Store for history beside live records
connection.py   URLs, SQLite and PostgreSQL, transactions
failures.py     what the database's own errors mean
schema.py       the tables; migrations/ makes them

Importing store.py loads SQLAlchemy; import it where it is used.
"""
